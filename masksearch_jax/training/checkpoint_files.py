"""What lies in a step's folder: read back whole, one parameter at a time, or as what it is of.

The model's configuration and every array's shape are stored beside the arrays and compared before
anything is loaded. Arrays are written in chunks, and each process reads those that it wants, a few
at once: beside the shards that it keeps, a host holds at most twice the largest array.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from masksearch_jax.core import bucket
from masksearch_jax.core.config import ModelConfig, RopeScaling
from masksearch_jax.core.errors import Restart
from masksearch_jax.core.types import JsonObject
from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.sharding import PyTree

Leaf = jax.Array | jax.ShapeDtypeStruct
# Of what a step's folder holds. The first grows when a run of before could not go on from it, or a
# reader of before would misread it; the second is the oldest whose weights lie as they do now.
FORMAT, WEIGHTS_FORMAT = 5, 1
ITEMS = ("params", "optimizer", "meta")
# Bytes of a chunk of an array, at most. Other meshes and processes read whole chunks of which they
# may want a part; without a limit one is all that a device held.
CHUNK = 2**23


class CheckpointError(Exception):
    """A checkpoint could not be written, or is not the one asked for; the message says why."""


class CheckpointOutageError(CheckpointError, Restart):
    """A bucket that did not take one in passing: the same command goes on from the one before."""


def load_params(
    folder: str | os.PathLike, like: PyTree, model: ModelConfig, step: int | None = None
) -> PyTree:
    """Only the weights of `step` (None: the latest), placed as `like` (arrays or shapes).

    FOLDER/STEP names a step too. Raises as `Checkpointer.restore`.
    """
    folder, step = split(folder, step)
    with _reader(folder) as manager:
        step = find_step(manager, folder, step)
        return restore(manager, step, "params", like, read_meta(manager, step, model))


class StoredParams:
    """The weights of one step, brought one parameter at a time, each placed as in the model `like`.

    `step` is the one that was found (None: the latest), `dtype` what its weights are stored in,
    `made_from` a text that no other checkpoint has. A context manager. Raises as
    `Checkpointer.restore`.
    """

    def __init__(
        self, folder: str | os.PathLike, like: PyTree, model: ModelConfig, step: int | None = None
    ):
        folder, step = split(folder, step)
        self._manager = _reader(folder)
        self.step = find_step(self._manager, folder, step)
        wanted = flatten(like)
        _check_shapes(self.step, "params", read_meta(self._manager, self.step, model), wanted)
        paths = (path for path, _ in jax.tree_util.tree_flatten_with_path(like)[0])
        self._wanted = dict(zip(map(sharding.parameter_name, paths), wanted.items(), strict=True))
        place = absolute(folder) / str(self.step)
        self._place = place / "params"
        self._stored = _arrays_in(self._place)
        self.dtype = str(np.dtype(next(iter(self._stored.values())).dtype))
        # Times to the nanosecond: a step that was trained again is another checkpoint.
        self.made_from = f"{place} {(place / '_CHECKPOINT_METADATA').read_text()}"

    def read(self, parameter: str) -> jax.Array:
        """One parameter, by its name as `sharding.parameter_name` has it."""
        name, leaf = self._wanted[parameter]
        return _read(self._place, self._stored, {name: leaf})[name]

    def __enter__(self) -> StoredParams:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()


def read_model(folder: str | os.PathLike) -> ModelConfig:
    """The architecture of the latest checkpoint in `folder`, or of FOLDER/STEP.

    Raises FileNotFoundError for none.
    """
    stored = dict(_any_meta(folder, None)["model"])
    scaling = stored["rope_scaling"]
    return ModelConfig(**stored | {"rope_scaling": scaling and RopeScaling(**scaling)})


def read_adapters(folder: str | os.PathLike, step: int | None = None) -> JsonObject | None:
    """What the adapters of `step` (None: the latest) are and belong to; None: it holds no such.

    FOLDER/STEP names a step too. Raises FileNotFoundError for none.
    """
    return _any_meta(folder, step).get("adapters")


def read_tokenizer(folder: str | os.PathLike, step: int | None = None) -> dict[str, str] | None:
    """The tokenizer of `step` (None: the latest), see `check_tokenizer`; None: not said.

    FOLDER/STEP names a step too. Raises FileNotFoundError for none.
    """
    return _any_meta(folder, step).get("tokenizer")


def pinned(folder: str | os.PathLike) -> str:
    """FOLDER/STEP of the latest step there is now. Raises FileNotFoundError for none."""
    folder, step = split(folder)
    with _reader(folder) as manager:
        return f"{folder}/{find_step(manager, folder, step)}"


def _any_meta(folder: str | os.PathLike, step: int | None) -> JsonObject:
    folder, step = split(folder, step)
    with _reader(folder) as manager:
        step = find_step(manager, folder, step)
        return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]


def has_steps(folder: str | os.PathLike) -> bool:
    """Whether there is a step to go on from, in a folder or that of FOLDER/STEP."""
    place, _ = split(folder)
    if not place.exists():
        return False
    with _reader(place) as manager:
        return manager.latest_step() is not None


def below(folder: str | os.PathLike) -> str:
    """What to say to whoever gave the folder of a run for that of its checkpoints, else ""."""
    place = f"{os.fspath(folder)}/checkpoints"
    return f"; did you mean {place}?" if absolute(place).is_dir() else ""


def split(folder: str | os.PathLike, step: int | None = None) -> tuple[epath.Path, int | None]:
    """FOLDER and the step: STEP of FOLDER/STEP, else the one that is given."""
    path = absolute(folder)
    return (path.parent, int(path.name)) if path.name.isdigit() else (path, step)


def _reader(folder: str | os.PathLike) -> ocp.CheckpointManager:
    """A manager that saves nothing. Raises FileNotFoundError where there is no folder."""
    path = absolute(folder)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint folder {path}")
    # `read_only` would say that nothing is saved, but orbax then warns about it on every load.
    options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
    return ocp.CheckpointManager(path, options=options, item_names=ITEMS)


def absolute(folder: str | os.PathLike) -> epath.Path:
    """Of a local folder, what orbax asks for; of a bucket, as it is."""
    text = os.fspath(folder)
    return epath.Path(text if "://" in text else os.path.abspath(text))


def find_step(manager: ocp.CheckpointManager, folder: epath.Path, step: int | None) -> int:
    """The step, if it is whole; None: the latest. Raises FileNotFoundError where there is none."""
    steps = sorted(manager.all_steps())
    if not steps or step not in (None, *steps):
        wanted = "a whole checkpoint" if step is None else f"step {step}"
        if folder.exists() and not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder of checkpoints but a file")
        held = f"it holds the steps {steps}" if steps else "it holds none"
        raise FileNotFoundError(f"{folder} does not hold {wanted}; {held}{below(folder)}")
    return steps[-1] if step is None else step


def read_meta(
    manager: ocp.CheckpointManager, step: int, model: ModelConfig, oldest: int = WEIGHTS_FORMAT
) -> JsonObject:
    """What was stored beside the arrays. Raises CheckpointError when it is another model's.

    oldest: format that will do: for the weights alone that of the weights, to go on FORMAT.
    """
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = manager.restore(step, args=args)["meta"]
    found = meta.get("format", 0)
    if not oldest <= found <= FORMAT:
        age, way = "a newer" if found > FORMAT else "an older", ""
        if WEIGHTS_FORMAT <= found < FORMAT:
            way = ", or start another run from its weights by config.init"
        raise CheckpointError(
            f"step {step} is of {age} format, {found}; this version of masksearch_jax reads format "
            f"{FORMAT}: use the one that wrote it{way}"
        )
    if differing := _differing(meta["model"], json.loads(json.dumps(dataclasses.asdict(model)))):
        raise CheckpointError(
            f"step {step} is of another model: {differing}; `:hf` in place of a model's name takes "
            "the architecture that the checkpoints record"
        )
    return meta


def check_adapters(step: int, meta: JsonObject, asked: JsonObject | None) -> None:
    """Raises CheckpointError where the step's adapters are others, or for another base."""
    stored: JsonObject | None = meta.get("adapters")
    if (stored is None) != (asked is None):
        kinds = ["all weights" if a is None else f"rank {a['rank']}" for a in (stored, asked)]
        raise CheckpointError(f"step {step}: {kinds[0]} stored, config.lora asks for {kinds[1]}")
    if stored is None or asked is None:
        return
    # A base that was moved is still the same.
    found, wanted = ({**a, "base": "", "base_step": None, "base_seed": 0} for a in (stored, asked))
    if differing := _differing(found, wanted):
        raise CheckpointError(
            f"step {step} is of adapters for {base_of(stored)}, config.init is {base_of(asked)}: "
            f"{differing}; go on with the same base and config.lora, or in another config.workdir"
        )


def check_tokenizer(what: str, stored: dict[str, str] | None, asked: dict[str, str] | None) -> None:
    """Raises CheckpointError where ids mean other texts: weights are of one tokenizer.

    Each is its `folder` and the fingerprint of its `ids`; None: nothing is known of it. A folder
    of another name with the same tokenizer is fine.
    """
    if stored and asked and stored["ids"] != asked["ids"]:
        raise CheckpointError(
            f"{what} is of tokenizer {stored['folder']!r} (ids {stored['ids']}), config.tokenizer "
            f"is {asked['folder']!r} (ids {asked['ids']}): give the tokenizer of these weights"
        )


def base_of(adapters: JsonObject) -> str:
    """What to call the model that they are for."""
    if not adapters["base"]:
        return f"random weights of seed {adapters['base_seed']}"
    step = adapters.get("base_step")
    return adapters["base"] if step is None else f"step {step} of {adapters['base']}"


def _differing(stored: JsonObject, asked: JsonObject) -> str:
    return "; ".join(
        f"{name}: {stored.get(name)!r} stored, {asked.get(name)!r} asked for"
        for name in sorted(stored.keys() | asked.keys())
        if stored.get(name) != asked.get(name)
    )


def restore(
    manager: ocp.CheckpointManager, step: int, item: str, like: PyTree, meta: JsonObject
) -> PyTree:
    """The item's arrays in the structure, dtypes and shardings of `like`."""
    wanted = flatten(like)
    _check_shapes(step, item, meta, wanted)
    place = epath.Path(manager.directory) / str(step) / item
    arrays = _read(place, _arrays_in(place), wanted)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def _arrays_in(place: epath.Path) -> dict[str, ocp.metadata.ArrayMetadata]:
    """Shapes, dtypes and chunks of an item's arrays, by name."""
    with bucket.asking(place):
        return ocp.PyTreeCheckpointHandler().metadata(place).tree


def _read(
    place: epath.Path,
    stored: dict[str, ocp.metadata.ArrayMetadata],
    wanted: Mapping[str, Leaf],
) -> dict[str, jax.Array]:
    """Some of an item's arrays, by name, each process its shards of them.

    On their way at once is at most a quarter of what the largest array takes, or one shard. That is
    held about twice: as it lies in the file, and as it is wanted. So large arrays come first;
    orbax would leave them for last, when the host holds all others.
    """
    sizes = {n: math.prod(stored[n].shape) * stored[n].dtype.itemsize for n in wanted}
    least = max(sizes.values()) // 4
    large = [name for name in sizes if sizes[name] > least]
    found: dict[str, jax.Array] = {}
    for names in filter(None, (large, [name for name in sizes if sizes[name] <= least])):
        item = {name: _abstract(wanted[name]) for name in names}
        limit = max([least, *(_footprint(stored[n], item[n]) for n in names)]) + 1  # not reached
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit / 10**9)
        how = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        with bucket.asking(place):
            found |= handler.restore(place, args=args)
    return found


def _footprint(stored: ocp.metadata.ArrayMetadata, wanted: jax.ShapeDtypeStruct) -> int:
    """Bytes, in the wider dtype, of the chunks that the largest shard of a stored array lies in."""
    width = max(stored.dtype.itemsize, wanted.dtype.itemsize)

    def cover(index: tuple[slice, ...]) -> int:
        extents = (
            -(-stop // chunk) * chunk - start // chunk * chunk
            for part, size, chunk in zip(
                index, stored.shape, stored.storage.chunk_shape, strict=True
            )
            for start, stop, _ in (part.indices(size),)
        )
        return math.prod(extents) * width

    return max(map(cover, wanted.sharding.addressable_devices_indices_map(stored.shape).values()))


def _check_shapes(step: int, item: str, meta: JsonObject, wanted: Mapping[str, Leaf]) -> None:
    stored, asked = meta[item], shapes(wanted)
    if stored != asked:
        names = sorted(n for n in stored.keys() | asked.keys() if stored.get(n) != asked.get(n))
        shown = [f"{n}: {stored.get(n)} stored, {asked.get(n)} asked for" for n in names[:8]]
        raise CheckpointError(
            f"step {step}: {len(names)} arrays of {item!r} differ in shape: " + "; ".join(shown)
        )


def flatten(tree: PyTree) -> dict[str, PyTree]:
    """Leaves by their path: what is on disk does not depend on the classes that held them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def shapes(arrays: Mapping[str, Leaf]) -> dict[str, list[int]]:
    """As JSON has them."""
    return {name: list(x.shape) for name, x in arrays.items()}


def _abstract(x: Leaf) -> jax.ShapeDtypeStruct:
    place = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
