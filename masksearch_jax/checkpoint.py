"""Checkpoints: one atomic folder per step with weights, optimizer, and where everything else stood.

A step that was not written to its end does not exist for `latest_step`. The model's configuration
and every array's shape are stored beside the arrays and compared before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from masksearch_jax.config import CheckpointConfig, ModelConfig, RopeScaling
from masksearch_jax.train_state import TrainState

PyTree = Any
_ITEMS = ("params", "optimizer", "meta")


class CheckpointError(Exception):
    """A checkpoint could not be written, or is not the one asked for; the message says why."""


class Checkpointer:
    """Saves and restores `TrainState` and a JSON dict `extra` under FOLDER/STEP/.

    Keeps the newest `config.keep` steps. Use as a context manager or call `close`, which waits for
    what is still being written. Writes in the background on accelerators; on CPU, where an array
    and its copy on the host may be the same memory, `save` returns when the step is on disk.
    """

    def __init__(self, folder: str | os.PathLike, config: CheckpointConfig, model: ModelConfig):
        self.folder = _absolute(folder)
        self._every = config.every
        self._model = model
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=jax.default_backend() != "cpu",
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=_ITEMS)

    def is_due(self, step: int) -> bool:
        """True when the state after `step` updates is one to save."""
        return step % self._every == 0

    def save(self, step: int, state: TrainState, extra: dict[str, Any]) -> None:
        """Writes the state after `step` updates; an existing one is kept, since it is the same.

        Raises CheckpointError when it cannot be written (a full disk); earlier steps stay as they
        were.
        """
        if step == self.latest_step():
            return
        params, optimizer = _flatten(state.params), _flatten((state.step, state.opt_state))
        meta = {
            "model": dataclasses.asdict(self._model),
            "params": _shapes(params),
            "optimizer": _shapes(optimizer),
            "extra": extra,
        }
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer),
            meta=ocp.args.JsonSave(meta),
        )
        self._check_space(step, params, optimizer)
        self._guard(step, lambda: self._manager.save(step, args=items, force=True))

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
        """Returns when nothing is being written. Raises CheckpointError when that failed."""
        self._guard(self.latest_step(), self._manager.wait_until_finished)

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_space(self, step: int, *trees: dict[str, jax.Array]) -> None:
        if not os.path.isdir(self.folder):  # a bucket
            return
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        needed = sum(x.size * x.dtype.itemsize for tree in trees for x in tree.values())
        if free < needed:
            raise CheckpointError(
                f"step {step} needs {needed:,} bytes but {self.folder} has {free:,} free; "
                f"the last good checkpoint is {self._last_good()}"
            )

    def _guard(self, step: int | None, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # orbax and tensorstore raise many types for one full disk
            raise CheckpointError(
                f"step {step} could not be written to {self.folder}: {error}; "
                f"the last good checkpoint is {self._last_good()}"
            ) from error

    def _last_good(self) -> str:
        self._manager.reload()
        step = self._manager.latest_step()
        return "none" if step is None else f"step {step}, untouched"


def load_params(
    folder: str | os.PathLike, like: PyTree, model: ModelConfig, step: int | None = None
) -> PyTree:
    """Only the weights of `step` (None: the latest), placed as `like` (arrays or shapes).

    Raises as `Checkpointer.restore`.
    """
    with _reader(folder) as manager:
        step = _find_step(manager, folder, step)
        return _restore(manager, step, "params", like, _read_meta(manager, step, model))


def read_model(folder: str | os.PathLike) -> ModelConfig:
    """The architecture of the latest checkpoint in `folder`. Raises FileNotFoundError for none."""
    with _reader(folder) as manager:
        step = _find_step(manager, folder, None)
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    stored = dict(meta["model"])
    scaling = stored["rope_scaling"]
    return ModelConfig(**stored | {"rope_scaling": scaling and RopeScaling(**scaling)})


def _reader(folder: str | os.PathLike) -> ocp.CheckpointManager:
    """A manager that saves nothing. Raises FileNotFoundError where there is no folder."""
    path = _absolute(folder)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint folder {path}")
    # `read_only` would say that nothing is saved, but orbax then warns about it on every load.
    options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
    return ocp.CheckpointManager(path, options=options, item_names=_ITEMS)


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
    stored, asked = meta[item], _shapes(wanted)
    if stored != asked:
        names = sorted(n for n in stored.keys() | asked.keys() if stored.get(n) != asked.get(n))
        shown = [f"{n}: {stored.get(n)} stored, {asked.get(n)} asked for" for n in names[:8]]
        raise CheckpointError(
            f"step {step}: {len(names)} arrays of {item!r} differ in shape: " + "; ".join(shown)
        )
    args = ocp.args.Composite(
        **{item: ocp.args.StandardRestore({n: _abstract(x) for n, x in wanted.items()})}
    )
    arrays = manager.restore(step, args=args)[item]
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def _flatten(tree: PyTree) -> dict[str, jax.Array]:
    """Leaves by their path: what is on disk does not depend on the classes that held them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shapes(arrays: dict[str, jax.Array]) -> dict[str, list[int]]:
    return {name: list(x.shape) for name, x in arrays.items()}


def _abstract(x: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
