"""Weights in Hugging Face format: one table of names, used to load, to save and to verify.

A folder holds safetensors (one file, or shards and an index), `config.json`,
`generation_config.json` and tokenizer files. Every tensor must match exactly one row of the table,
with the right shape.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from masksearch_jax import sharding
from masksearch_jax.config import ComputeConfig, ModelConfig
from masksearch_jax.models.hf_config import HfError, read_config, read_json, to_hf_config
from masksearch_jax.models.transformer import Transformer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Safetensors' names of the dtypes that we read.
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


class Row(NamedTuple):
    """HF name of a parameter, our path, and whether it is a matrix of a layer.

    Of those HF stores [outputs, inputs] and we the transpose; vectors and tables are alike.
    """

    hf: str
    ours: str
    transposed: bool = False


TABLE = (
    Row("model.embed_tokens.weight", "embedding"),
    Row("model.norm.weight", "norm"),
    Row("lm_head.weight", "head"),
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

    Host memory: one stacked parameter at a time. Raises HfError naming tensor, expected and found.
    """
    folder = Path(folder)
    model = abstract(read_config(folder), compute)
    expected = tensors(model)
    with _open(folder, expected, model.config) as read:

        def fill(path: tuple, leaf: jax.ShapeDtypeStruct, at: Any = None) -> jax.Array:
            name = _name(path)
            stacked = np.empty(leaf.shape, leaf.dtype)
            for hf_name, tensor in expected.items():
                if tensor.row.ours == name:
                    place = stacked if tensor.layer is None else stacked[tensor.layer]
                    array = read(hf_name)
                    place[...] = array.T if tensor.row.transposed else array
            return jax.device_put(stacked, at)

        if mesh is None:
            return jax.tree_util.tree_map_with_path(fill, model)
        placed = sharding.parameter_shardings(mesh, model)
        return jax.tree_util.tree_map_with_path(fill, model, placed)


def verify(folder: str | Path) -> dict[str, int]:
    """Counts {"tensors", "bytes"} of a folder whose files match the table; HfError otherwise.

    Reads the headers alone: names, shapes, dtypes, index and file sizes.
    """
    folder = Path(folder)
    config = read_config(folder)
    compute = ComputeConfig("float32", "float32", "xla", "none", 1)
    expected = tensors(abstract(config, compute))
    with _open(folder, expected, config):
        pass
    files = sorted(folder.glob("*.safetensors"))
    return {"tensors": len(expected), "bytes": sum(f.stat().st_size for f in files)}


def save(
    model: Transformer,
    folder: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
    generation_config: dict[str, Any] | None = None,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
) -> dict[str, int]:
    """Writes the model as an HF folder and returns {"tensors", "bytes"}.

    dtype: of the files; None: as the parameters are stored. `generation_config`: its token ids
    (bos, eos, pad) also go into `config.json`; None takes the file of `tokenizer_dir`, if any. The
    folder appears whole or not at all; an earlier HF folder of that name is replaced.
    """
    folder = Path(folder)
    dtype = dtype or model.compute.param_dtype
    if dtype not in DTYPES.values():
        raise HfError(f"dtype {dtype!r} is unknown; choices: {sorted(DTYPES.values())}")
    with _replacing(folder) as partial:
        generation = _copy_tokenizer(tokenizer_dir, partial)
        generation = generation if generation_config is None else generation_config
        ids = {k: v for k, v in generation.items() if k.endswith("_token_id")}
        _write_json(partial / "config.json", to_hf_config(model.config, dtype) | ids)
        _write_json(partial / "generation_config.json", generation)
        _write_weights(model, partial, np.dtype(dtype), max_shard_bytes)
        return verify(partial)


def _write_weights(model: Transformer, folder: Path, dtype: np.dtype, max_bytes: float) -> None:
    """Safetensors in shards of at most `max_bytes` (one tensor may exceed it), and their index."""
    places = tensors(model)
    sizes = {name: math.prod(t.hf) * dtype.itemsize for name, t in places.items()}
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = [SINGLE] if count == 1 else names
    leaves = _leaves(model)
    for file, shard in zip(names, shards, strict=True):
        arrays = {
            name: _to_hf(leaves[places[name].row.ours], places[name], dtype) for name in shard
        }
        save_file(arrays, folder / file, metadata={"format": "pt"})
    if count > 1:
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        _write_json(folder / INDEX, index)


@contextlib.contextmanager
def _open(folder: Path, expected: dict[str, Tensor], config: ModelConfig) -> Iterator[Any]:
    """A function from tensor name to numpy array, once names, shapes and dtypes are checked."""
    where = _weight_map(folder)
    with contextlib.ExitStack() as stack:
        files = {name: _enter(stack, folder / name) for name in sorted(set(where.values()))}
        missing_in = [n for n, file in where.items() if n not in set(files[file].keys())]
        if missing_in:
            raise HfError(f"{folder}: the index names tensors its files lack: {missing_in[:5]}")

        def read(name: str) -> np.ndarray:
            return files[where[name]].get_tensor(name)

        extra = set(where) - set(expected)
        # Some published tied models carry the head as well; it is redundant when equal.
        if config.tie_embeddings and "lm_head.weight" in extra & set(where):
            if not np.array_equal(read("lm_head.weight"), read("model.embed_tokens.weight")):
                raise HfError(f"{folder}: tie_word_embeddings is true, but lm_head.weight differs")
            extra.remove("lm_head.weight")
        if missing := [name for name in expected if name not in where]:
            raise HfError(f"{folder}: {len(missing)} tensors are missing: {missing[:5]}")
        if extra:
            raise HfError(f"{folder}: {len(extra)} tensors have no place: {sorted(extra)[:5]}")
        for name, tensor in expected.items():
            _check_header(folder, name, files[where[name]].get_slice(name), tensor)
        yield read


def _enter(stack: contextlib.ExitStack, path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though {INDEX} names it")
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except SafetensorError as error:
        raise HfError(f"{path} is no whole safetensors file: {error}") from error


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to file name, from the index or the single file's header."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        if not isinstance(index.get("weight_map"), dict):
            raise HfError(f"{folder / INDEX} has no weight_map; it has {sorted(index)}")
        return index["weight_map"]
    if not (folder / SINGLE).is_file():
        raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}")
    with contextlib.ExitStack() as stack:
        return dict.fromkeys(_enter(stack, folder / SINGLE).keys(), SINGLE)


def _check_header(folder: Path, name: str, found: Any, tensor: Tensor) -> None:
    if tuple(found.get_shape()) != tensor.hf:
        raise HfError(
            f"{folder}: {name} has shape {tuple(found.get_shape())}, expected {tensor.hf}"
        )
    if found.get_dtype() not in DTYPES:
        raise HfError(f"{folder}: {name} is {found.get_dtype()}, expected one of {[*DTYPES]}")


def _to_hf(leaf: jax.Array, tensor: Tensor, dtype: np.dtype) -> np.ndarray:
    one = leaf if tensor.layer is None else leaf[tensor.layer]
    array = sharding.to_host(one).astype(dtype)
    return np.ascontiguousarray(array.T) if tensor.row.transposed else array


def _name(path: tuple) -> str:
    return sharding.parameter_name(path)


def _leaves(model: Transformer) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]}


def _copy_tokenizer(source: str | Path | None, folder: Path) -> dict[str, Any]:
    """Copies the tokenizer's files; returns the generation config that lies with them."""
    if source is None:
        return {}
    source = Path(source)
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not present:
        raise FileNotFoundError(f"no tokenizer in {source}; looked for {TOKENIZER_FILES}")
    for name in present:
        shutil.copyfile(source / name, folder / name)
    path = source / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A sibling folder to write in, renamed to `folder` on success and deleted on failure."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise HfError(f"{folder} exists and is no HF model folder; it is left as it is")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if folder.exists():
            earlier = folder.with_name(f".{folder.name}.earlier-{os.getpid()}")
            folder.rename(earlier)
            partial.rename(folder)
            shutil.rmtree(earlier)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
