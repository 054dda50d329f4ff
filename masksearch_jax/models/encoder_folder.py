"""A folder of a text encoder in HF format, with what sentence-transformers wrote beside it.

`modules.json` names the steps (transformer, pooling, normalising), `1_Pooling/config.json` the
pooling, `sentence_bert_config.json` or else `tokenizer_config.json` how many tokens are read, and
the prompts of `config_sentence_transformers.json` what stands before a query and before a passage.
A folder without these files is pooled by mean and normalised.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from masksearch_jax.models import hf_files
from masksearch_jax.models.encoder import ACTIVATIONS, Encoder, EncoderShape
from masksearch_jax.models.hf_config import HfError, read_json
from masksearch_jax.models.text_program import Place, TextProgram

Module = TypeVar("Module", bound=nnx.Module)

_CONFIG, _TOKENIZER, _OWN = "config.json", "tokenizer.json", "sentence_bert_config.json"
_MODULES = ("Transformer", "Pooling", "Normalize")
# Where the number of tokens stands: sentence-transformers wrote the first, and writes the second.
_BOUNDS = ((_OWN, "max_seq_length"), ("tokenizer_config.json", "model_max_length"))
_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_TABLES = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
}
_EMBEDDING_NORM = "embeddings.LayerNorm"
_UNUSED = ("pooler.", "embeddings.position_ids", "cls.")  # a head's, or follow from the config


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a text is read: what stands before it, and how many tokens count."""

    query_prefix: str
    passage_prefix: str
    max_tokens: int


class TextEncoder:
    """Texts to vectors on this process's devices, each with a part of a batch; safe for threads."""

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str = "float32",
        reading: Mapping[str, str | int] | None = None,
        place: Place = "device",
    ):
        """reading: what is read otherwise than the folder says, by the names of `Reading`.

        place: the devices, or the host's CPU.
        """
        folder = Path(folder)
        self.folder, self.dtype = str(folder), dtype
        shape = read_shape(folder)
        self.reading = dataclasses.replace(read_reading(folder, shape), **(reading or {}))
        bound = self.reading.max_tokens
        if not 2 < bound <= shape.max_position:
            raise HfError(f"{bound} tokens are to be read, must be 3 to {shape.max_position}")
        self.dim = shape.hidden_size
        self.fingerprint = fingerprint(folder, self.reading)
        self._tokenizer = read_tokenizer(folder, bound, shape.vocab_size)
        model = load(folder, shape, dtype)
        self.program = TextProgram(_encode, model, tables=1, most=bound, place=place)

    @property
    def told(self) -> dict[str, str | int]:
        """`reading`, as JSON."""
        return dataclasses.asdict(self.reading)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [B, M], by the programs of searches."""
        return self._encoded([self.reading.query_prefix + text for text in texts], is_search=True)

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [B, M]."""
        return self.encode([self.reading.passage_prefix + text for text in texts])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [B, M] of texts as they are."""
        return self._encoded(texts, is_search=False)

    def _encoded(self, texts: Sequence[str], *, is_search: bool) -> np.ndarray:
        if not texts:
            return np.empty((0, self.dim), np.float32)
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        ids = [found.ids for found in self._tokenizer.encode_batch(clean)]
        return self.program(ids, is_search=is_search)


def _encode(model: Encoder, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    return model(ids, lengths)


# ---- what a folder says


def read_shape(folder: Path) -> EncoderShape:
    """Raises HfError for another architecture or another pooling than this encoder has."""
    raw = read_json(folder / _CONFIG)
    kind = raw.get("model_type")
    if kind != "bert":
        raise HfError(
            f"{folder} has model_type {kind!r}, must be 'bert': MiniLM, BGE and the English E5 are"
        )
    if (position := raw.get("position_embedding_type", "absolute")) != "absolute":
        raise HfError(f"{folder} has positions {position!r}, must be 'absolute'")
    if (activation := raw.get("hidden_act", "gelu")) not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise HfError(f"{folder} has hidden_act {activation!r}, must be one of {known}")
    modules, whole = _modules(folder), functools.partial(_whole, folder / _CONFIG, raw)
    eps = raw.get("layer_norm_eps")
    if not isinstance(eps, float):
        raise HfError(f"{folder / _CONFIG}: layer_norm_eps is {eps!r}, must be a float, as 1e-12")
    shape = EncoderShape(
        vocab_size=whole("vocab_size"),
        hidden_size=whole("hidden_size"),
        intermediate_size=whole("intermediate_size"),
        num_layers=whole("num_hidden_layers"),
        num_heads=whole("num_attention_heads"),
        max_position=whole("max_position_embeddings"),
        token_types=whole("type_vocab_size"),
        norm_eps=eps,
        activation=activation,
        pooling=_pooling(folder, modules),
        normalised="Normalize" in modules if modules else True,
    )
    if shape.hidden_size % shape.num_heads:
        raise HfError(f"{folder}: {shape.num_heads} heads do not divide {shape.hidden_size}")
    return shape


def _whole(path: Path, raw: Mapping[str, Any], name: str) -> int:
    """A number of a file. Raises HfError for anything else."""
    value = raw.get(name)
    if type(value) is not int or value < 1:
        raise HfError(f"{path}: {name} is {value!r}, must be a whole number")
    return value


def _modules(folder: Path) -> dict[str, str]:
    """Step → its folder; empty where sentence-transformers wrote nothing."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    try:
        found = {m["type"].rpartition(".")[2]: m["path"] for m in json.loads(path.read_bytes())}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise HfError(f"{path} is no list of modules: {error!r}") from error
    if unknown := sorted(set(found) - set(_MODULES)):
        raise HfError(f"{path} names {unknown}, must be of {', '.join(_MODULES)}")
    return found


def _pooling(folder: Path, modules: dict[str, str]) -> Any:
    if "Pooling" not in modules:
        return "mean"
    path = folder / modules["Pooling"] / _CONFIG
    raw = read_json(path)
    asked = {k.removeprefix("pooling_mode_") for k, v in raw.items() if v is True and "mode" in k}
    if isinstance(raw.get("pooling_mode"), str):
        asked = {raw["pooling_mode"]}
    names = {"mean_tokens": "mean", "cls_token": "cls"}
    asked = {names.get(name, name) for name in asked}
    if asked not in ({"mean"}, {"cls"}):
        raise HfError(f"{path} pools by {sorted(asked)}, must be mean or cls alone")
    if (included := raw.get("include_prompt", True)) is not True:
        raise HfError(
            f"{path}: include_prompt is {included!r}, must be true: prefixes are pooled too"
        )
    return asked.pop()


def read_reading(folder: Path, shape: EncoderShape) -> Reading:
    """Prefixes and the bound on tokens, as the folder's files say."""
    asked, bound = folder / "config_sentence_transformers.json", shape.max_position
    prompts = (read_json(asked) if asked.is_file() else {}).get("prompts") or {}
    if not isinstance(prompts, dict):
        raise HfError(f"{asked}: prompts is {prompts!r}, must be an object of texts")
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            raise HfError(f"{asked}: prompts.{name} is {prompt!r}, must be a text")
    for path, name in _BOUNDS:
        if (folder / path).is_file() and (said := read_json(folder / path)).get(name) is not None:
            bound = min(bound, _whole(folder / path, said, name))
            break
    passage = prompts.get("passage", prompts.get("document", ""))
    return Reading(prompts.get("query", ""), passage, bound)


def read_tokenizer(folder: Path, max_tokens: int, vocab_size: int) -> tokenizers.Tokenizer:
    """Raises HfError for none, for one of more words than the model has, or that keeps capitals.

    It may keep them where the folder does not say `do_lower_case`.
    """
    path = folder / _TOKENIZER
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # of no class of its own
        raise HfError(f"cannot read the tokenizer {path}: {error}") from error
    if (words := found.get_vocab_size()) > vocab_size:
        raise HfError(f"{folder} has a tokenizer of {words} words, and its model has {vocab_size}")
    own = folder / _OWN
    lowers = (read_json(own) if own.is_file() else {}).get("do_lower_case")
    if lowers and (found.normalizer is None or found.normalizer.normalize_str("A") != "a"):
        raise HfError(f"{own}: do_lower_case is {lowers!r}, and its tokenizer keeps capitals")
    found.no_padding()
    found.enable_truncation(max_tokens)
    return found


def fingerprint(folder: Path, reading: Reading) -> str:
    """Of all that decides a vector: weights, architecture, pooling, tokenizer, prefixes."""
    digest = hashlib.sha256(repr(reading).encode())
    digest.update(repr(read_shape(folder)).encode())
    weights = sorted({stored.path for stored in hf_files.stored(folder).values()})
    for path in (folder / _TOKENIZER, *weights):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


# ---- weights


class Weights:
    """The tensors of a folder, in float32; each is taken once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._left = {_plain(name): stored for name, stored in hf_files.stored(folder).items()}

    def take(self, name: str, transposed: bool = False) -> np.ndarray:
        """Raises HfError where there is none of this name."""
        if name not in self._left:
            raise HfError(f"{self.folder} lacks the tensor {name}")
        stored = self._left.pop(name)
        out = np.empty(stored.shape[::-1] if transposed else stored.shape, np.float32)
        hf_files.read(stored, tuple(slice(0, n) for n in out.shape), transposed, out)
        return out

    def take_encoder(self, shape: EncoderShape) -> dict[str, np.ndarray]:
        """The parameters of an `Encoder` by their names."""
        parameters = {ours: self.take(theirs) for ours, theirs in _TABLES.items()}
        parameters["norm.scale"] = self.take(f"{_EMBEDDING_NORM}.weight")
        parameters["norm.shift"] = self.take(f"{_EMBEDDING_NORM}.bias")
        for ours, theirs in _LAYER_NAMES.items():
            is_norm = ours.endswith("norm")
            scale, shift = ("scale", "shift") if is_norm else ("weight", "bias")
            names = [f"encoder.layer.{i}.{theirs}" for i in range(shape.num_layers)]
            weights = [self.take(f"{name}.weight", not is_norm) for name in names]
            parameters[f"layers.{ours}.{scale}"] = np.stack(weights)
            parameters[f"layers.{ours}.{shift}"] = np.stack([self.take(f"{n}.bias") for n in names])
        return parameters

    def check_all_taken(self, unused: tuple[str, ...]) -> None:
        """Raises HfError for tensors that were not taken, but those whose names begin so."""
        if extra := sorted(name for name in self._left if not name.startswith(unused)):
            raise HfError(f"{self.folder}: {len(extra)} tensors have no place: {extra[:5]}")


def load(folder: Path, shape: EncoderShape, dtype: str) -> Encoder:
    """The folder's weights in float32; each tensor has one place. Raises HfError."""
    weights = Weights(folder)
    parameters = weights.take_encoder(shape)
    weights.check_all_taken(_UNUSED)
    model = nnx.eval_shape(lambda: Encoder(shape, nnx.Rngs(0), dtype))
    return filled(model, parameters, folder)


def _plain(name: str) -> str:
    """A tensor's name without the prefix that a model with a head has, in today's spelling."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def filled(model: Module, parameters: Mapping[str, np.ndarray], folder: Path) -> Module:
    """The model with these parameters, by their dotted names. Raises HfError for another shape."""
    graph, state = nnx.split(model)

    def value(path: tuple[Any, ...], leaf: Any) -> Any:
        name = ".".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        name = name.removesuffix(".value")
        array = parameters[name]
        if array.shape != leaf.shape:
            raise HfError(f"{folder}: {name} has shape {array.shape}, must be {leaf.shape}")
        return jnp.asarray(array)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(value, state))
