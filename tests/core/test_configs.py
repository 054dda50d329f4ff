"""Every config with every argument loads, fits its main's schema, and its model has its size."""

import dataclasses
import importlib
import json
import re
import typing
from pathlib import Path

import jax
import pytest
from flax import nnx

from configs import common
from masksearch_jax import train_dapo, train_sft
from masksearch_jax.build_index import VectorConfig
from masksearch_jax.core import config
from masksearch_jax.core.config import ModelConfig, PromptConfig, SearchConfig
from masksearch_jax.core.curriculum_config import LessonsConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.llm_config import EndpointConfig, JudgeConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import REQUIRED, describe_keys, flat_keys, to_dataclass
from masksearch_jax.core.search_services_config import (
    OpenSearchConfig,
    OpenSearchLoadConfig,
    WebConfig,
)
from masksearch_jax.core.watch_config import AlarmsConfig, HeldoutConfig, LogConfig
from masksearch_jax.parallel import sharding
from masksearch_jax.ramp.survey import CleanConfig
from masksearch_jax.rl.sampling_settings import check_sampling
from masksearch_jax.runtime import cli, config_text

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SNAPSHOT = Path(__file__).with_name("resolved_configs.json")

# Config file → the schema of the main that takes it, and where that is.
SCHEMAS = {
    "ramp_sft": "core.config.SftRun",
    "qa_sft": "core.config.SftRun",
    "ramp_dapo": "core.config.DapoRun",
    "qa_dapo": "core.config.DapoRun",
    "quickstart_dapo": "core.config.DapoRun",
    "evaluate": "core.config.EvalRun",
    "quickstart": "quickstart.QuickstartRun",
    "real": "quickstart.QuickstartRun",
    "build_index": "build_index.BuildIndexRun",
    "ask": "ask.AskRun",
    "build_ramp": "build_ramp.BuildRampRun",
    "build_cache": "build_cache.BuildCacheRun",
    "build_dataset": "build_dataset.BuildDatasetRun",
    "serve_model": "serve_model.ServeModelRun",
    "serve_search": "serve_search.ServeSearchRun",
    "coverage": "coverage.CoverageRun",
    "build_trajectories": "build_trajectories.BuildTrajectoriesRun",
    "evolve": "evolve.EvolveRun",
    "export_hf": "export_hf.ExportRun",
    "export_data": "export_data.ExportDataRun",
    "report": "report.ReportConfig",
    "study": "study.StudyRun",
}
WITH_MODEL = ("ramp_sft", "qa_sft", "ramp_dapo", "qa_dapo", "evaluate", "export_hf", "quickstart")
ARGUMENTS = [(name, "") for name in SCHEMAS] + [
    (name, arg)
    for name in WITH_MODEL
    for arg in ("runlocal", "tiny,runlocal", "runlocal,llama3.2-1b", *common.MODELS)
    if not (name == "export_hf" and "runlocal" in arg)
]

# Parameters as the models' publishers count them, a tied head counted once.
PARAMETERS = {
    "tiny": 853_632,  # ours
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "smollm2-135m": 134_515_008,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
}


def schema_of(name: str) -> type:
    module, _, schema = SCHEMAS[name].rpartition(".")
    return getattr(importlib.import_module(f"masksearch_jax.{module}"), schema)


def load(name: str, arg: str = "") -> typing.Any:
    return cli.load_config(f"{CONFIGS / name}.py" + (f":{arg}" if arg else ""))


# ---- what a file and its schema's defaults come to ----------------------------------------------

# Keys that came after the snapshot, and their value wherever their section is; and one that has
# another name since, because `--config.evolve.items` met a method of ConfigDict.
SINCE = {"survival.changed": "refuse", "dapo.warn_after": 5, "dapo.patience": 20}
SINCE |= {"dapo.keep_by": "accuracy", "dapo.min_spread": 0.01}
SINCE |= {"search.memory": 10_000}
SINCE |= {"search.encoder": "", "search.nearest": "exact", "search.fusion": "score"}
SINCE |= {"search.models_on": "device"}
SINCE |= {"search.rank_constant": 60.0, "search.dense_weight": 0.3, "search.fusion_depth": 100}
SINCE |= {"survival.tool_failures": 0.5, "survival.tool_outage_seconds": 600.0}
SINCE |= {"llm.max_tokens_field": "max_tokens", "llm.send_temperature": True}
SINCE |= dict.fromkeys(
    (
        *("dapo.coverage_weight", "dapo.gold_hit_weight", "dapo.no_answer_penalty"),
        *("dapo.no_search_penalty", "dapo.malformed_turn_penalty", "dapo.repeated_query_penalty"),
        "dapo.unreadable_call_penalty",
    ),
    0.0,
)
SINCE |= {"dapo.min_searches": 0, "dapo.reward_workers": 8, "dapo.reward_timeout": 300.0}
SINCE |= {"dapo.max_reward_failures": 0.1}
_SCALING = {"rope_scaling.kind": "llama3", "rope_scaling.attention_factor": 1.0}
SINCE |= {f"{at}model.{key}": value for at in ("", "student.") for key, value in _SCALING.items()}
SINCE |= {"dapo.advantage": "group", "dapo.ratio": "token", "dapo.aggregation": "token"}
SINCE |= {"dapo.fixed_length": 0, "dapo.dual_clip": 0.0, "dapo.proximal": "step"}
SINCE |= {"dapo.kl": "none", "dapo.kl_weight": 0.001, "dapo.likelihood_floor": 0.0}
SINCE |= {"dapo.sequence_gap": 0.0}
SINCE |= {"dapo.max_reward_failures": 0.1, "dapo.keep_rollouts": 0.0}
SINCE |= {"dapo.rest_steps": 0, "dapo.max_bad_fraction": 0.01}
SINCE |= {"search.attempt_timeout": 5.0, "search.retries": 20, "search.backoff": 0.1}
SINCE |= {"search.cache_bytes": 2**33, "search.recorded": "", "search.requests_per_second": 0.0}
SINCE |= {"search.rerank": "", "search.rerank_depth": 20}
SINCE |= {"plan.passages": 0}
SINCE |= {"search.hedge": 0.0, "search.batch_wait": 0.002}
SINCE |= {"judge.max_unreadable": 0.5}
# Of one file's schema alone.
KEYS_SINCE = {"quickstart": {"qa_share": 0.0, "thoughts": "short", "init": ""}}
KEYS_SINCE["quickstart"] |= {"heldout_points": 0, "heldout_examples": 16}
KEYS_SINCE |= {"build_trajectories": {"thoughts": "full", "method": "agent", "examples": 0}}
KEYS_SINCE |= {"serve_search": {"waiting": 256, "drain": 30}, "build_index": {"shards": 1}}
_WITH_TOOLS = ("ramp_sft", "qa_sft", "ramp_dapo", "qa_dapo", "evaluate", "quickstart", "ask")
_WITH_TOOLS += ("serve_model", "build_trajectories", "build_cache", "evolve")
KEYS_SINCE |= {name: KEYS_SINCE.get(name, {}) | {"tools": []} for name in _WITH_TOOLS}
SINCE |= {f"{at}rollout.tool_turns": [] for at in ("", "student.")} | {"ramp.arithmetic": False}
SINCE |= {f"{at}rollout.chunk_rows": 8 for at in ("", "student.")}
SINCE |= {
    "evolve.thoughts": "short",
    "ramp.supported": False,
    "ramp.linked": False,
    "ramp.statements": False,
}
# Sections that came after the snapshot, of which no file of that time has a key.
WATCHED = {
    "log": LogConfig,
    "lessons": LessonsConfig,
    "eval": HeldoutConfig,
    "alarms": AlarmsConfig,
}
SECTIONS_SINCE = {
    "SftRun": WATCHED | {"prompt": PromptConfig, "search": SearchConfig, "rollout": RolloutConfig},
    "DapoRun": {"judge": JudgeConfig} | WATCHED,
    "QuickstartRun": {
        "judge": JudgeConfig,
        "clean": CleanConfig,
        "lessons": LessonsConfig,
        "alarms": AlarmsConfig,
    },
    "EvalRun": {"endpoint": EndpointConfig, "judge": JudgeConfig},
    "BuildIndexRun": {"vectors": VectorConfig, "opensearch": OpenSearchLoadConfig},
}
# The same, within sections of that time.
ADDED_SINCE = {"search.web": WebConfig, "search.opensearch": OpenSearchConfig}
SINCE |= {"eval.suite_examples": [], "eval.strata": "shares", "eval.compare": ""}
SINCE |= {"eval.whole_replies": False, "eval.aliases": ""}
SINCE |= {"eval.metrics": [], "eval.leakage": "", "eval.difficulty": False, "eval.lemmatizer": ""}
RENAMED = {
    "evolve.items": "evolve.pool_size",
    "sft.other_loss_weight": "sft.context_loss_weight",
    "qa_sft.other_loss_weight": "qa_sft.context_loss_weight",
    "first_sft.other_loss_weight": "first_sft.context_loss_weight",
    "card.stage": "card.training",
    "eval.conditions": "eval.methods",
}
GONE = {"eval.baseline_examples"}  # all methods are asked the same items
# Decided anew since: at one half two guesses paid as much as one, and recall pays for lists.
# A search is tried again within its time, which outlasts the restart of a server.
# A report shows thousands of trajectories.
DECIDED = {"dapo.length_penalty": 0.6, "search.timeout": 30.0, "report_trajectories": 3000}
DECIDED_IN = {"qa_dapo": {"dapo.reward": "penalised"}}
# The second stage of the quickstart keeps a share of the first.
MIXED = {"qa_sft.curriculum": "0:ramp_sft_qa_mixed", "qa_dapo.curriculum": "0:ramp_qa_mixed"}
DECIDED_IN |= {"quickstart": {"qa_share": 0.8} | MIXED}
DECIDED |= {"eval.methods": ["agent", "no_search", "random"]}
DECIDED_IN["quickstart"] |= {"eval.examples": 400, "eval.strata": "even"}
# A search shows what it has shown in the demonstrations.
_SHOWN = {"search.top_k": 3, "search.max_passages": 3, "search.max_queries": 3}
for _name in ("ramp_sft", "qa_sft", "ramp_dapo", "qa_dapo"):
    DECIDED_IN[_name] = DECIDED_IN.get(_name, {}) | _SHOWN
DECIDED_IN |= {"evolve": {"eval.methods": ["agent"]}}
DECIDED_IN |= {"build_dataset": {"folder": "runs/ramp_tfds"}}  # build_ramp has written runs/ramp
DECIDED_IN |= {"export_hf": {"card.training": ""}}  # as the runs before it are recorded
DECIDED_IN_FULL = {"quickstart": {"qa_sft.steps": 2000, "qa_sft.batch_size": 8}}
# A smoke run of a model that can do nothing is one that ends well.
_SHORT = {"dapo.patience": 0, "search.top_k": 1}
DECIDED_IN_SMOKE = dict.fromkeys(("ramp_dapo", "qa_dapo", "ramp_sft", "qa_sft"), _SHORT)
_NOT_ASKED = {"dapo.patience": 0, "qa_dapo.patience": 0}
DECIDED_IN_SMOKE |= {"quickstart": {"eval.examples": 8} | _NOT_ASKED}
# The quickstart has the section `dapo` twice, once for each of its stages.
SINCE |= {f"qa_{key}": value for key, value in SINCE.items() if key.startswith("dapo.")}
DECIDED |= {f"qa_{key}": value for key, value in DECIDED.items()}
# Of files whose argument names a model: the one without it, and where its section is.
MODEL = dict.fromkeys(WITH_MODEL, ("qwen2.5-1.5b", "model."))
MODEL |= dict.fromkeys(("quickstart", "evolve"), ("tiny", "model."))
MODEL |= {"build_trajectories": ("qwen2.5-1.5b", "student.model.")}
SWITCHES = dict.fromkeys((*MODEL, "build_ramp", "build_cache", "build_dataset"), ("", "runlocal"))
SWITCHES |= {"export_hf": ("",)}
# The smallest model's context: the rollouts that configs ask for by default fit into it.
DECIDED_OF = {"tiny": {"max_position": 8192}}
NEW = ("real", "study", "export_data", "quickstart_dapo")  # since the snapshot
CASES = [
    (name, "", switch)
    for name in SCHEMAS
    if name not in NEW
    for switch in SWITCHES.get(name, ("",))
]
CASES += [(name, "llama3.2-1b", switch) for name in MODEL for switch in SWITCHES[name]]


def dotted(values: dict, prefix: str = "") -> dict:
    """Nested dicts as one, with dotted keys; tuples as lists, as JSON has them."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= dotted(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def resolved(name: str, *parts: str) -> dict:
    """What a main is given for a config file and its argument."""
    arg = ",".join(filter(None, parts))
    argv = [name, f"--config={CONFIGS / name}.py" + (f":{arg}" if arg else "")]
    return dotted(dataclasses.asdict(cli.parse(schema_of(name), argv)))


@pytest.mark.parametrize(("name", "model", "switch"), CASES)
def test_a_config_resolves_to_what_it_did_when_files_spelled_every_key(name, model, switch):
    """The snapshot holds the models' tables, each file's keys, and those that a switch changes."""
    taken = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    first, at = MODEL.get(name, ("tiny", ""))
    table = taken["models"][model or first] | DECIDED_OF.get(model or first, {})
    want = {at + k: v for k, v in table.items()} if at else {}
    want |= taken["configs"][name][""] | taken["configs"][name][switch]
    want = {RENAMED.get(key, key): value for key, value in want.items() if key not in GONE}
    sections = {key.rpartition(".")[0] for key in want}
    want |= {key: value for key, value in SINCE.items() if key.rpartition(".")[0] in sections}
    want |= KEYS_SINCE.get(name, {})
    for at, section in ADDED_SINCE.items():
        if at.rpartition(".")[0] in sections:
            want |= dotted({at: dataclasses.asdict(section())})
    for at, section in SECTIONS_SINCE.get(schema_of(name).__name__, {}).items():
        want |= dotted({at: dataclasses.asdict(section())})
    decided = DECIDED | DECIDED_IN.get(name, {})
    by_switch = DECIDED_IN_SMOKE if switch == "runlocal" else DECIDED_IN_FULL
    decided |= by_switch.get(name, {})
    want |= {key: value for key, value in decided.items() if key in want}
    assert resolved(name, model, switch) == want


@pytest.mark.parametrize("name", common.MODELS)
def test_a_models_table_is_what_it_was(name):
    taken = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    model = to_dataclass(ModelConfig, common.model(name))
    since = _SCALING if model.rope_scaling else {}
    decided = DECIDED_OF.get(name, {})
    assert dotted(dataclasses.asdict(model)) == taken["models"][name] | since | decided


# ---- files and schemas --------------------------------------------------------------------------


def test_every_config_file_is_in_the_table():
    assert {p.stem for p in CONFIGS.glob("*.py")} == {*SCHEMAS, "common"}


@pytest.mark.parametrize(("name", "arg"), ARGUMENTS)
def test_a_config_fits_its_schema(name, arg):
    cfg = to_dataclass(schema_of(name), load(name, arg))
    model = next((part for part in arg.split(",") if part in common.MODELS), None)
    if model and name != "quickstart":  # whose vocabulary is trained on its corpus
        assert cfg.model == to_dataclass(ModelConfig, common.model(model))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_default_has_exactly_its_keys_type(name):
    """An int where the schema says float would refuse `--config.key=0.5`."""
    schema, values = schema_of(name), dotted(load(name).to_dict())
    for key in describe_keys(schema):
        if key.kind in (int, float, str, bool):
            for value in (key.default, values.get(key.name, REQUIRED)):
                assert value is REQUIRED or type(value) is key.kind, (key.name, value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_can_be_overridden_whether_its_file_names_it_or_not(name):
    """By its own value, so that nothing changes; keys of sections that are not there are left."""
    argv = [name, f"--config={CONFIGS / name}.py"]
    cfg = cli.parse(schema_of(name), argv)
    values = config_text.leaves(type(cfg), dataclasses.asdict(cfg))
    given = [f"--config.{k}={config_text.spell(v)}" for k, v in values.items() if v is not None]
    assert cli.parse(schema_of(name), [*argv, *given]) == cfg


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_says_what_it_means(name):
    for key in describe_keys(schema_of(name)):
        assert re.fullmatch(r"[A-Z`\"a-z1].*[.…]", key.sentence, re.DOTALL), key.name
        if key.section and key.default not in (REQUIRED, None):
            assert key.default == key.section(), f"{key.name} has a second set of defaults"


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_typo_in_an_override_names_the_key(name):
    for key in flat_keys(schema_of(name)):
        typo = f"--config.{key}q=1"
        with pytest.raises(ConfigError) as error:
            cli.parse(schema_of(name), ["main", f"--config={CONFIGS / name}.py", typo])
        assert f"--config.{key}q is not a flag; did you mean" in str(error.value)
        assert f"--config.{key}" in str(error.value).partition("did you mean")[2]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_typo_inside_a_config_names_the_key(name):
    values = load(name).to_dict()
    key = next(iter(values))
    values[f"{key}q"] = values.pop(key)
    with pytest.raises(ConfigError, match=rf"did you mean .*config\.{key}\b"):
        to_dataclass(schema_of(name), values)


@pytest.mark.parametrize("name", [n for n in WITH_MODEL if n != "export_hf"])
def test_a_wrong_argument_names_the_choices(name):
    with pytest.raises(ConfigError, match=r"'runlcal' is not one of .*did you mean runlocal\?"):
        load(name, "runlcal")
    with pytest.raises(ConfigError, match=r"'qwen2\.5-1\.5' is .*did you mean qwen2\.5-1\.5b\?"):
        load(name, "tiny,qwen2.5-1.5")


@pytest.mark.parametrize("name", ["ramp_dapo", "qa_dapo", "quickstart"])
@pytest.mark.parametrize("arg", ["", "runlocal"])
def test_a_dapo_batch_divides_into_its_micro_batches(name, arg):
    cfg = to_dataclass(schema_of(name), load(name, arg))
    for parts in (1, 8, 32, 256) if arg == "" and name != "quickstart" else (1, 2):
        mesh = jax.sharding.AbstractMesh((1, parts, 1, 1), sharding.AXES)
        train_dapo.check_settings(cfg.dapo, cfg.rollout, mesh)
    assert cfg.dapo.overlong_buffer < cfg.rollout.max_new_tokens < cfg.rollout.max_len


def test_no_file_sets_a_key_that_another_one_makes_idle():
    """Whatever its argument; the trainers refuse such a key."""
    trainings = stages = 0
    for name, arg in ARGUMENTS:
        cfg = to_dataclass(schema_of(name), load(name, arg))
        if isinstance(cfg, config.DapoRun | config.SftRun):
            main = train_dapo if isinstance(cfg, config.DapoRun) else train_sft
            main.check_config(dataclasses.replace(cfg, workdir="w", data="d", tokenizer="t"))
            trainings += 1
        for section in ("dapo", "qa_dapo"):
            if own := getattr(cfg, section, None):
                check_sampling(own, cfg.rollout, cfg.tools)
                stages += 1
    assert trainings >= 4 * len(common.MODELS)
    assert stages >= 4 * len(common.MODELS)


STAGES = ("ramp_sft", "ramp_dapo", "qa_sft", "qa_dapo")


@pytest.mark.parametrize("cell", common.CELLS)
@pytest.mark.parametrize("switch", ["", "runlocal"])
def test_the_stages_of_a_cell_start_from_one_another(cell, switch):
    init = ""
    for stage in common.CELLS[cell]:
        cfg = to_dataclass(schema_of(stage), load(stage, f"tiny,{cell},{switch}"))
        assert (cfg.workdir, cfg.init) == (f"runs/cells/{cell}/{stage}", init)
        init = f"{cfg.workdir}/checkpoints"
    cfg = to_dataclass(schema_of("evaluate"), load("evaluate", f"tiny,{cell},{switch}"))
    assert (cfg.workdir, cfg.init) == (f"runs/cells/eval/{cell}", init)
    for stage in set(STAGES) - set(common.CELLS[cell]):
        with pytest.raises(ConfigError, match=f"the cell {cell} has no stage {stage}; it has "):
            load(stage, f"tiny,{cell}")


def test_reinforcement_learning_on_questions_starts_after_some_demonstrations():
    def mixtures(stage, cell):
        return re.findall(r":(\w+)", load(stage, cell).sft.curriculum)

    assert mixtures("ramp_sft", "sft-rl")[-1] == "ramp_sft_qa_mixed"
    assert mixtures("ramp_sft", "rl-rl") == ["ramp_sft_qa_mixed"]
    assert mixtures("ramp_sft", "rl-sft") == ["ramp_sft_mixed"]
    assert mixtures("qa_sft", "none-rl") == mixtures("qa_sft", "none-sft") == ["qa_sft_mixed"]
    assert mixtures("ramp_sft", "sft-sft") == mixtures("ramp_sft", "")
    whole, started = load("ramp_sft", "sft-sft").sft.steps, load("ramp_sft", "rl-rl").sft.steps
    assert (whole, started) == (4000, 300)
    assert load("ramp_sft", "sft-rl").sft.steps == 4300


def test_dapo_defaults_are_those_of_its_paper():
    cfg = to_dataclass(config.DapoRun, load("ramp_dapo"))
    assert (cfg.dapo.clip_low, cfg.dapo.clip_high, cfg.dapo.group_size) == (0.2, 0.28, 16)
    assert (cfg.optim.learning_rate, cfg.optim.weight_decay) == (1e-6, 0.1)
    assert (cfg.rollout.temperature, cfg.dapo.overlong_filter) == (1.0, False)


def test_the_table_of_sizes_is_complete():
    assert set(PARAMETERS) == set(common.MODELS)


@pytest.mark.parametrize("name", common.MODELS)
def test_a_model_has_its_published_size(name):
    """Shapes alone, at the true size: nothing is allocated."""
    from masksearch_jax.models.transformer import Transformer

    cfg = to_dataclass(config.SftRun, load("ramp_sft", name))
    model = jax.eval_shape(lambda: Transformer(cfg.model, cfg.compute, nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == PARAMETERS[name]
    ids = jax.ShapeDtypeStruct((2, 16), "int32")
    hidden = jax.eval_shape(lambda m, x: m.hidden(x, x, x), model, ids)
    assert hidden.shape == (2, 16, cfg.model.hidden_size)
    logits = jax.eval_shape(lambda m, h: m.logits(h), model, hidden)
    assert (logits.shape, logits.dtype) == ((2, 16, cfg.model.vocab_size), "float32")


def test_the_schemas_are_frozen():
    for name in SCHEMAS:
        assert dataclasses.fields(schema_of(name))
        assert schema_of(name).__dataclass_params__.frozen


def sections() -> set[type]:
    """All that any schema has, itself among them."""
    return {
        section
        for name in SCHEMAS
        for section in (schema_of(name), *(k.section for k in describe_keys(schema_of(name))))
        if section
    }


def test_every_share_has_bounds_and_every_default_lies_within_its_own():
    shares = 0
    for section in sections():
        kinds = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            least, most = field.metadata.get("least"), field.metadata.get("most")
            if kinds[field.name] is float and field.metadata["sentence"].startswith("Share "):
                shares += 1
                assert (least, most) == (0, 1), f"{section.__name__}.{field.name}"
            if isinstance(field.default, int | float):
                assert least is None or least <= field.default, field.name
                assert most is None or field.default <= most, field.name
    assert shares > 15


# Whole numbers that may be below 0, or whose least a main checks with its reason.
SIGNED = {"step", "data", "fsdp", "tensor", "context", "floor", "ceiling"}


def test_every_count_has_a_least():
    """A negative one would leave the end of a list out, or find nothing, without a word."""
    without = {
        f"{section.__name__}.{field.name}"
        for section in sections()
        for field in dataclasses.fields(section)
        if typing.get_type_hints(section)[field.name] is int
        and field.metadata.get("least") is None
        and field.name not in SIGNED
    }
    assert without == set()


def test_every_seed_is_one_that_all_generators_take():
    seeds = {
        section.__name__: (field.metadata["least"], field.metadata["most"])
        for section in sections()
        for field in dataclasses.fields(section)
        if field.name == "seed"
    }
    assert {"DapoRun", "DapoConfig", "RolloutConfig", "EvalConfig", "RampConfig"} <= set(seeds)
    assert seeds == dict.fromkeys(seeds, (0, 2**32 - 1))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("rollout.seed", -1, "at least 0"),
        ("dapo.seed", -1, "at least 0"),
        ("seed", 2**33, "at most 4294967295"),
    ],
)
def test_a_seed_that_no_generator_takes_is_refused(capsys, key, value, rule):
    argv = ["x", f"--config={CONFIGS / 'ramp_dapo'}.py:tiny", f"--config.{key}={value}", "--check"]
    with pytest.raises(SystemExit) as end:
        cli.run(print, config.DapoRun, argv)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: config.{key} is {value}; it must be {rule}\n"


PORTS = [name for name in SCHEMAS if "port" in flat_keys(schema_of(name))]


def test_three_mains_bind_a_port():
    assert PORTS == ["ask", "serve_model", "serve_search"]
    assert not [k for name in SCHEMAS for k in flat_keys(schema_of(name)) if k.endswith(".port")]


@pytest.mark.parametrize("name", PORTS)
@pytest.mark.parametrize(("value", "rule"), [(-1, "at least 0"), (65_536, "at most 65535")])
def test_a_port_that_no_machine_has_is_refused(name, value, rule):
    argv = [name, f"--config={CONFIGS / name}.py", f"--config.port={value}"]
    with pytest.raises(ConfigError, match=rf"^config\.port is {value}; it must be {rule}$"):
        cli.parse(schema_of(name), argv)


def read_with(name: str, key: str, value: str) -> typing.Any:
    """A config file's schema with a key from the command line."""
    found = []
    given = [name, f"--config={CONFIGS / name}.py", f"--config.{key}={value}"]
    cli.run(found.append, schema_of(name), given)
    return found[0]


def test_every_address_refuses_a_user():
    addresses = {
        f"{section.__name__}.{field.name}": field.metadata["user"]
        for section in sections()
        for field in dataclasses.fields(section)
        if field.name.endswith("url")
    }
    assert set(addresses) >= {"SearchConfig.url", "WebConfig.url", "LLMConfig.base_url"}
    assert [name for name, instead in addresses.items() if not instead] == []


@pytest.mark.parametrize(
    ("name", "key", "instead"),
    [
        ("evaluate", "search.url", "reached through a proxy that adds them"),
        ("evaluate", "search.web.url", "variable that key_variable names"),
        ("evaluate", "search.opensearch.url", "that user_variable and password_variable name"),
        ("evaluate", "endpoint.base_url", "variable that api_key_env names"),
        ("ramp_dapo", "judge.base_url", "variable that api_key_env names"),
        ("build_trajectories", "llm.base_url", "variable that api_key_env names"),
    ],
)
@pytest.mark.parametrize(
    "address",
    ["http://ada:secret@host:1/v1", "http://host:1,//ada@other", "https://ada:se,cret@host"],
)
def test_an_address_with_a_user_is_refused_without_naming_it(capsys, name, key, instead, address):
    with pytest.raises(SystemExit) as end:
        read_with(name, key, address)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: config.{key} has a user or a password in it, and logs and ")
    assert said.endswith(f"{instead}\n")
    assert "ada" not in said


def test_an_at_sign_after_the_host_is_no_user():
    address = "http://host:1/retrieve?for=a@b,https://other/@x"
    argv = ["evaluate", f"--config={CONFIGS}/evaluate.py", "--config.search.kind=http"]
    cfg = cli.parse(schema_of("evaluate"), [*argv, f"--config.search.url={address}"])
    assert cfg.search.url == address


@pytest.mark.slow  # imports TensorFlow
def test_a_curriculum_names_mixtures_that_exist():
    from masksearch_jax.data import curriculum, tasks

    parts = [f"ramp{sft}_k{k}" for sft in ("", "_sft") for k in (1, 2, 3, 4)]
    parts += ["qa_hotpotqa", "qa_sft_hotpotqa"]
    names = [*parts, *tasks.mixtures_of(parts)]
    for name in ("ramp_sft", "qa_sft", "ramp_dapo", "qa_dapo", "quickstart"):
        for arg in ("", "runlocal"):
            cfg = to_dataclass(schema_of(name), load(name, arg))
            for section in ("sft", "dapo", "qa_sft", "qa_dapo"):
                if hasattr(cfg, section):
                    lessons = curriculum.parse_curriculum(getattr(cfg, section).curriculum, names)
                    assert lessons[0].step == 0
