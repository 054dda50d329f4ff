"""Checkpoints: one atomic folder per step with weights, optimizer, and where everything else stood.

A step that was not written to its end does not exist for `latest_step`. What lies in a folder, and
how it is read, is `stored`'s.

Of a run with low-rank adapters a step holds these and their optimizer state, not the base, which
does not change and is hundreds of times larger: with it, each save of a 7B model would write 15 GB
for 80 MB of news. Instead it says what the base is: where it came from and a fingerprint of its
values, by which another base is refused. The base must be kept as long as its adapters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath

from masksearch_jax.core import bucket, files
from masksearch_jax.core.config import CheckpointConfig, ModelConfig
from masksearch_jax.core.errors import nearest
from masksearch_jax.core.types import JsonObject
from masksearch_jax.parallel import hosts
from masksearch_jax.runtime.interrupts import held
from masksearch_jax.runtime.process import is_lost_process
from masksearch_jax.training import checkpoint_files
from masksearch_jax.training.checkpoint_files import CheckpointError, CheckpointOutageError
from masksearch_jax.training.train_state import TrainState

Arrays = dict[str, jax.Array]
_policies = ocp.checkpoint_managers


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        return False  # `survival` asks JAX, and whoever else asked would disturb the count


class Checkpointer:
    """Saves and restores `TrainState` and a JSON dict `extra` under FOLDER/STEP/.

    FOLDER is `config.folder`, or `folder` where that is empty. Keeps the newest `config.keep`
    steps, multiples of `config.keep_every`, and the best by `config.best_metric`. Writes in the
    background: `wait`, `close` or leaving the context returns when all is on disk, and a Ctrl-C in
    them waits for that. A save that fails (a full disk) is told on stderr, leaves earlier steps as
    they were, and is in `failed`.
    `adapters`: JSON of the adapters that the weights are, and of their base; None: they are all.
    `tokenizer`: `folder` and `ids_fingerprint` as `ids`; None: it is not said.
    Raises CheckpointError where this process cannot write, StorageOutageError as `bucket`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: CheckpointConfig,
        model: ModelConfig,
        adapters: JsonObject | None = None,
        tokenizer: dict[str, str] | None = None,
    ):
        self.folder = checkpoint_files.absolute(config.folder or folder)
        self.failed: CheckpointError | None = None  # why the last save is not on disk
        self._config, self._model, self._adapters = config, model, adapters
        self._tokenizer = tokenizer
        self._writing: int | None = None
        _check_writable(self.folder)
        self._manager = self._open()

    def _open(self) -> _Manager:
        """A manager of what is on disk; partial folders of failed or killed saves are removed."""
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_policy(self._config),
            best_fn=_metric(self._config) if self._config.best_metric else None,
            best_mode=self._config.best_mode,
            cleanup_tmp_directories=True,
        )
        return _Manager(self.folder, options=options, item_names=checkpoint_files.ITEMS)

    def is_due(self, step: int) -> bool:
        """True when the state after `step` updates is one to save."""
        return step % self._config.every == 0

    def save(
        self,
        step: int,
        state: TrainState,
        extra: JsonObject,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begins to write the state after `step` updates; an existing one is kept: it is the same.

        `state` may be donated, and `extra` changed, as soon as this returns. Waits for the save
        before it. Raises CheckpointError where `metrics` lack the one that tells the best.
        """
        self.wait()
        if hosts.is_on_any(self.failed is not None):
            with held():
                with contextlib.suppress(Exception):  # orbax would raise an old error again
                    self._manager.close()
                self._manager, self.failed = self._open(), None
        if step == self.latest_step():
            return
        tracked = None if metrics is None else self._tracked(metrics)
        params = checkpoint_files.flatten(state.params)
        optimizer = checkpoint_files.flatten((state.step, state.opt_state))
        meta = self._meta(params, optimizer, extra)

        def write() -> None:
            self._check_space(params, optimizer)
            items = ocp.args.Composite(
                params=_in_chunks(_own(params)),
                optimizer=_in_chunks(_own(optimizer)),
                meta=ocp.args.JsonSave(meta),
            )
            self._writing = step
            self._manager.save(step, args=items, metrics=tracked, force=True)

        self._guard(step, write)

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives a step on disk what tells the best, which it was saved without; all must call it.

        Nothing where nothing tells. Raises CheckpointError as `save`.
        """
        if (tracked := self._tracked(metrics)) is None:
            return
        if jax.process_index() == 0:
            item = ocp.checkpoint_manager.METRIC_ITEM_NAME
            files.write_json(self.folder / str(step) / item / item, tracked)
        hosts.is_on_any(False)  # none reads it before it is there
        self._manager.reload()

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, JsonObject]:
        """The state and extra of `step` (None: the latest), placed as `like` (arrays or shapes).

        What is frozen stays that of `like`. Raises FileNotFoundError when there is none,
        CheckpointError when it is of another model, base, tokenizer, optimizer or shape: it names
        what differs.
        """
        step = checkpoint_files.find_step(self._manager, self.folder, step)
        newest = checkpoint_files.FORMAT
        meta = checkpoint_files.read_meta(self._manager, step, self._model, newest)
        checkpoint_files.check_adapters(step, meta, self._adapters)
        checkpoint_files.check_tokenizer(f"step {step}", meta.get("tokenizer"), self._tokenizer)
        params = checkpoint_files.restore(self._manager, step, "params", like.params, meta)
        optimizer = (like.step, like.opt_state)
        count, opt_state = checkpoint_files.restore(
            self._manager, step, "optimizer", optimizer, meta
        )
        return TrainState(count, params, opt_state, like.frozen), meta["extra"]

    def latest_step(self) -> int | None:
        """The newest whole step, or None."""
        return self._manager.latest_step()

    def drop_after(self, step: int) -> int | None:
        """Deletes all later steps; the newest that is left, 0 where none was saved or all go.

        None: there are later ones alone, and none goes, since step is not 0.
        """
        self.wait()
        steps = sorted(self._manager.all_steps())
        if steps and steps[0] > step > 0:
            return None
        with held():
            for later in (s for s in steps if s > step):
                self._manager.delete(later)
        return max((s for s in steps if s <= step), default=0)

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._writing is not None:
            step, self._writing = self._writing, None
            self._guard(step, self._manager.wait_until_finished)

    def close(self) -> None:
        self.wait()
        with held(), contextlib.suppress(Exception):  # what has failed was told
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _meta(self, params: Arrays, optimizer: Arrays, extra: JsonObject) -> JsonObject:
        """What is stored beside the arrays."""
        return {
            "format": checkpoint_files.FORMAT,
            "model": dataclasses.asdict(self._model),
            "adapters": self._adapters,
            "tokenizer": self._tokenizer,
            "params": checkpoint_files.shapes(params),
            "optimizer": checkpoint_files.shapes(optimizer),
            "extra": json.loads(json.dumps(extra)),  # orbax writes it later, from a thread
        }

    def _tracked(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        """What the best step is told by; None where nothing tells, or no finite number."""
        name = self._config.best_metric
        if name and name not in metrics:
            raise CheckpointError(
                f"config.checkpoint.best_metric is {name!r}, which this run does not measure; "
                + nearest(name, metrics)
            )
        return {name: value} if name and math.isfinite(value := float(metrics[name])) else None

    def _check_space(self, *trees: Arrays) -> None:
        """Raises OSError on all processes where one sees no room for the whole."""
        free = needed = 0
        if os.path.isdir(self.folder):  # no bucket
            disk = os.statvfs(self.folder)
            free = disk.f_bavail * disk.f_frsize
            needed = sum(x.nbytes for tree in trees for x in tree.values())
        if hosts.is_on_any(free < needed):
            raise OSError(f"it needs {needed:,} bytes, {free:,} are free there")

    def _guard(self, step: int, write: Callable[[], object]) -> None:
        try:
            with held():
                write()
        except Exception as error:  # orbax and tensorstore raise many types for one full disk
            if is_lost_process(error):
                raise
            found = bucket.failure(error, self.folder)
            passes = isinstance(found, bucket.StorageOutageError)
            why = " ".join(str(error).split())[:400]
        else:
            return
        with warnings.catch_warnings():  # of coroutines that orbax never began
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
        self._writing = None
        self._manager.reload()  # what is on disk, not what was to be
        last = self._manager.latest_step()
        kind = CheckpointOutageError if passes else CheckpointError
        self.failed = kind(
            f"step {step} could not be written to {self.folder}: {why}; the last good "
            f"checkpoint is {'none' if last is None else f'step {last}, untouched'}"
        )
        print(f"  warning: {self.failed}", file=sys.stderr, flush=True)


def _metric(config: CheckpointConfig) -> Callable[[Mapping[str, float]], float]:
    return lambda metrics: metrics[config.best_metric]


def _policy(config: CheckpointConfig) -> ocp.checkpoint_managers.PreservationPolicy:
    kept = [_policies.LatestN(config.keep)]
    if config.keep_every:
        kept.append(_policies.EveryNSteps(config.keep_every))
    if config.best_metric:
        best = _policies.BestN(
            get_metric_fn=_metric(config),
            reverse=config.best_mode == "min",
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best)
    return _policies.AnyPreservationPolicy(kept)


def _check_writable(folder: epath.Path) -> None:
    """Makes the folder and a file in it. Raises CheckpointError where that is not allowed."""
    probe = folder / f".writable-{jax.process_index()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except bucket.StorageOutageError:
        raise
    except Exception as error:  # every kind of bucket has its own
        raise CheckpointError(
            f"checkpoints cannot be written to {folder} ({type(error).__name__}: {error}); give "
            "this process the right to write there, or choose another config.workdir or "
            "config.checkpoint.folder"
        ) from error


def _in_chunks(arrays: Arrays) -> ocp.args.StandardSave:
    how = ocp.SaveArgs(chunk_byte_size=checkpoint_files.CHUNK)
    return ocp.args.StandardSave(arrays, dict.fromkeys(arrays, how))


def _own(arrays: Arrays) -> Arrays:
    """The arrays, safe from donation while they are written: on CPU, the host's copy is theirs."""
    return arrays if jax.default_backend() != "cpu" else _copy(arrays)


@jax.jit
def _copy(arrays: Arrays) -> Arrays:
    return {name: jax.numpy.copy(x) for name, x in arrays.items()}
