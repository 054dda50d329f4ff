"""Writes a checkpoint as a Hugging Face folder, and refuses to finish unless it reloads equal.

    python -m masksearch_jax.export_hf --config=configs/export_hf.py:qwen2.5-1.5b \\
        --config.checkpoint=runs/ramp_dapo/checkpoints --config.folder=exported
    python -m masksearch_jax.export_hf --config=configs/export_hf.py:hf \\
        --config.checkpoint=MODEL.gguf --config.folder=exported
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.core.config import ComputeConfig, MeshConfig, ModelConfig
from masksearch_jax.core.errors import check_given
from masksearch_jax.core.files import is_bucket
from masksearch_jax.core.schema import key, required, section
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import JsonObject
from masksearch_jax.models import hf, reload_check, trainings
from masksearch_jax.models.hf_card import Card, model_card
from masksearch_jax.models.hf_config import read_json
from masksearch_jax.models.load import check_vocabulary, has_model, read_model, weights
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.processes import join_processes
from masksearch_jax.runtime import agent_settings, cli, output_folder, run_record, storage
from masksearch_jax.training import checkpoint_files

RELOADS = ("auto", "transformers", "table")
_AUTO_PARAMETERS = 2e9  # reload "auto" has more than these checked against the table alone
_PROMPTS, _PROMPT_LEN, _GREEDY = 2, 16, 16
# Of the largest logit: two float32 programs that sum in different orders.
_TOLERANCE = 1e-4
_COMPUTE = ComputeConfig("float32", "float32", "xla", "none", 1024)


class ExportError(Exception):
    """A folder that does not hold the model it was written from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRun:
    """`export_hf`: a checkpoint to a folder that transformers loads."""

    checkpoint: str = required("Folder of checkpoints or in HF format, or a GGUF file.")
    folder: str = required(
        "Folder to write, apart from what is read; an earlier export of that name is replaced."
    )
    tokenizer: str = key(
        "",
        (
            "Folder whose tokenizer files are copied, or a GGUF file; empty: that of checkpoint; "
            "needed of checkpoints."
        ),
    )
    step: int = key(-1, "Which checkpoint; -1: the latest.")
    base: str = key(
        "", "Where checkpoint holds adapters: their base model; empty: where they say it is."
    )
    dtype: Literal["stored", "bfloat16", "float16", "float32"] = key(
        "bfloat16",
        "Of the files; stored: as the checkpoint has them, or the base of its adapters.",
    )
    max_shard_gigabytes: float = key(5.0, "Most of a file, in 10^9 bytes.")
    reload: Literal["auto", "transformers", "table"] = key(
        "auto",
        (
            "How the folder is checked: transformers: loaded by it, logits and greedy tokens "
            "compared; table: names, shapes and dtypes; auto: the former where torch is installed "
            "and the model has at most 2e9 parameters."
        ),
    )
    card: Card = section(Card)
    mesh: MeshConfig = section(MeshConfig, "Devices that a parameter lies on while it is written.")
    model: ModelConfig = section(ModelConfig)


def check_config(cfg: ExportRun) -> None:
    """Raises ConfigError for keys that are empty, and for a folder that is not to be replaced.

    ExportError for one that cannot be written. A model in HF format or in a GGUF file on this
    machine has its tokenizer with it.
    """
    check_given(cfg, checkpoint="the folder of checkpoints", folder="the folder to write")
    if is_bucket(cfg.checkpoint) or not has_model(cfg.checkpoint):
        check_given(cfg, tokenizer="the folder that holds tokenizer.json")
    check_local(cfg.folder)
    named = ("checkpoint", "tokenizer", "base")
    output_folder.check_apart(cfg.folder, {f"config.{k}": getattr(cfg, k) for k in named})
    output_folder.check_replaceable(cfg.folder, ("checkpoint", "dtype", "card"))


def run(cfg: ExportRun) -> dict[str, Any]:
    """Exports `cfg.checkpoint` and prints and returns the report of `export`.

    One parameter of the checkpoint is in memory at a time, with what adapters add to it. The same
    command after an interruption keeps the shards that are whole.
    """
    join_processes()
    check_config(cfg)
    if not cfg.tokenizer:
        cfg = dataclasses.replace(cfg, tokenizer=cfg.checkpoint)
    check_vocabulary(cfg.model, Vocab.load(cfg.tokenizer), cfg.tokenizer, cfg.checkpoint)
    mesh, step = sharding.make_mesh(cfg.mesh), None if cfg.step < 0 else cfg.step
    output_folder.check_apart(cfg.folder, {"the base of the adapters": _base(cfg, step)})
    with weights(cfg.checkpoint, cfg.model, _COMPUTE, mesh, cfg.base, step) as params:
        stands = not storage.is_unmade(cfg.folder)
        run_record.begin(
            cfg.folder,
            cfg,
            replaces="the export of other settings is" if stands else "",
            stands=stands,
            harmless=("folder", "reload"),
        )
        report = export(
            hf.abstract(cfg.model, _COMPUTE),
            cfg.folder,
            cfg.tokenizer,
            read=params.read,
            made_from=params.made_from,
            dtype=params.dtype if cfg.dtype == "stored" else cfg.dtype,
            max_shard_bytes=cfg.max_shard_gigabytes * 1e9,
            reload=cfg.reload,
            card=_card(cfg),
            step=params.step,
            agent=agent_settings.read(cfg.checkpoint),
            sign=lambda written: run_record.write(written, cfg),
        )
    if jax.process_index() == 0:
        print(json.dumps({"folder": cfg.folder, "step": params.step} | report))
    return report


def _base(cfg: ExportRun, step: int | None) -> str:
    """Where the checkpoint's adapters say that their base model is; "" for no adapters."""
    if has_model(cfg.checkpoint):
        return ""
    adapters = checkpoint_files.read_adapters(cfg.checkpoint, step) or {}
    return str(adapters.get("base", ""))


def _card(cfg: ExportRun) -> Card:
    """With the trainings before the checkpoint, where the config does not say them."""
    training = cfg.card.training or trainings.told(cfg.checkpoint)
    return dataclasses.replace(cfg.card, training=training)


def check_local(folder: str | Path) -> None:
    """Raises ExportError for a folder in a bucket."""
    if "://" in str(folder):
        raise ExportError(f"{folder} is no local folder: export to one, then gcloud storage cp -r")


def export(
    model: Transformer,
    folder: str | Path,
    tokenizer_dir: str | Path,
    *,
    read: Callable[[str], jax.Array] | None = None,
    made_from: str = "",
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    reload: str = "auto",
    card: Card | None = None,
    step: int | None = None,
    agent: JsonObject | None = None,
    sign: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Writes the model with tokenizer and README.md, and checks the folder.

    model, read, made_from, dtype, max_shard_bytes as in `hf.save`; card, step as in `model_card`.
    agent: how it is asked, as `agent_settings` has it; written beside it.
    sign: says what made the folder in it, before it has its name; of the first process.
    reload: "transformers" reloads in a child process and compares weights, logits and greedy tokens
    (the model in float32 must fit into memory twice), "table" checks names, shapes and dtypes only,
    "auto" is the former in one process with torch installed and at most 2e9 parameters. Returns
    {"tensors", "bytes", "reload"} and, reloaded, {"max_logit_difference", "greedy_tokens_equal"}.
    Raises ExportError when the folder computes something else; an earlier one is left then.
    """
    if reload not in RELOADS:
        raise ExportError(f"reload {reload!r} is unknown; choices: {', '.join(RELOADS)}")
    check_local(folder)
    kept = dtype or model.compute.param_dtype
    asked = dict(agent or {})
    if "compute" in asked:
        asked["compute"] = asked["compute"] | {"param_dtype": kept}

    def compare_and_sign(written: Path) -> dict[str, Any]:
        report = _compare_reloaded(model, read, written, kept, reload)
        sign(written)
        return report

    return hf.save(
        model,
        folder,
        read=read,
        made_from=made_from,
        tokenizer_dir=tokenizer_dir,
        generation_config=_generation_config(tokenizer_dir),
        card=model_card(card or Card(), model.config, Path(folder).name, step, _size(model), kept),
        beside={agent_settings.FILE: asked} if asked else {},
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        check=compare_and_sign,
    )


def _size(model: Transformer) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def _compare_reloaded(
    model: Transformer,
    read: Callable[[str], jax.Array] | None,
    folder: str | Path,
    kept: str,
    reload: str,
) -> dict[str, Any]:
    """What `export` reports of a check of the folder, whose header checks `hf.save` made."""
    possible = jax.process_count() == 1 and reload_check.has_transformers()
    if reload == "transformers" and not possible:
        raise ExportError("reload 'transformers' takes one process, with torch and transformers")
    if reload == "table" or not possible or (reload == "auto" and _size(model) > _AUTO_PARAMETERS):
        return {"reload": "table"}
    ours = hf.load(folder, _COMPUTE)
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    for (path, leaf), found in zip(leaves, jax.tree.leaves(ours), strict=True):
        name = sharding.parameter_name(path)
        if not _is_same(read(name) if read else leaf, found, np.dtype(kept)):
            for file in Path(folder).glob("*.safetensors"):  # the next export writes them anew
                file.unlink()
            raise ExportError(f"{folder} does not hold the weights that were written to it: {name}")
    return {"reload": "transformers"} | _compare(ours, folder)


def _compare(ours: Transformer, folder: str | Path) -> dict[str, Any]:
    """Our computation with the folder's weights against transformers'."""
    shape = (_PROMPTS, min(_PROMPT_LEN, ours.config.max_position))
    prompts = np.random.default_rng(0).integers(0, ours.config.vocab_size, shape, np.int32)
    logits, greedy = reload_check.reference(folder, prompts, _GREEDY)
    found, tokens = _predict(ours, prompts, _GREEDY)
    difference = float(np.abs(found - logits).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(logits).max())):
        raise ExportError(f"transformers' logits of {folder} differ from ours by {difference:.2e}")
    return {
        "max_logit_difference": difference,
        "greedy_tokens_equal": bool(np.array_equal(tokens, greedy)),
    }


def _is_same(written: jax.Array, read: jax.Array, kept: np.dtype) -> bool:
    rounded = sharding.to_host(written).astype(kept).astype(np.float32)
    return np.array_equal(rounded, sharding.to_host(read))


def _predict(model: Transformer, prompts: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits [B, T, V] of prompts [B, T], and `tokens` greedy ids [B, N] after them."""
    batch, width = prompts.shape
    cache = model.init_cache(1, batch, width + tokens, "float32")
    pages = jnp.arange(batch, dtype=jnp.int32)[None, :, None]  # one to each row
    zeros = jnp.zeros(batch, jnp.int32)
    extend = jax.jit(Transformer.extend)
    hidden, cache = extend(model, cache, prompts, zeros, zeros + width, pages)
    logits = model.logits(hidden)
    last, ids = logits[:, -1], []
    for i in range(tokens):
        ids.append(jnp.argmax(last, axis=-1).astype(jnp.int32))
        hidden, cache = extend(model, cache, ids[-1][:, None], zeros + width + i, zeros + 1, pages)
        last = model.logits(hidden[:, 0])
    return np.asarray(logits), np.stack([np.asarray(i) for i in ids], axis=1)


def _generation_config(tokenizer_dir: str | Path) -> dict[str, Any]:
    """What the tokenizer's folder says of generation, which ends at each id that ends it here."""
    vocab, path = Vocab.load(tokenizer_dir), Path(tokenizer_dir) / "generation_config.json"
    ends = {"eos_token_id": list(vocab.eos_ids)}
    given = read_json(path) if path.is_file() else {}
    return ends | {"pad_token_id": vocab.pad_id} | given | ends


if __name__ == "__main__":
    cli.run(
        lambda cfg: run(cfg) and None,
        ExportRun,
        resumes=True,
        read_model=read_model,
    )
