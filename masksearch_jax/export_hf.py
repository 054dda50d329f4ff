"""Writes a checkpoint as a Hugging Face folder, and refuses to finish unless it reloads equal.

    python -m masksearch_jax.export_hf --config=configs/export_hf.py:qwen2.5-1.5b \\
        --config.checkpoint=runs/ramp_dapo/checkpoints --config.folder=exported
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax import checkpoint, cli, sharding
from masksearch_jax.config import ComputeConfig, ModelConfig
from masksearch_jax.data.vocab import Vocab
from masksearch_jax.models import hf, reload_check
from masksearch_jax.models.transformer import Transformer

RELOADS = ("auto", "transformers", "table")
_PROMPTS, _PROMPT_LEN, _GREEDY = 2, 16, 16
# Of the largest logit: two float32 programs that sum in different orders.
_TOLERANCE = 1e-4


class ExportError(Exception):
    """A folder that does not hold the model it was written from."""


@dataclasses.dataclass(frozen=True)
class ExportRun:
    """`export_hf`: a checkpoint to a folder that transformers loads."""

    checkpoint: str  # folder of checkpoints
    step: int  # -1: the latest
    folder: str  # to write; an earlier export of that name is replaced
    tokenizer: str  # folder whose tokenizer files are copied
    dtype: str  # of the files: bfloat16 | float16 | float32
    max_shard_gigabytes: float
    reload: str  # auto | transformers | table
    model: ModelConfig


def run(cfg: ExportRun) -> dict[str, Any]:
    """Exports `cfg.checkpoint` and prints and returns the report of `export`."""
    compute = ComputeConfig("float32", "float32", "xla", "none", 1024)
    shapes = hf.abstract(cfg.model, compute)
    step = None if cfg.step < 0 else cfg.step
    model = checkpoint.load_params(cfg.checkpoint, shapes, cfg.model, step)
    report = export(
        model,
        cfg.folder,
        cfg.tokenizer,
        dtype=cfg.dtype,
        max_shard_bytes=cfg.max_shard_gigabytes * 1e9,
        reload=cfg.reload,
    )
    print(json.dumps({"folder": cfg.folder} | report))
    return report


def export(
    model: Transformer,
    folder: str | Path,
    tokenizer_dir: str | Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    reload: str = "auto",
) -> dict[str, Any]:
    """Writes the model with its tokenizer and checks the folder; dtype None: as it is stored.

    reload: "transformers" reloads in a child process and compares logits and greedy tokens, "table"
    checks names, shapes and dtypes only, "auto" is the former where torch is installed. Returns
    {"tensors", "bytes", "reload"} and, reloaded, {"max_logit_difference", "greedy_tokens_equal"}.
    Raises ExportError when the folder computes something else.
    """
    if reload not in RELOADS:
        raise ExportError(f"reload {reload!r} is unknown; choices: {', '.join(RELOADS)}")
    report: dict[str, Any] = hf.save(
        model,
        folder,
        tokenizer_dir=tokenizer_dir,
        generation_config=_generation_config(tokenizer_dir),
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )
    if reload == "table" or (reload == "auto" and not reload_check.available()):
        return report | {"reload": "table"}
    return report | {"reload": "transformers"} | _compare(model, folder, dtype)


def _compare(model: Transformer, folder: str | Path, dtype: str | None) -> dict[str, Any]:
    """Our reading of the folder against the model's weights, then against transformers' reading."""
    ours = hf.load(folder, ComputeConfig("float32", "float32", "xla", "none", 1024))
    kept = np.dtype(dtype or model.compute.param_dtype)
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(ours), strict=True)
    if not all(_same(written, read, kept) for written, read in pairs):
        raise ExportError(f"{folder} does not hold the weights that were written to it")
    shape = (_PROMPTS, min(_PROMPT_LEN, model.config.max_position))
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, shape, np.int32)
    logits, greedy = reload_check.reference(folder, prompts, _GREEDY)
    found, tokens = _predict(ours, prompts, _GREEDY)
    difference = float(np.abs(found - logits).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(logits).max())):
        raise ExportError(f"transformers' logits of {folder} differ from ours by {difference:.2e}")
    return {
        "max_logit_difference": difference,
        "greedy_tokens_equal": bool(np.array_equal(tokens, greedy)),
    }


def _same(written: jax.Array, read: jax.Array, kept: np.dtype) -> bool:
    rounded = sharding.to_host(written).astype(kept).astype(np.float32)
    return np.array_equal(rounded, sharding.to_host(read))


def _predict(model: Transformer, prompts: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits [B, T, V] of prompts [B, T], and `tokens` greedy ids [B, N] after them."""
    batch, width = prompts.shape
    cache = model.init_cache(1, batch, width + tokens, "float32")
    zeros = jnp.zeros(batch, jnp.int32)
    hidden, cache = jax.jit(Transformer.extend)(model, cache, prompts, zeros, zeros + width)
    logits = model.logits(hidden)
    step = jax.jit(Transformer.step)
    last, ids = logits[:, -1], []
    for i in range(tokens):
        ids.append(jnp.argmax(last, axis=-1).astype(jnp.int32))
        last, cache = step(model, cache, ids[-1], zeros + width + i)
    return np.asarray(logits), np.stack([np.asarray(i) for i in ids], axis=1)


def _generation_config(tokenizer_dir: str | Path) -> dict[str, Any] | None:
    """Where generation ends, of the tokenizer; None when its folder says so itself."""
    if (Path(tokenizer_dir) / "generation_config.json").is_file():
        return None
    vocab = Vocab.load(str(tokenizer_dir))
    return {"eos_token_id": list(vocab.eos_ids), "pad_token_id": vocab.pad_id}


if __name__ == "__main__":
    cli.run(lambda cfg: run(cfg) and None, ExportRun)
