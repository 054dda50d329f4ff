"""Flags for keys that another key switches off."""

import dataclasses

import pytest

from masksearch_jax.ask import AskRun
from masksearch_jax.build_dataset import BuildDatasetRun
from masksearch_jax.build_index import BuildIndexRun
from masksearch_jax.build_ramp import BuildRampRun
from masksearch_jax.build_trajectories import BuildTrajectoriesRun
from masksearch_jax.core.config import DapoRun, EvalRun, SftRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.idle import idle_keys
from masksearch_jax.core.schema import describe_keys
from masksearch_jax.coverage import CoverageRun
from masksearch_jax.evolve import EvolveRun
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.recipes.study_config import StudyRun
from masksearch_jax.runtime import cli
from masksearch_jax.search.open import KINDS
from masksearch_jax.serve_model import ServeModelRun
from masksearch_jax.serve_search import ServeSearchRun

SCHEMAS = {
    "ask": AskRun,
    "build_dataset": BuildDatasetRun,
    "build_index": BuildIndexRun,
    "build_ramp": BuildRampRun,
    "build_trajectories": BuildTrajectoriesRun,
    "coverage": CoverageRun,
    "evaluate": EvalRun,
    "evolve": EvolveRun,
    "quickstart": QuickstartRun,
    "ramp_dapo": DapoRun,
    "ramp_sft": SftRun,
    "serve_model": ServeModelRun,
    "serve_search": ServeSearchRun,
    "study": StudyRun,
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
    ("evaluate", ["search.kind=opensearch", "search.encoder=e"], "search.opensearch.by=vectors"),
    ("ramp_dapo", ["alarms.action=stop"], "alarms.entropy=0.1"),
    ("ramp_dapo", ["alarms.entropy=0.1", "alarms.rollbacks=1"], "alarms.action=rollback"),
    ("ramp_dapo", ["lessons.threshold=0.5"], "lessons.by=gated"),
    ("ramp_dapo", ["lessons.least=0.5"], "lessons.by=adaptive"),
    ("build_ramp", ["corpus.questions=q.jsonl"], "corpus.path=wiki.jsonl"),
    ("build_ramp", ["clean.max_drop=0.3"], "corpus.path=wiki.jsonl"),
    ("build_ramp", ["corpus.path=w.jsonl", "clean.evaluation=q.jsonl"], "clean.leakage=drop"),
    ("build_index", ["vectors.graph=True"], "vectors.encoder=e"),
    ("build_trajectories", ["language=zh"], "teacher=agents"),
    ("evolve", ["llm.model=m"], "evolve.teacher=agents"),
    ("quickstart", ["judge.model=m"], "qa_dapo.reward=judge"),
    ("quickstart", ["heldout_examples=3"], "heldout_points=2"),
    ("quickstart", ["corpus.path=wiki.jsonl", "ramp.cities=9"], "corpus.path="),
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


INSTEAD = [
    ("evaluate", ["endpoint.base_url=http://h/v1"], "endpoint.temperature=0.5", "eval.temperature"),
    ("evaluate", ["endpoint.base_url=http://h/v1"], "rollout.max_new_tokens=9", "endpoint"),
    ("evaluate", ["endpoint.base_url=http://h/v1"], "init=folder", "endpoint"),
    ("evaluate", ["search.kind=none"], "search.rerank=folder", "search.kind=none"),
    ("ramp_dapo", ["dapo.reward=judge", "judge.own_model=True"], "judge.model=m", "own_model"),
    ("ramp_sft", [], "rollout.temperature=0.5", "eval.temperature"),
    ("build_trajectories", ["teacher=agents"], "seed=3", "llm"),
    ("build_dataset", [], "ramp.statements=True", "atlas"),
    ("coverage", [], "search.top_k=3", "table"),
    ("serve_search", [], "search.max_queries=9", "agents"),
    ("ask", ["init=m", "web=True"], "question=Why?", "page"),
]


@pytest.mark.parametrize(("config", "flags", "idle", "said"), INSTEAD)
def test_a_flag_is_refused_that_other_keys_stand_in_for(config, flags, idle, said):
    parsed(config, flags)
    with pytest.raises(ConfigError, match=f"{said}") as raised:
        parsed(config, [*flags, idle])
    assert str(raised.value).startswith(f"config.{idle.split('=')[0]} is ")


def test_arms_of_a_study_switch_what_its_own_keys_do_not():
    assert parsed("study", ["ramp.min_nll=0.1"]).ramp.min_nll == 0.1


def test_a_check_lets_be_what_a_folder_that_it_does_not_read_may_switch_on(capsys):
    command = ["evaluate", "--config=evaluate:tiny", "--config.init=F", "--config.search.retries=9"]

    def told(folder):
        return {"search": {"kind": "http", "url": "http://h"}}

    cli.run(lambda cfg: None, EvalRun, [*command, "--check"], None, read_defaults=told)
    cli.run(lambda cfg: None, EvalRun, command, None, read_defaults=told)
    with pytest.raises(SystemExit):
        cli.run(lambda cfg: None, EvalRun, command, None, read_defaults=lambda folder: {})
    assert "config.search.retries is 9, which does nothing here" in capsys.readouterr().err


def test_a_switch_is_turned_off_by_its_own_flag(tmp_path):
    file = tmp_path / "asks_an_endpoint.py"
    file.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n"
        "    from configs import evaluate\n\n"
        "    c = evaluate.get_config('tiny')\n"
        "    c.endpoint = ConfigDict({'base_url': 'http://h/v1', 'model': 'm'})\n"
        "    return c\n"
    )
    given = ["evaluate", f"--config={file}", "--config.endpoint.base_url="]
    assert cli.parse(EvalRun, given).endpoint.base_url == ""


def test_a_default_of_none_clears_what_the_config_file_has():
    assert parsed("build_ramp", []).ramp.gazetteer
    assert not parsed("build_ramp", ["ramp.extractor=llm", "ramp.gazetteer=0"]).ramp.gazetteer
    with pytest.raises(ConfigError, match=r"config\.rollout\.temperature is 1\.0, which does"):
        parsed("evaluate", ["rollout.temperature=1.0"])  # its file has 0.0


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
