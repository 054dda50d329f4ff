"""Flags for keys that another key switches off."""

import dataclasses

import pytest

from masksearch_jax.ask import AskRun
from masksearch_jax.build_index import BuildIndexRun
from masksearch_jax.build_ramp import BuildRampRun
from masksearch_jax.build_trajectories import BuildTrajectoriesRun
from masksearch_jax.core.config import DapoRun, EvalRun, SftRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.idle import idle_keys
from masksearch_jax.core.schema import describe_keys
from masksearch_jax.runtime import cli
from masksearch_jax.search.open import KINDS
from masksearch_jax.serve_model import ServeModelRun

SCHEMAS = {
    "ask": AskRun,
    "build_index": BuildIndexRun,
    "build_ramp": BuildRampRun,
    "build_trajectories": BuildTrajectoriesRun,
    "evaluate": EvalRun,
    "ramp_dapo": DapoRun,
    "ramp_sft": SftRun,
    "serve_model": ServeModelRun,
}


def parsed(config, flags):
    given = [f"--config.{flag}" for flag in flags]
    return cli.parse(SCHEMAS[config], [config, f"--config={config}", *given])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", SCHEMAS)
def test_what_is_told_to_be_idle_is_a_key(config, kind):
    cfg = parsed(config, [f"init={config}"] if SCHEMAS[config] in (AskRun, ServeModelRun) else [])
    if hasattr(cfg, "search"):
        cfg = dataclasses.replace(cfg, search=dataclasses.replace(cfg.search, kind=kind))
    known = {key.name for key in describe_keys(type(cfg))}
    found = [name for name, _ in idle_keys(cfg)]
    assert found
    assert set(found) <= known


IDLE = [
    ("ramp_sft", ["search.kind=http"], "eval.every=5"),
    ("ramp_sft", ["rollout.slots=3"], "eval.every=5"),
    ("ramp_sft", ["eval.examples=3"], "eval.every=5"),
    ("ramp_dapo", ["eval.temperature=0.5"], "eval.every=5"),
    ("ramp_dapo", ["judge.base_url=http://h/v1"], "dapo.reward=judge"),
    ("ramp_dapo", ["search.url=http://h"], "search.kind=http"),
    ("ramp_dapo", ["search.retries=3"], "search.kind=web"),
    ("ramp_dapo", ["search.web.service=serpapi"], "search.kind=web"),
    ("evaluate", ["search.opensearch.url=http://h:9200"], "search.kind=opensearch"),
    ("evaluate", ["search.nearest=graph"], "search.kind=dense"),
    ("evaluate", ["search.fusion=rank"], "search.kind=hybrid"),
    ("evaluate", ["search.kind=hybrid", "search.rank_constant=3"], "search.fusion=rank"),
    (
        "evaluate",
        ["search.kind=hybrid", "search.fusion=rank", "search.dense_weight=0.9"],
        "search.fusion=score",
    ),
    ("evaluate", ["search.rerank_depth=3"], "search.rerank=FOLDER"),
    ("evaluate", ["search.cache_bytes=3"], "search.cache=FILE"),
    ("evaluate", ["endpoint.model=m"], "endpoint.base_url=http://h/v1"),
    ("evaluate", ["judge.model=m"], "judge.base_url=http://h/v1"),
    ("build_ramp", ["ppl.batch=3"], "ramp.strategy=ppl"),
    ("build_ramp", ["ramp.min_nll=0.1"], "ramp.strategy=ppl"),
    ("build_ramp", ["llm.model=m"], "ramp.extractor=llm"),
    ("build_ramp", ["ramp.spacy_model=m"], "ramp.extractor=spacy"),
    ("build_ramp", ["ramp.extractor=llm", "ramp.gazetteer=9"], "ramp.extractor=rules"),
    ("build_ramp", ["corpus.path=wiki.jsonl", "ramp.cities=9"], "corpus.path="),
    ("build_trajectories", ["llm.model=m"], "teacher=agents"),
    ("build_trajectories", ["student.init=m"], "teacher=local"),
    ("build_trajectories", ["teacher=agents", "thoughts=short"], "teacher=scripted"),
    ("build_index", ["opensearch.name=i"], "opensearch.url=http://h:9200"),
    ("serve_model", ["init=m", "search.top_k=3"], "agent=True"),
    ("ask", ["init=m", "port=80"], "web=True"),
]


@pytest.mark.parametrize(("config", "flags", "switch"), IDLE)
def test_a_flag_that_does_nothing_is_refused_and_says_what_reads_it(config, flags, switch):
    name, value = flags[-1].split("=", 1)
    with pytest.raises(ConfigError) as raised:
        parsed(config, flags)
    said = str(raised.value)
    assert said.startswith(f"config.{name} is ")
    assert value in said
    assert switch.split("=")[0] in said
    before = [flag for flag in flags if flag.split("=")[0] != switch.split("=")[0]]
    parsed(config, [*before, switch])


def test_temperatures_that_evaluate_never_reads_are_refused():
    for section in ("rollout", "endpoint"):
        with pytest.raises(ConfigError, match=r"config\.eval\.temperature is read in its place"):
            parsed("evaluate", ["endpoint.base_url=http://h/v1", f"{section}.temperature=0.5"])


def test_what_a_config_file_says_and_defaults_pass(tmp_path):
    file = tmp_path / "of_two_mains.py"
    file.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n"
        "    from configs import ramp_dapo\n\n"
        "    c = ramp_dapo.get_config('qwen2.5-0.5b')\n"
        "    c.judge = ConfigDict({'model': 'of-another-run'})\n"
        "    return c\n"
    )
    cfg = cli.parse(DapoRun, ["ramp_dapo", f"--config={file}", "--config.search.url="])
    assert cfg.judge.model == "of-another-run"
