"""Weights in Hugging Face format: one table of names, used to load, to save and to verify.

A folder holds safetensors (one file, or shards and an index), `config.json`,
`generation_config.json` and tokenizer files. Every tensor must match exactly one row of the table,
with the right shape. Weights pass through the host one tensor at a time, both ways.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from masksearch_jax.core import files, gguf_file
from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.core.types import JsonObject
from masksearch_jax.models import hf_files, hf_folder, hf_names, layout
from masksearch_jax.models.hf_config import HfError, read_config, to_hf_config
from masksearch_jax.models.hf_files import DTYPES, INDEX, SINGLE, Stored  # noqa: F401
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.parallel.sharding import PyTree
from masksearch_jax.runtime.progress import Progress

_NOTHING: Mapping[str, JsonObject] = types.MappingProxyType({})

MB = 10**6


class Row(NamedTuple):
    """HF name of a parameter, our path, and whether it is a matrix of a layer.

    Of those HF stores [outputs, inputs] and we the transpose; vectors and tables are alike.
    """

    hf: str
    ours: str
    transposed: bool = False


_TABLE_NAME = "model.embed_tokens.weight"  # of the embedding table
TABLE = (
    Row(_TABLE_NAME, "embedding"),
    Row("model.norm.weight", "norm"),
    Row(hf_names.HEAD, "head"),
    Row("model.layers.{}.input_layernorm.weight", "blocks.attention_norm"),
    Row("model.layers.{}.self_attn.q_proj.weight", "blocks.q", True),
    Row("model.layers.{}.self_attn.k_proj.weight", "blocks.k", True),
    Row("model.layers.{}.self_attn.v_proj.weight", "blocks.v", True),
    Row("model.layers.{}.self_attn.q_proj.bias", "blocks.q_bias"),
    Row("model.layers.{}.self_attn.k_proj.bias", "blocks.k_bias"),
    Row("model.layers.{}.self_attn.v_proj.bias", "blocks.v_bias"),
    Row("model.layers.{}.self_attn.q_norm.weight", "blocks.q_norm"),
    Row("model.layers.{}.self_attn.k_norm.weight", "blocks.k_norm"),
    Row("model.layers.{}.self_attn.o_proj.weight", "blocks.o", True),
    Row("model.layers.{}.post_attention_layernorm.weight", "blocks.mlp_norm"),
    Row("model.layers.{}.mlp.gate_proj.weight", "blocks.gate", True),
    Row("model.layers.{}.mlp.up_proj.weight", "blocks.up", True),
    Row("model.layers.{}.mlp.down_proj.weight", "blocks.down", True),
)


class Tensor(NamedTuple):
    """One HF tensor: its row, layer (None outside the blocks) and HF's shape of it."""

    row: Row
    layer: int | None
    hf: tuple[int, ...]


def abstract(config: ModelConfig, compute: ComputeConfig) -> Transformer:
    """The model with ShapeDtypeStruct leaves: no memory at any size."""
    return jax.eval_shape(lambda: Transformer(config, compute, nnx.Rngs(0)))


def tensors(model: Transformer) -> dict[str, Tensor]:
    """HF name to place of every tensor that a model of this shape has, in file order."""
    found: dict[str, Tensor] = {}
    leaves = _leaves(model)
    for row in TABLE:
        if row.ours not in leaves:
            continue
        shape = leaves.pop(row.ours).shape
        layers = range(shape[0]) if "{}" in row.hf else (None,)
        ours = shape if layers == (None,) else shape[1:]
        for layer in layers:
            found[row.hf.format(layer)] = Tensor(row, layer, ours[::-1] if row.transposed else ours)
    if leaves:
        raise HfError(f"parameters without a row in the HF table: {sorted(leaves)}")
    return found


def load(folder: str | Path, compute: ComputeConfig, mesh: Mesh | None = None) -> Transformer:
    """The model in an HF folder, cast to `compute.param_dtype`, laid out over `mesh` when given.

    Nothing is written: an import that was cut off starts again, and takes as long as reading does.
    Raises as `Parameters`.
    """
    parameters = Parameters(folder, compute, mesh)
    arrays, done = [], 0
    shapes = _leaves(parameters.model)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes.values())
    with Progress("import, MB", total // MB) as progress:
        for name in shapes:
            arrays.append(parameters.read(name))
            done += arrays[-1].nbytes
            progress.update(done // MB)
    gguf_file.let_go()
    return jax.tree.unflatten(jax.tree.structure(parameters.model), arrays)


class Parameters:
    """What `load` loads, one parameter at a time; `model` has their shapes.

    dtype: what the files have, float32 where they have several. Each process reads the slices that
    its devices hold, one tensor at a time; its host keeps none.
    Raises HfError naming tensor, expected and found, before any weight is read.
    """

    def __init__(self, folder: str | Path, compute: ComputeConfig, mesh: Mesh | None = None):
        folder = Path(folder)
        self.model = abstract(read_config(folder), compute)
        self._rows: dict[str, list[Stored]] = {}
        for tensor, stored in _matched(folder, self.model):
            self._rows.setdefault(tensor.row.ours, []).append(stored)
        kinds = {DTYPES[s.dtype] for found in self._rows.values() for s in found}
        self.dtype = kinds.pop() if len(kinds) == 1 else "float32"
        self._largest = max(math.prod(s.shape) for found in self._rows.values() for s in found)
        self._places = _leaves(layout.parameter_shardings(mesh, self.model)) if mesh else {}

    def read(self, name: str) -> jax.Array:
        """One parameter, by its name as `sharding.parameter_name` has it."""
        rows, leaf = self._rows[name], _leaves(self.model)[name]
        whole = leaf.size <= self._largest or len(rows) == 1
        transposed = next(row.transposed for row in TABLE if row.ours == name)
        array = (_read if whole else _stack)(rows, leaf, transposed, self._places.get(name))
        return array.block_until_ready()  # or tensors would queue up on the host


def verify(folder: str | Path) -> dict[str, int]:
    """Counts {"tensors", "bytes"} of a folder whose files match the table; HfError otherwise.

    Reads the headers alone: names, shapes, dtypes, index and file sizes.
    """
    folder = Path(folder)
    config = read_config(folder)
    compute = ComputeConfig("float32", "float32", "xla", "none", 1)
    count = len(_matched(folder, abstract(config, compute)))
    files = sorted(folder.glob("*.safetensors"))
    return {"tensors": count, "bytes": sum(f.stat().st_size for f in files)}


def save(
    model: Transformer,
    folder: str | Path,
    *,
    read: Callable[[str], jax.Array] | None = None,
    made_from: str = "",
    tokenizer_dir: str | Path | None = None,
    generation_config: JsonObject | None = None,
    card: str = "",
    beside: Mapping[str, JsonObject] = _NOTHING,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    check: Callable[[Path], JsonObject] = lambda folder: {},
) -> dict[str, Any]:
    """Writes the model as an HF folder and returns {"tensors", "bytes"} and what `check` does.

    The model is arrays, or shapes whose parameters `read` brings by name, one after the other. All
    processes must call it; the first writes, tensor by tensor. dtype: of the files; None: as the
    parameters are stored. `generation_config`: its token ids (bos, eos, pad) also go into
    `config.json`; None takes the file of `tokenizer_dir`, if any. card: the text of README.md.
    beside: further files of JSON, by name. The folder appears whole or not at all; an earlier HF
    folder of that name is replaced.
    check: of the first process, of the written folder before it has its name; what it raises leaves
    an earlier folder.
    made_from: names where the weights come from; after an interruption the next call with the same
    text keeps the shards that are whole, of the same sizes and dtype. Raises HfError when the disk
    is too small.
    """
    kept = np.dtype(dtype or model.compute.param_dtype)
    if kept.name not in DTYPES.values():
        raise HfError(f"dtype {dtype!r} is unknown; choices: {sorted(DTYPES.values())}")
    read = read or _leaves(model).get
    shards = hf_files.shards({k: t.hf for k, t in tensors(model).items()}, kept, max_shard_bytes)
    if jax.process_index():
        _write_weights(model, None, shards, read, kept)
        return {"tensors": len(tensors(model)), "bytes": sum(s.size for s in shards)}
    with hf_folder.replacing(Path(folder), made_from, [s.file for s in shards]) as partial:
        generation = hf_folder.copy_tokenizer(tokenizer_dir, partial)
        generation = generation if generation_config is None else generation_config
        ids = {k: v for k, v in generation.items() if k.endswith("_token_id")}
        config = to_hf_config(model.config, kept.name)
        files.write_json(partial / "config.json", config | ids, indent=2)
        files.write_json(partial / "generation_config.json", generation, indent=2)
        for name, content in beside.items():
            files.write_json(partial / name, content, indent=2)
        if card:
            files.write_text(partial / "README.md", card)
        _write_weights(model, partial, shards, read, kept)
        return verify(partial) | check(partial)


def _write_weights(
    model: Transformer,
    folder: Path | None,
    shards: list[hf_files.Shard],
    read: Callable[[str], jax.Array],
    dtype: np.dtype,
) -> None:
    """Brings every tensor to the host once and, where `folder` is given, writes those not there."""
    whole = [s.file for s in shards if folder and hf_files.is_whole(folder, s)]
    whole = json.loads(hosts.gather_texts(json.dumps(whole))[0])  # what the first process has
    missing = [shard for shard in shards if shard.file not in whole]
    if folder:
        hf_folder.check_space(folder, sum(shard.size for shard in missing))
    total, done = (sum(s.size for s in some) for some in (shards, missing))
    with Progress("export, MB", total // MB, (total - done) // MB) as progress:

        def counted(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            nonlocal done
            for array in arrays:
                yield array
                done -= array.nbytes
                progress.update((total - done) // MB)

        arrays = counted(_gathered(model, [n for s in missing for n in s.names], read, dtype))
        for shard in missing:
            own = itertools.islice(arrays, len(shard.names))
            if folder:
                hf_files.write(folder, shard, own)
            for _ in own:  # without a folder: take part in bringing them
                pass
    if folder and len(shards) > 1:
        files.write_json(folder / INDEX, hf_files.index_of(shards), indent=2)


def _gathered(
    model: Transformer, names: list[str], read: Callable[[str], jax.Array], dtype: np.dtype
) -> Iterator[np.ndarray]:
    """The HF tensors of these names on the host; each parameter is read when its first is due."""
    places = tensors(model)
    held, leaf = "", None
    for name in names:
        row, layer, _ = places[name]
        if row.ours != held:
            leaf = None  # let go before the next one is read
            held, leaf = row.ours, read(row.ours)
        array = sharding.to_host(_take(leaf, layer, dtype))
        if row.transposed:
            array, untransposed = np.empty(array.shape[::-1], dtype), array
            hf_files.copy_transposed(array, untransposed.T)
            del untransposed
        yield array


@functools.partial(jax.jit, static_argnames="dtype")
def _take(leaf: jax.Array, layer: int | None, dtype: np.dtype) -> jax.Array:
    one = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    return one.astype(dtype)


def _matched(folder: Path, model: Transformer) -> list[tuple[Tensor, Stored]]:
    """The place and the file of every tensor, once names, shapes and dtypes are checked."""
    expected, found = tensors(model), hf_files.stored(folder)
    found = {name: s for name, s in found.items() if not hf_names.is_derived(name)}
    if model.config.tie_embeddings and hf_names.HEAD in found:
        _tie(folder, found)
    if difference := hf_names.difference(expected, found):
        raise HfError(f"{folder}: {difference}")
    for name, tensor in expected.items():
        shape, dtype = found[name].shape, found[name].dtype
        if shape != tensor.hf:
            raise HfError(f"{folder}: {name} has shape {shape}, expected {tensor.hf}")
        if dtype not in DTYPES:
            raise HfError(f"{folder}: {name} is {dtype}, expected one of {[*DTYPES]}")
    return [(tensor, found[name]) for name, tensor in expected.items()]


def _tie(folder: Path, stored: dict[str, Stored]) -> None:
    """Takes the head of a tied model out of `stored`: it is the table, there once more or alone."""
    head = stored.pop(hf_names.HEAD)
    if not hf_files.is_equal(head, stored.setdefault(_TABLE_NAME, head)):
        raise HfError(
            f"{folder}: tie_word_embeddings is true, but {hf_names.HEAD} differs from {_TABLE_NAME}"
            "; to load both, set tie_word_embeddings to false in its config.json, and "
            "config.model.tie_embeddings, where a run names the model, to False"
        )


def _read(
    rows: Sequence[Stored],
    leaf: jax.ShapeDtypeStruct,
    transposed: bool,
    place: NamedSharding | None,
) -> jax.Array:
    """The tensor, or the tensors stacked when `leaf` has an axis more, laid out at `place`."""
    held: dict[str, np.ndarray] = {}  # replicas hold the same slice; it is read once

    def slice_of(index: hf_files.Index) -> np.ndarray:
        if str(index) in held:
            return held[str(index)]
        sizes = [len(range(*i.indices(size))) for i, size in zip(index, leaf.shape, strict=True)]
        out = held[str(index)] = np.empty(sizes, leaf.dtype)
        if leaf.ndim == len(rows[0].shape):
            hf_files.read(rows[0], index, transposed, out)
            return out
        for target, row in zip(out, rows[index[0]], strict=True):
            hf_files.read(row, index[1:], transposed, target)
        return out

    if place is None:
        return jax.device_put(slice_of(tuple(map(slice, leaf.shape))))
    return jax.make_array_from_callback(leaf.shape, place, slice_of, leaf.dtype)


def _stack(
    rows: Sequence[Stored],
    leaf: jax.ShapeDtypeStruct,
    transposed: bool,
    place: NamedSharding | None,
) -> jax.Array:
    """The tensors stacked as `_read` does, but one after the other through the host."""
    stack = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=place)()
    layer = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    within = place and NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    for i, row in enumerate(rows):
        array = _read([row], layer, transposed, within)
        stack = _put(place)(stack, array, np.int32(i))
        stack.block_until_ready()
    return stack


@functools.cache
def _put(place: NamedSharding | None) -> Callable[..., jax.Array]:
    """(stack, array, layer) -> the stack with that layer set, in the memory that it had."""
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.jit(put, donate_argnums=0, out_shardings=place)


def _name(path: KeyPath) -> str:
    return sharding.parameter_name(path)


def _leaves(model: PyTree) -> dict[str, PyTree]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]}
