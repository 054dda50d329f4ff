"""A folder of a cross-encoder in HF format: BERT with a sequence-classification head of a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from masksearch_jax.models.encoder import CrossEncoder, EncoderShape
from masksearch_jax.models.encoder_folder import (
    Weights,
    filled,
    fingerprint,
    read_reading,
    read_shape,
    read_tokenizer,
)
from masksearch_jax.models.hf_config import HfError, read_json
from masksearch_jax.models.text_program import Place, TextProgram

_ARCHITECTURE = "BertForSequenceClassification"
_UNUSED = ("embeddings.position_ids",)


class PairScorer:
    """Scores pairs of texts on this process's devices, each with a part of a batch.

    Safe for threads. Raises HfError for a folder of another kind.
    """

    def __init__(self, folder: str | Path, *, dtype: str = "float32", place: Place = "device"):
        """place: the devices, or the host's CPU."""
        folder = Path(folder)
        _check_architecture(folder)
        shape = read_shape(folder)
        reading = read_reading(folder, shape)
        self.folder, most = str(folder), reading.max_tokens
        self._tokenizer = read_tokenizer(folder, most, shape.vocab_size)
        self.fingerprint = fingerprint(folder, reading)
        model = load(folder, shape, dtype)
        self.program = TextProgram(_score, model, tables=2, most=most, place=place)

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """float32 [B]: how relevant each pair's second text is for its first, as logits.

        A pair that is too long loses tokens of its longer text.
        """
        if not pairs:
            return np.empty(0, np.float32)
        clean = [tuple(t.encode("utf-8", "replace").decode() for t in pair) for pair in pairs]
        read = self._tokenizer.encode_batch(clean)
        ids, types = [found.ids for found in read], [found.type_ids for found in read]
        return self.program(ids, types, is_search=True)


def _score(model: CrossEncoder, ids: jax.Array, types: jax.Array, lengths: jax.Array) -> jax.Array:
    return model(ids, types, lengths)


def _check_architecture(folder: Path) -> None:
    named = read_json(folder / "config.json").get("architectures") or []
    if named != [_ARCHITECTURE]:
        raise HfError(f"{folder} is of architecture {named}, must be {_ARCHITECTURE}")


def load(folder: Path, shape: EncoderShape, dtype: str) -> CrossEncoder:
    """The folder's weights in float32; each tensor has one place. Raises HfError."""
    weights = Weights(folder)
    parameters = {f"encoder.{k}": array for k, array in weights.take_encoder(shape).items()}
    for ours, theirs in (("pool", "pooler.dense"), ("score", "classifier")):
        parameters[f"{ours}_weight"] = weights.take(f"{theirs}.weight", transposed=True)
        parameters[f"{ours}_bias"] = weights.take(f"{theirs}.bias")
    weights.check_all_taken(_UNUSED)
    if (labels := len(parameters["score_bias"])) != 1:
        raise HfError(f"{folder} has {labels} labels, must have one: how relevant a passage is")
    model = nnx.eval_shape(lambda: CrossEncoder(shape, nnx.Rngs(0), dtype))
    return filled(model, parameters, folder)
