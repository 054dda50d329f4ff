"""What export_hf replaces: an earlier export alone, and never what it reads."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from masksearch_jax import export_hf
from masksearch_jax.core.config import CheckpointConfig, LoraConfig, MeshConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.tokenizer import train_bpe
from masksearch_jax.models import hf, lora
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.runtime import run_record
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2, random_model
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.train_state import TrainState

MODEL = dataclasses.replace(TINY_QWEN2, vocab_size=300)
MESH = MeshConfig(1, -1, 1)
ADAPTERS = LoraConfig(rank=2, alpha=2.0, targets=("q",))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> export_hf.ExportRun:
    """An export of adapters for the downloaded model `base`, which holds its tokenizer."""
    monkeypatch.chdir(tmp_path)
    train_bpe(["the capital of Peru is Lima"] * 4, tmp_path / "tokenizer", vocab_size=300)
    hf.save(random_model(MODEL), tmp_path / "base", tokenizer_dir=tmp_path / "tokenizer")
    hf.save(random_model(MODEL, seed=1), tmp_path / "downloaded")
    params, frozen = lora.trained(random_model(MODEL), ADAPTERS, make_mesh(MESH), 0)
    state = TrainState(jnp.int32(1), params, (), frozen)
    said = lora.describe(ADAPTERS, random_model(MODEL), "base", 0)
    with Checkpointer("checkpoints", CheckpointConfig(every=1, keep=1), MODEL, said) as saver:
        saver.save(1, state, {})
    return export_hf.ExportRun(
        checkpoint="checkpoints",
        folder="exported",
        tokenizer="tokenizer",
        dtype="float32",
        reload="table",
        mesh=MESH,
        model=MODEL,
    )


REFUSED = [
    ({"folder": "base"}, "'base', which is there and has no run.json of an earlier export"),
    ({"folder": "base", "base": "base"}, "'base', which is config.base, 'base'"),
    ({"folder": "base", "tokenizer": "base"}, "'base', which is config.tokenizer, 'base'"),
    ({"folder": "downloaded"}, "'downloaded', which is there and has no run.json"),
    ({"folder": "checkpoints"}, "'checkpoints', which is config.checkpoint, 'checkpoints'"),
    ({"folder": "."}, "'.', which contains config.checkpoint, 'checkpoints'"),
]


def test_what_is_read_and_what_was_downloaded_stand(run, tmp_path) -> None:
    before = files_of(tmp_path)
    for values, said in REFUSED:
        with pytest.raises(ConfigError, match=f"^config.folder is {re.escape(said)}"):
            export_hf.run(dataclasses.replace(run, **values))
        assert files_of(tmp_path) == before


def test_a_base_that_is_an_export_itself_stands(run, tmp_path) -> None:
    run_record.write("base", dataclasses.replace(run, folder="base"))
    before = files_of(tmp_path)
    said = r"^config\.folder is 'base', which is the base of the adapters, '.*/base'; the export"
    with pytest.raises(ConfigError, match=said):
        export_hf.run(dataclasses.replace(run, folder="base"))
    assert files_of(tmp_path) == before


def test_an_export_is_known_as_one_from_when_it_has_its_name(run, monkeypatch) -> None:
    """A kill at once after it leaves one that the same command replaces."""
    rename = Path.rename

    def killed(path: Path, target: Path) -> None:
        rename(path, target)
        if Path(target).name == "exported":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            export_hf.run(run)
    assert (Path("exported") / "config.json").is_file()
    report = export_hf.run(run)
    assert report["reload"] == "table"
    # Adapters that were not trained change nothing.
    found, base = hf.load("exported", FLOAT32), random_model(MODEL)
    jax.tree.map(np.testing.assert_array_equal, found, base)
