"""A family that an installed package adds: found by its entry point, computed as its authors do."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from examples.my_family import MISTRAL
from masksearch_jax.core.config import SftRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.models import families, hf
from masksearch_jax.models.hf_config import HfError, read_config, to_hf_config
from masksearch_jax.models.transformer import Transformer, check_architecture
from masksearch_jax.runtime import cli
from masksearch_jax.testing.models import FLOAT32
from tests.models.hf_folders import LLAMA, PROMPTS, write_with_transformers

CONFIG = dataclasses.replace(LLAMA, family="mistral", rope_scaling=None, head_dim=16)


def install(folder: Path, package: str, *entries: str) -> None:
    """What pip leaves of a package with entry points, in a folder of Python's path."""
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join([f"[{families.GROUP}]", *entries]))


@pytest.fixture
def mistral(tmp_path: Path, monkeypatch) -> Path:
    """A folder of Python's path with a package that adds the family of the example."""
    install(tmp_path / "site", "mine", "mistral = examples.my_family:MISTRAL")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


@pytest.mark.slow  # torch and transformers are imported
@pytest.mark.usefixtures("mistral")
def test_a_family_that_a_package_adds_is_read_computed_and_written(tmp_path, repository):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    expected = write_with_transformers(CONFIG, tmp_path / "theirs")
    model = hf.load(tmp_path / "theirs", FLOAT32)
    assert model.config == CONFIG
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), PROMPTS.shape)
    hidden = jax.jit(Transformer.hidden)(model, PROMPTS, positions, np.ones_like(PROMPTS))
    np.testing.assert_allclose(np.asarray(model.logits(hidden)), expected, atol=1e-4)
    hf.save(model, tmp_path / "ours")
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(read).__name__ == MISTRAL.architecture
    assert read.config.sliding_window is None
    their_logits = read(torch.from_numpy(PROMPTS.astype(np.int64))).logits
    np.testing.assert_array_equal(their_logits.detach().numpy(), expected)
    flags = [f"--config={repository}/configs/ramp_sft.py:hf", f"--config.init={tmp_path / 'ours'}"]
    assert cli.parse(SftRun, ["train_sft", *flags], read_config).model == CONFIG


@pytest.mark.usefixtures("mistral")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sliding_window": 4096}, "sliding_window is 4096; of mistral only None is supported"),
        ({}, "sliding_window is not there; of mistral only None is supported"),
        ({"attention_bias": True, "sliding_window": None}, "attention_bias is True"),
    ],
)
def test_what_a_family_does_not_compute_is_refused(tmp_path, values, said):
    raw = to_hf_config(CONFIG, "float32")
    assert raw.pop("sliding_window", 0) is None
    (tmp_path / "config.json").write_text(json.dumps(raw | values))
    with pytest.raises(HfError, match=said):
        read_config(tmp_path)


def test_a_family_is_unknown_without_its_package():
    assert families.find("mistral") is None
    said = r"config\.model\.family is 'mistral', which no package has; choices: llama, qwen2, qwen3"
    with pytest.raises(ConfigError, match=said):
        to_hf_config(CONFIG, "float32")
    with pytest.raises(ConfigError, match=said):
        check_architecture(CONFIG, FLOAT32)


def test_packages_that_give_no_family_are_named(mistral, tmp_path, monkeypatch):
    assert families.names() == ["qwen2", "qwen3", "llama", "mistral"]
    lost, odd = "lost = nowhere.mine:LOST", "odd = examples.my_tool:METRES"
    install(tmp_path / "other", "other", "mistral = a:B", lost, odd, "llama = a:B")
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert families.find("llama") == families.BUILT_IN["llama"]
    for name, said in (
        ("mistral", r"'mistral' is of 2 packages: \['other', 'mine'\]"),
        ("lost", r"'lost' of the package other is 'nowhere.mine:LOST', but there is no module"),
        ("odd", r"'odd' of the package other is .*METRES', which is dict, not a Family"),
    ):
        with pytest.raises(ConfigError, match=said):
            families.find(name)
