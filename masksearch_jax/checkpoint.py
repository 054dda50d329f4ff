"""Checkpoints: one atomic folder per step with weights, optimizer, and where everything else stood.

A step that was not written to its end does not exist for `latest_step`. The model's configuration
and every array's shape are stored beside the arrays and compared before anything is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from masksearch_jax import cli, sharding
from masksearch_jax.config import CheckpointConfig, ModelConfig, RopeScaling
from masksearch_jax.train_state import TrainState

PyTree = Any
FORMAT = 1  # of what a step's folder holds; grows when an older reader would misread it
_ITEMS = ("params", "optimizer", "meta")
_policies = ocp.checkpoint_managers


class CheckpointError(Exception):
    """A checkpoint could not be written, or is not the one asked for; the message says why."""


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        return False  # `survival` asks JAX, and whoever else asked would disturb the count


class Checkpointer:
    """Saves and restores `TrainState` and a JSON dict `extra` under FOLDER/STEP/.

    FOLDER is `config.folder`, or `folder` where that is empty. Keeps the newest `config.keep`
    steps, multiples of `config.keep_every`, and the best by `config.best_metric`. Writes in the
    background: `wait`, `close` or leaving the context returns when all is on disk. A save that
    fails (a full disk) is told on stderr, leaves earlier steps as they were, and is in `failed`.
    Raises CheckpointError where this process cannot write.
    """

    def __init__(self, folder: str | os.PathLike, config: CheckpointConfig, model: ModelConfig):
        self.folder = _absolute(config.folder or folder)
        self.failed: CheckpointError | None = None  # why the last save is not on disk
        self._config, self._model = config, model
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
        return _Manager(self.folder, options=options, item_names=_ITEMS)

    def is_due(self, step: int) -> bool:
        """True when the state after `step` updates is one to save."""
        return step % self._config.every == 0

    def save(
        self,
        step: int,
        state: TrainState,
        extra: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begins to write the state after `step` updates; an existing one is kept: it is the same.

        `state` may be donated as soon as this returns. Waits for the save before it. Raises
        CheckpointError where `metrics` lack the one that tells the best.
        """
        self.wait()
        if sharding.any_process(self.failed is not None):
            with contextlib.suppress(Exception):  # orbax would raise an old error again
                self._manager.close()
            self._manager, self.failed = self._open(), None
        if step == self.latest_step():
            return
        tracked = None if metrics is None else self._tracked(metrics)
        params, optimizer = _flatten(state.params), _flatten((state.step, state.opt_state))
        meta = {
            "format": FORMAT,
            "model": dataclasses.asdict(self._model),
            "params": _shapes(params),
            "optimizer": _shapes(optimizer),
            "extra": extra,
        }

        def write() -> None:
            self._check_space(params, optimizer)
            items = ocp.args.Composite(
                params=ocp.args.StandardSave(_own(params)),
                optimizer=ocp.args.StandardSave(_own(optimizer)),
                meta=ocp.args.JsonSave(meta),
            )
            self._writing = step
            self._manager.save(step, args=items, metrics=tracked, force=True)

        self._guard(step, write)

    def restore(
        self, like: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state and extra of `step` (None: the latest), placed as `like` (arrays or shapes).

        Raises FileNotFoundError when there is none, CheckpointError when it is of another model,
        optimizer or shape: it names what differs.
        """
        step = _find_step(self._manager, self.folder, step)
        meta = _read_meta(self._manager, step, self._model)
        params = _restore(self._manager, step, "params", like.params, meta)
        optimizer = (like.step, like.opt_state)
        count, opt_state = _restore(self._manager, step, "optimizer", optimizer, meta)
        return TrainState(count, params, opt_state), meta["extra"]

    def latest_step(self) -> int | None:
        """The newest whole step, or None."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._writing is not None:
            step, self._writing = self._writing, None
            self._guard(step, self._manager.wait_until_finished)

    def close(self) -> None:
        self.wait()
        with contextlib.suppress(Exception):  # what has failed was told
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tracked(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        """What the best step is told by; None where nothing tells."""
        name = self._config.best_metric
        if name and name not in metrics:
            raise CheckpointError(
                f"config.checkpoint.best_metric is {name!r}, which this run does not measure; "
                + cli.nearest(name, metrics)
            )
        return {name: float(metrics[name])} if name else None

    def _check_space(self, *trees: dict[str, jax.Array]) -> None:
        """Raises OSError on all processes where one sees no room for the whole."""
        free = needed = 0
        if os.path.isdir(self.folder):  # no bucket
            disk = os.statvfs(self.folder)
            free = disk.f_bavail * disk.f_frsize
            needed = sum(x.nbytes for tree in trees for x in tree.values())
        if sharding.any_process(free < needed):
            raise OSError(f"it needs {needed:,} bytes, {free:,} are free there")

    def _guard(self, step: int, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # orbax and tensorstore raise many types for one full disk
            if cli.is_lost_process(error):
                raise
            why = " ".join(str(error).split())[:400]
        else:
            return
        with warnings.catch_warnings():  # of coroutines that orbax never began
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
        self._writing = None
        self._manager.reload()  # what is on disk, not what was to be
        last = self._manager.latest_step()
        self.failed = CheckpointError(
            f"step {step} could not be written to {self.folder}: {why}; the last good "
            f"checkpoint is {'none' if last is None else f'step {last}, untouched'}"
        )
        print(f"  warning: {self.failed}", file=sys.stderr, flush=True)


def load_params(
    folder: str | os.PathLike, like: PyTree, model: ModelConfig, step: int | None = None
) -> PyTree:
    """Only the weights of `step` (None: the latest), placed as `like` (arrays or shapes).

    FOLDER/STEP names a step too. Raises as `Checkpointer.restore`.
    """
    folder, step = _split(folder, step)
    with _reader(folder) as manager:
        step = _find_step(manager, folder, step)
        return _restore(manager, step, "params", like, _read_meta(manager, step, model))


class StoredParams:
    """The weights of one step, brought one parameter at a time, each placed as in the model `like`.

    `step` is the one that was found (None: the latest), `dtype` what its weights are stored in,
    `source` a text that no other checkpoint has. A context manager. Raises as
    `Checkpointer.restore`.
    """

    def __init__(
        self, folder: str | os.PathLike, like: PyTree, model: ModelConfig, step: int | None = None
    ):
        folder, step = _split(folder, step)
        self._manager = _reader(folder)
        self.step = _find_step(self._manager, folder, step)
        wanted = _flatten(like)
        _check_shapes(self.step, "params", _read_meta(self._manager, self.step, model), wanted)
        paths = (path for path, _ in jax.tree_util.tree_flatten_with_path(like)[0])
        self._wanted = dict(zip(map(sharding.parameter_name, paths), wanted.items(), strict=True))
        place = _absolute(folder) / str(self.step)
        stored = ocp.PyTreeCheckpointHandler().metadata(place / "params")
        self.dtype = str(np.dtype(next(iter(stored.tree.values())).dtype))
        # Times to the nanosecond: a step that was trained again is another checkpoint.
        self.source = f"{place} {(place / '_CHECKPOINT_METADATA').read_text()}"

    def read(self, parameter: str) -> jax.Array:
        """One parameter, by its name as `sharding.parameter_name` has it."""
        name, leaf = self._wanted[parameter]
        item = {name: _abstract(leaf)}
        how = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        found = self._manager.restore(self.step, args=ocp.args.Composite(params=args))
        return found["params"][name]

    def __enter__(self) -> StoredParams:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()


def read_model(folder: str | os.PathLike) -> ModelConfig:
    """The architecture of the latest checkpoint in `folder`, or of FOLDER/STEP.

    Raises FileNotFoundError for none.
    """
    folder, step = _split(folder, None)
    with _reader(folder) as manager:
        step = _find_step(manager, folder, step)
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    stored = dict(meta["model"])
    scaling = stored["rope_scaling"]
    return ModelConfig(**stored | {"rope_scaling": scaling and RopeScaling(**scaling)})


def _split(folder: str | os.PathLike, step: int | None) -> tuple[epath.Path, int | None]:
    path = _absolute(folder)
    return (path.parent, int(path.name)) if path.name.isdigit() else (path, step)


def _reader(folder: str | os.PathLike) -> ocp.CheckpointManager:
    """A manager that saves nothing. Raises FileNotFoundError where there is no folder."""
    path = _absolute(folder)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint folder {path}")
    # `read_only` would say that nothing is saved, but orbax then warns about it on every load.
    options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
    return ocp.CheckpointManager(path, options=options, item_names=_ITEMS)


def _metric(config: CheckpointConfig) -> Callable[[Any], float]:
    return lambda metrics: metrics[config.best_metric]


def _policy(config: CheckpointConfig) -> Any:
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
    except Exception as error:  # every kind of bucket has its own
        raise CheckpointError(
            f"checkpoints cannot be written to {folder} ({type(error).__name__}: {error}); give "
            "this process the right to write there, or choose another config.workdir or "
            "config.checkpoint.folder"
        ) from error


def _own(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The arrays, safe from donation while they are written: on CPU, the host's copy is theirs."""
    return arrays if jax.default_backend() != "cpu" else _copy(arrays)


@jax.jit
def _copy(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jax.numpy.copy(x) for name, x in arrays.items()}


def _absolute(folder: str | os.PathLike) -> epath.Path:
    text = os.fspath(folder)
    return epath.Path(text if "://" in text else os.path.abspath(text))


def _find_step(manager: ocp.CheckpointManager, folder: Any, step: int | None) -> int:
    steps = sorted(manager.all_steps())
    if not steps or step not in (None, *steps):
        wanted = "a whole checkpoint" if step is None else f"step {step}"
        raise FileNotFoundError(f"{folder} does not hold {wanted}; it holds the steps {steps}")
    return steps[-1] if step is None else step


def _read_meta(manager: ocp.CheckpointManager, step: int, model: ModelConfig) -> dict[str, Any]:
    """What was stored beside the arrays. Raises CheckpointError when it is another model's."""
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = manager.restore(step, args=args)["meta"]
    if meta.get("format", 0) != FORMAT:
        age = "a newer" if meta.get("format", 0) > FORMAT else "an older"
        raise CheckpointError(
            f"step {step} is of {age} format, {meta.get('format', 0)}; this version of "
            f"masksearch_jax reads format {FORMAT}: use the one that wrote it"
        )
    asked = json.loads(json.dumps(dataclasses.asdict(model)))
    stored = meta["model"]
    differing = [
        f"{name}: {stored.get(name)!r} stored, {asked.get(name)!r} asked for"
        for name in sorted(stored.keys() | asked.keys())
        if stored.get(name) != asked.get(name)
    ]
    if differing:
        raise CheckpointError(f"step {step} is of another model: " + "; ".join(differing))
    return meta


def _restore(
    manager: ocp.CheckpointManager, step: int, item: str, like: PyTree, meta: dict[str, Any]
) -> PyTree:
    """The item's arrays in the structure, dtypes and shardings of `like`."""
    wanted = _flatten(like)
    _check_shapes(step, item, meta, wanted)
    args = ocp.args.Composite(
        **{item: ocp.args.StandardRestore({n: _abstract(x) for n, x in wanted.items()})}
    )
    arrays = manager.restore(step, args=args)[item]
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def _check_shapes(step: int, item: str, meta: dict[str, Any], wanted: dict[str, Any]) -> None:
    stored, asked = meta[item], _shapes(wanted)
    if stored != asked:
        names = sorted(n for n in stored.keys() | asked.keys() if stored.get(n) != asked.get(n))
        shown = [f"{n}: {stored.get(n)} stored, {asked.get(n)} asked for" for n in names[:8]]
        raise CheckpointError(
            f"step {step}: {len(names)} arrays of {item!r} differ in shape: " + "; ".join(shown)
        )


def _flatten(tree: PyTree) -> dict[str, jax.Array]:
    """Leaves by their path: what is on disk does not depend on the classes that held them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shapes(arrays: dict[str, jax.Array]) -> dict[str, list[int]]:
    return {name: list(x.shape) for name, x in arrays.items()}


def _abstract(x: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    place = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
