"""Studies: arms resolve, equal things are made once, a stop loses nothing, a tiny one ends."""

import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

from configs import common
from configs import study as studies
from masksearch_jax import quickstart, report, study
from masksearch_jax.core.config import CheckpointConfig, ComputeConfig, ModelConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import BeingWrittenError, write_json, write_lines
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import train_bpe
from masksearch_jax.core.types import Demonstration, Passage, QAExample, RampExample
from masksearch_jax.corpus.passages import read_passages, write_passages
from masksearch_jax.data.cache import Manifest, write_split
from masksearch_jax.models import hf
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.recipes import arms, made, stage_folder
from masksearch_jax.recipes.made import Made
from masksearch_jax.recipes.stage_folder import StageFolder, Usage
from masksearch_jax.recipes.workload import Work
from masksearch_jax.rl import group_sampler
from masksearch_jax.runtime import cli, run_record
from masksearch_jax.testing.models import TINY_QWEN2
from masksearch_jax.testing.services import Answer, Endpoint
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.train_state import TrainState
from tests.data.records import sft_records
from tests.parallel.lock_holder import held


@pytest.fixture
def parse(repository):
    def parsed(arg, *overrides):
        argv = ["study", f"--config={repository / 'configs' / 'study.py'}:{arg}"]
        return cli.parse(study.StudyRun, [*argv, *(f"--config.{o}" for o in overrides)])

    return parsed


ARMS = {
    name: [line.partition(":")[0] for line in studies.get_config(f"{name},runlocal").arms]
    for name in studies.STUDIES
}


def planned(cfg, folder):
    return study.plan(dataclasses.replace(cfg, workdir=str(folder)), Usage(folder))


def kinds(found, of=""):
    return sorted(m.kind for m in found.workshop.all.values() if not of or of in m.of)


# ---- configs


@pytest.mark.parametrize("name", studies.STUDIES)
@pytest.mark.parametrize("switch", ["", ",runlocal"])
def test_every_arm_of_every_study_resolves(name, switch, parse, tmp_path):
    cfg = parse(name + switch)
    found = planned(cfg, tmp_path)
    assert {len(made) for made in found.evaluations.values()} == {cfg.seeds}
    names = [[m.name for m in made] for made in found.evaluations.values()]
    assert len({n for own in names for n in own}) == cfg.seeds * len(cfg.arms)  # arms differ
    for arm, own in found.arms.values():
        for section in (arms.STAGES[s][0] for s in arm.stages):
            assert getattr(own, section).steps > 0


@pytest.mark.parametrize(
    ("name", "texts", "trainings"),
    [
        ("curriculum", 1, {"ramp_sft": 3}),
        ("reward", 1, {"ramp_sft": 1, "ramp_dapo": 2}),
        ("masking", 3, {"ramp_sft": 3}),
        ("ramp_first", 1, {"ramp_sft": 3, "qa_sft": 4}),
        ("recipe", 1, {"ramp_sft": 1, "qa_sft": 2}),
        ("recipe,dapo", 1, {"ramp_sft": 1, "qa_sft": 2, "qa_dapo": 1}),
        ("recipe,trained_rag", 2, {"ramp_sft": 1, "qa_sft": 3}),
        ("recipe,ramp_added", 1, {"ramp_sft": 1, "qa_sft": 3}),
        ("ramp_sft", 3, {"ramp_sft": 3}),
        ("controls", 1, {"ramp_sft": 1, "qa_sft": 2}),
        ("data_scale", 3, {"ramp_sft": 3}),
        ("self_taught", 1, {"ramp_sft": 1, "more_sft": 1, "self_sft": 1}),
        ("coverage", 2, {"ramp_sft": 2, "qa_sft": 2}),
    ],
)
def test_what_arms_have_in_common_is_made_once(name, texts, trainings, parse, tmp_path):
    cfg = parse(name)
    found = kinds(planned(cfg, tmp_path))
    assert (found.count("text"), found.count("tokenizer")) == (texts, 1)
    for stage in arms.STAGES:
        assert found.count(stage) == cfg.seeds * trainings.get(stage, 0)


def updates(found):
    """Updates of SFT of each arm that trains."""
    by_arm = {
        name: [getattr(own, arms.STAGES[s][0]).steps for s in arm.stages if s.endswith("sft")]
        for name, (arm, own) in found.arms.items()
    }
    return {name: steps for name, steps in by_arm.items() if steps}


@pytest.mark.parametrize("name", ["ramp_first", "recipe", "recipe,trained_rag", "recipe,gpu"])
@pytest.mark.parametrize("steps", [0, 37])
def test_arms_spend_as_many_updates_as_the_command_line_says(name, steps, parse, tmp_path):
    given = [f"sft.steps={steps}"] * (steps > 0)
    cfg = parse(name, *given)
    spent = updates(planned(cfg, tmp_path))
    assert {sum(own) for own in spent.values()} == {steps or cfg.sft.steps}
    assert spent[cfg.reference] == [steps or cfg.sft.steps]


def test_ramp_is_added_to_as_many_updates_on_questions_as_without_it(parse, tmp_path):
    found = planned(parse("recipe,ramp_added"), tmp_path)
    spent = updates(found)
    assert spent["ramp_added"] == [spent["ramp_first"][0], *spent["qa_alone"]]
    rates = [found.arms[arm][1].qa_sft_optim.learning_rate for arm in ("ramp_added", "qa_alone")]
    assert rates == [found.arms["ramp_first"][1].sft_optim.learning_rate] * 2


def test_lessons_follow_the_updates(parse, tmp_path):
    found = planned(parse("curriculum", "sft.steps=10"), tmp_path)
    assert found.arms["rising"][1].sft.curriculum == (
        "0:ramp_sft_upto1,2:ramp_sft_upto2,4:ramp_sft_upto3,6:ramp_sft_upto4"
    )
    own = planned(parse("recipe", "sft.steps=37"), tmp_path).arms["ramp_first"]
    assert own[1].sft.curriculum == "0:ramp_sft_upto1,9:ramp_sft_upto4"
    assert own[0].overrides[:2] == ("sft.steps=18", "qa_sft.steps=19")  # as the page shows them


def test_the_recipes_first_training_has_one_rate_in_every_arm(parse, tmp_path):
    cfg = parse("recipe", "sft_optim.learning_rate=2e-4")
    found = planned(cfg, tmp_path)
    assert found.arms["qa_alone"][1].qa_sft_optim.learning_rate == 2e-4
    assert found.arms["ramp_first"][1].qa_sft_optim == cfg.qa_sft_optim
    asked = {name: own.eval.methods for name, (_, own) in found.arms.items()}
    by_itself = {"closed_book": ("closed_book",), "rag": ("rag",), "prompt": ("agent",)}
    assert asked == by_itself | dict.fromkeys(("qa_alone", "ramp_first"), ("agent",))
    assert {own.eval.examples for _, own in found.arms.values()} == {300}
    assert kinds(found, "prompt/0") == ["evaluate", "text", "tokenizer"]


def test_a_seed_moves_all_that_a_training_draws_and_no_text(parse, tmp_path):
    cfg = study.recipe(parse("ramp_first"))
    moved = made.with_seed(cfg, 2)
    assert made.with_seed(cfg, 0) == cfg
    seeds = [moved.seed, moved.sft.seed, moved.qa_sft.seed, moved.dapo.seed, moved.rollout.seed]
    assert seeds == [2] * 5
    last = dataclasses.replace(cfg, seed=2**32 - 1)
    assert made.with_seed(last, 2).seed == 1
    assert moved.ramp.seed == cfg.ramp.seed
    assert moved.eval.seed == cfg.eval.seed


def test_fingerprints_tell_what_decides_from_what_does_not(parse, tmp_path):
    def names(*overrides):
        return set(planned(parse("curriculum", *overrides), tmp_path).workshop.all)

    before = names()
    assert names("checkpoint.every=7", "survival.step_factor=5", "sft.log_every=3") == before
    fewer = names("eval.examples=30")
    assert set(before - fewer) == {n for n in before if n.startswith("evaluate-")}
    assert not names("ramp.seed=5") & before


def test_what_decides_which_updates_are_applied_is_in_the_name_of_a_training(parse, tmp_path):
    def names(*keys):
        given = [f"survival.{key}" for key in keys]
        return set(planned(parse("curriculum", "seeds=1", *given), tmp_path).workshop.all)

    before = names()
    trained = {n for n in before if n.startswith(("ramp_sft-", "evaluate-"))}
    skips, spikes = names("guard=skip"), names("spike_sigma=2")
    others = [skips, names("guard=skip", "max_skips=3"), spikes]
    others.append(names("spike_sigma=2", "spike_window=8"))
    assert [before - found for found in others] == [trained] * 4
    assert len(set().union(*others) - before) == 4 * len(trained)
    assert names("spike_window=8", "max_skips=3") == before  # of which nothing is asked then
    assert names("guard=skip", "spike_window=8") == skips
    assert names("spike_sigma=2", "max_skips=3") == spikes


def test_alarms_are_in_the_name_of_a_training_that_they_roll_back(parse, tmp_path):
    def trained(*overrides):
        found = planned(parse("reward", "seeds=1", *overrides), tmp_path)
        return [made.name for stages in found.trainings["recall"] for made in stages]

    sft, dapo = before = trained()
    assert trained("alarms.entropy=0.5", "alarms.action=stop", "alarms.rollback_lr=0.1") == before
    back = [trained("alarms.action=rollback", *more) for more in (
        (), ("alarms.entropy=0.5",), ("alarms.entropy=2.5",), ("alarms.steps=9",),
        ("alarms.rollbacks=9",), ("alarms.rollback_lr=0.1",),
    )]  # fmt: skip
    assert {name for name, _ in back} == {sft}
    assert len({dapo, *(name for _, name in back)}) == 1 + len(back)


def test_arms_apart_by_what_is_applied_are_two(parse, tmp_path):
    spike = "survival.spike_sigma=2 survival.guard=skip survival.spike_window=8"
    back = "alarms.entropy=2.5 alarms.action=rollback"
    for one, other in (
        ("ramp_sft", f"ramp_sft {spike}"),
        ("ramp_sft ramp_dapo alarms.entropy=0.5", f"ramp_sft ramp_dapo {back}"),
    ):
        arms = f"arms=('mixed: {one}', 'b: {other}')"
        planned(parse("curriculum", "seeds=1", arms), tmp_path)  # or says that both are the same


@pytest.mark.parametrize(
    "key",
    [
        "corpus.path={}", "corpus.questions={}", "clean.evaluation=('{}',)", "search.rerank={}",
        "clean.evaluation_passages={}", "eval.suites=('ramp','mine={}')", "init={}",
    ],
)  # fmt: skip
def test_a_files_content_decides_and_not_its_place(key, parse, tmp_path):
    """All of a text: a word in its middle that is as long as another. Of weights samples do."""
    name = key.partition("=")[0]

    def of(path):
        cfg = study.recipe(parse("curriculum", "corpus.path=x", key.format(path)))
        return made.settings(cfg, (name,))

    one, other = tmp_path / "one.jsonl", tmp_path / "moved" / "one.jsonl"
    other.parent.mkdir()
    write_passages(one, [Passage(f"{i}", f"T{i}", "Oslo is a town. " * 9) for i in range(2500)])
    other.write_bytes(one.read_bytes())
    assert of(one) == of(other)
    first, size = of(one), one.stat().st_size
    assert str(one) not in json.dumps(first)
    rows = one.read_text().splitlines(keepends=True)
    at = 0 if name in ("init", "search.rerank") else 700
    rows[at] = rows[at].replace("town", "city")
    one.write_text("".join(rows))
    assert one.stat().st_size == size
    assert of(one) != first


@pytest.mark.parametrize("name", studies.STUDIES)
@pytest.mark.parametrize("switch", ["", ",runlocal"])
def test_a_pretrained_model_has_its_own_sizes(name, switch, parse, tmp_path):
    cfg = parse(f"{name},smollm2-135m{switch}")
    assert (cfg.model.vocab_size, cfg.prompt.style, cfg.init[-5:]) == (49152, "chat", ".gguf")
    assert kinds(planned(cfg, tmp_path)).count("evaluate") == cfg.seeds * len(cfg.arms)


def test_masks_that_a_trained_arm_draws_wait_for_its_training(parse, tmp_path):
    found = planned(parse("masking", "seeds=2"), tmp_path)
    made = study.order(found)
    (text,) = [m for m in made if m.kind == "text" and m.waits]
    assert text.of == ["ppl/0", "ppl/1"]
    (cache,) = [m for m in made if m.kind == "cache" and m.waits]
    scorer = found.trainings["random"][0][0]
    trained = found.trainings["ppl"][0][0]
    assert made.index(scorer) < made.index(text) < made.index(cache) < made.index(trained)
    other = planned(parse("masking", "seeds=2", "sft.steps=7"), tmp_path)
    assert text.name not in other.workshop.all  # another training says something else


REFERENCES = [
    *((f"{name},runlocal", arm) for name, arms in ARMS.items() for arm in arms),
    *(("masking,smollm2-135m,runlocal", arm) for arm in ("random", "weighted", "ppl")),
]


@pytest.mark.parametrize(("name", "reference"), REFERENCES)
def test_any_arm_may_be_the_reference_or_is_refused(name, reference, parse, tmp_path, monkeypatch):
    """Its text is made by the model that its masks need, before anything is trained."""
    masked = []
    monkeypatch.setattr(quickstart, "make_demonstrations", lambda run, method: {})
    monkeypatch.setattr(made.steps, "make_index", lambda *given: {})
    monkeypatch.setattr(made, "leave_out_gold", lambda *given: 0)
    monkeypatch.setattr(
        quickstart, "make_ramp", lambda run: masked.append((run.cfg.ramp.strategy, run.ppl)) or {}
    )
    monkeypatch.setattr(quickstart.Run, "has_questions", True)
    cfg = parse(name, f"reference={reference}", f"workdir={tmp_path}")
    if (name, reference) == ("masking,runlocal", "ppl"):
        with pytest.raises(ConfigError) as told:
            study.check_config(cfg)
        assert str(told.value) == (
            "config.reference is 'ppl', whose spans the arm random measures (config.ppl_by) once "
            "it is trained, and all arms are trained with the reference's tokenizer and asked its "
            "items: name another arm, or give config.ppl_by the folder or file of a model"
        )
        return
    study.check_config(cfg)
    found = planned(cfg, tmp_path)
    first, *_ = study.order(found)
    assert (first.kind, f"{reference}/items" in first.of) == ("text", True)
    StageFolder(tmp_path).stage(first.name, lambda: first.make(found.workshop.at(first)))
    ((strategy, ppl),) = masked
    assert (strategy == "ppl") == (ppl is not None)
    assert ppl is None or ppl.init == cfg.init != ""


@pytest.mark.slow
@pytest.mark.usefixtures("one_device", "optimised")
def test_masks_of_the_references_text_may_be_of_a_model_of_yours(parse, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2,
             "num_kv_heads": 1, "head_dim": 16, "vocab_size": 400}  # fmt: skip
    train_bpe(["Oslo is a town in Norway."] * 3, tmp_path / "tokenizer", 400)
    model = to_dataclass(ModelConfig, common.MODELS["tiny"] | sizes)
    weights = Transformer(model, ComputeConfig("float32", "float32"), nnx.Rngs(0))
    hf.save(weights, tmp_path / "hf", tokenizer_dir=tmp_path / "tokenizer")
    given = (*TINY, "reference=ppl", f"ppl_by={tmp_path / 'hf'}")
    found = planned(parse("masking,runlocal", *given), tmp_path / "run")
    first, *_ = study.order(found)
    assert {"ppl/items", "ppl/0"} <= {*first.of}  # the arm's own text is the one that is asked
    first.make(found.workshop.at(first))
    data = found.workshop.at(first) / "data"
    assert read_jsonl(data / "ramp" / "heldout.jsonl", RampExample)


def test_own_trajectories_are_those_of_the_model_before(parse, tmp_path):
    found = planned(parse("self_taught", "seeds=2"), tmp_path)
    made = study.order(found)
    for seed in range(2):
        (samples,) = [m for m in made if m.kind == "samples" and f"self_taught/{seed}" in m.of]
        first, second = found.trainings["self_taught"][seed]
        assert first == found.trainings["static"][seed][0]
        assert made.index(first) < made.index(samples) < made.index(second)
        (cache,) = [m for m in made if m.kind == "cache" and m.waits and m.of == samples.of]
        assert made.index(samples) < made.index(cache) < made.index(second)
    fewer = planned(parse("self_taught", "seeds=2", "own_samples=2"), tmp_path)
    assert samples.name not in fewer.workshop.all
    content = planned(parse("self_taught", "seeds=2", "own_least=0"), tmp_path)
    assert samples.name not in content.workshop.all
    assert parse("self_taught,runlocal").own_least == 0


def test_a_pretrained_model_says_itself_how_hard_a_span_is(parse, tmp_path):
    found = planned(parse("masking,smollm2-135m"), tmp_path)
    assert not any(m.waits for m in study.order(found))


def test_another_judge_is_of_the_arm_that_it_pays_alone(parse, tmp_path):
    names = []
    for judge in ("one", "other"):
        cfg = parse("reward,judge", f"judge.model={judge}", "judge.base_url=http://localhost:1/v1")
        found = planned(cfg, tmp_path)
        names.append({arm: made[0].name for arm, made in found.evaluations.items()})
    first, second = names
    assert {arm for arm in first if first[arm] != second[arm]} == {"judge"}


# ---- bad input


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reference="], "config.reference is empty; it must name the arm .*: mixed, rising"),
        (["reference=mixd"], "config.reference is 'mixd', no arm; did you mean mixed"),
        (["arms=('a: ramp_sft',)"], "config.arms has 1 arm; a study compares two at least"),
        (["arms=('a: ramp_sft', 'a: ramp_sft')"], "config.arms has 'a' twice"),
        (["arms=('ramp_sft', 'b:')"], "'ramp_sft', which is not 'NAME: STAGE"),
        (["arms=('a: ramp_stf', 'mixed:')"], "a has the stage 'ramp_stf'; did you mean ramp_sft"),
        (["arms=('a: ramp_sft ramp_sft', 'mixed:')"], "a has a stage twice"),
        (
            ["arms=('a: ramp_sft sft.stepz=1', 'mixed:')"],
            "arms: a: --config.sft.stepz is not a flag; did you mean --config.sft.steps",
        ),
        (["arms=('a: seeds=1', 'mixed:')"], "a overrides seeds, which is of the whole study"),
        (
            ["arms=('a: ramp_sft ramp.seed=1', 'mixed: ramp_sft')"],
            r"a overrides ramp\.seed \(0 → 1\), which decides the articles that are held",
        ),
        (
            ["arms=('a: ramp_sft ramp.heldout_fraction=0.5', 'mixed: ramp_sft')"],
            r"a overrides ramp\.heldout_fraction \(0\.18 → 0\.5\), which",
        ),
        (
            ["search.index=x", "arms=('a: ramp_sft gold_left_out=0.1', 'mixed: ramp_sft')"],
            "a has gold_left_out=0.1, and search.index names an index that lacks none of these",
        ),
        (
            ["arms=('a: ramp_sft gold_left_out=.1 search.kind=http search.url=x', 'mixed:')"],
            "a has gold_left_out=0.1, and search.kind=http names an index",
        ),
        (["arms=('a: eval.methods=rag,agent', 'mixed:')"], "a is evaluated by 2 methods"),
        (["arms=('a: eval.suites=ramp', 'mixed:')"], "all arms are asked the same items"),
        (
            ["arms=('a: ramp_sft ramp.strategy=ppl', 'mixed:')"],
            r"config.ppl_by is '', and ramp.strategy ppl needs a model .* before \(none\), or",
        ),
        (
            ["ppl_by=mixd", "arms=('mixed: ramp_sft', 'a: ramp_sft ramp.strategy=ppl')"],
            r"config.ppl_by is 'mixd', and ramp.strategy ppl needs .* before \(mixed\), or",
        ),
        (
            ["metrics=('answer_token',)"],
            "config.metrics has 'answer_token', which no item has",
        ),
        (["eval.suites=('rmap',)"], "mixed: config.eval.suites has 'rmap'; did you mean ramp"),
        (
            ["eval.suite_examples=('ramp',)"],
            "mixed: config.eval.suite_examples has 'ramp'; it",
        ),
        (["arms=('a: eval.methods=agnt', 'mixed:')"], "a: config.eval.methods has 'agnt'; did you"),
        (["arms=('a: ramp_sft', 'mixed: ramp_sft')"], "mixed has the stages and settings of a, so"),
        (
            ["arms=('a: ramp_dapo dapo.dual_clip=0.5', 'mixed:')"],
            "a: ramp_dapo: config.dapo.dual_clip is 0.5; it must be above 1",
        ),
        (
            ["arms=('a: qa_dapo qa_dapo.reward=judge', 'mixed:')"],
            "a: qa_dapo: config.judge.base_url is empty",
        ),
        (["arms=('a: qa_sft qa_sft.batch_size=0', 'mixed:')"], "config.qa_sft.batch_size is 0"),
        (
            ["lessons.by=gated", "heldout_points=0"],
            "mixed: ramp_sft: config.lessons.by is gated, and",
        ),
        (["alarms.plateau=3", "heldout_points=0"], "config.alarms.plateau is 3, and config.heldou"),
        (
            ["rollout.max_len=9000"],
            "config.rollout.max_len of mixed is 9000, and the model's context",
        ),
        (["lessons.by=gated", "lessons.threshold=2"], "config.lessons.threshold is 2, a gate that"),
        (
            [
                "arms=('a: ramp_sft lessons.by=gated lessons.floor=900 sft.steps=1000', 'mixed:')",
                "sft.curriculum=0:ramp_sft_upto1,500:ramp_sft_mixed",
            ],
            "a: ramp_sft: config.lessons: 2 lessons of at least 1000 steps .* and a run of 1000",
        ),
        (["costs=('stf=1',)"], "config.costs has 'stf=1'; did you mean sft"),
        (["costs=('sft=fast',)"], "it must be sft=SECONDS, of 1,000 tokens of rows"),
        (["costs=('sft=-1',)"], "its seconds must be finite, at least 0"),
        (["costs=('sft=inf',)"], "its seconds must be finite, at least 0"),
        (["arms=('a: gold_left_out=1.5', 'mixed:')"], "a: config.gold_left_out is 1.5"),
        (
            ["arms=('a: ramp_sft ramp_dapo method=rag', 'mixed:')"],
            "config.method is 'rag' in a, whose stage ramp_dapo samples an agent",
        ),
        (
            ["arms=('a: ramp_sft method=rag', 'mixed:')"],
            r"config.method is 'rag' in a, and its curve \(config.heldout_points=8\) is of an",
        ),
        (["arms=('mixed:', 'a: ramp_sft')"], "mixed trains nothing, and config.init is empty: ran"),
        (
            ["arms=('a: ramp_sft sft.steps={sft.stepz//2}', 'mixed:')"],
            r"a has {sft.stepz//2}, which is to be .* \+ - \* //: 'sft.stepz' is no key; did you m",
        ),
        (["arms=('a: sft.steps={sft.curriculum}', 'mixed:')"], "sft.curriculum is '0:ramp_sft_u"),
        (["arms=('a: sft.steps={sft.steps/2}', 'mixed:')"], "'sft.steps / 2' is no key"),
        (["arms=('a: sft.steps={sft.steps//0}', 'mixed:')"], "a has {.*: it is no term"),
        (["arms=('a: sft.steps={2*}', 'mixed:')"], "it is no term"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_is_made(
    overrides, said, parse, tmp_path
):
    cfg = dataclasses.replace(parse("curriculum", *overrides), workdir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=said) as error:
        study.run(cfg)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_lessons_without_records_are_refused_before_the_first_training(parse, tmp_path):
    arms = "('mixed: ramp_sft sft.curriculum=0:ramp_sft_k1', 'b: ramp_sft sft.curriculum=0:{}')"
    for lesson, said in (
        (
            "ramp_sft_k9",
            "curriculum '0:ramp_sft_k9': the cache has no .*; nearest is 'ramp_sft_k1'",
        ),
        (
            "ramp_k1",
            "curriculum: mixture 'ramp_k1' has no 'sft' records in split 'train'; choices:",
        ),
    ):
        found = planned(parse("curriculum", f"arms={arms.format(lesson)}", "seeds=1"), tmp_path)
        (cache,) = [m for m in found.workshop.all.values() if m.kind == "cache"]
        folder = found.workshop.at(cache) / "cache"
        found.workshop.check_lessons()  # the cache is not there yet
        records = sft_records("ramp_sft_k1", 3, 0)
        about = {"kind": "sft", "max_len": 39, "made_from": "x"}
        split = write_split(folder, "ramp_sft_k1", "train", records, **about)
        tasks = {"ramp_sft_k1": {"train": split}, "ramp_k1": {}}
        Manifest(folder, "s", "f00d", 10, 0, 0, "minimal", tasks, {}).save()
        with pytest.raises(ConfigError, match=rf"^config\.arms: b: ramp_sft: {said}"):
            found.workshop.check_lessons()
        (folder / "manifest.json").unlink()


def test_an_unknown_study_names_the_nearest(parse):
    with pytest.raises(ConfigError, match=r"'curiculum' is not one of .*did you mean curriculum\?"):
        parse("curiculum")
    with pytest.raises(ConfigError, match=r"one study at a time; .* names curriculum, reward"):
        parse("reward,curriculum")
    with pytest.raises(ConfigError, match="judge is an arm of the study reward"):
        parse("masking,judge")
    with pytest.raises(ConfigError, match="dapo is an arm of the study recipe"):
        parse("dapo")
    with pytest.raises(
        ConfigError, match="gpu is of a pretrained model, and 'reward,gpu' names no"
    ):
        parse("reward,gpu")
    assert parse("reward,judge").arms[-1] == "judge: ramp_sft ramp_dapo dapo.reward=judge"
    assert parse("recipe,dapo").arms[-1].startswith("ramp_first_dapo: ramp_sft qa_sft qa_dapo sft.")
    assert parse("ramp_sft").question.endswith("with the whole paragraph, or to answer by heart.")


# ---- what it takes


def test_a_plan_says_what_is_needed_and_makes_nothing(parse, tmp_path, capsys):
    cfg = parse("ramp_first", "plan_only=True", f"workdir={tmp_path / 'run'}")
    study.run(cfg)
    said = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "run").exists()
    rows = {row[0]: row[1:] for row in map(str.split, said[2:10])}
    updates, tokens = 12 * studies.UPDATES, 12 * studies.UPDATES * 8 * 288
    assert rows["ramp_sft"][0] == "9"  # three arms of three seeds
    assert rows["evaluate"][:2] == ["12", "0"]
    assert rows["all"][:4] == ["36", "0", f"{updates:,}", f"{tokens:,}"]
    assert said[-1].startswith("seconds of a unit, as given: text 22, tokenizer 3, cache 26, sft")


def test_a_plan_of_one_seed_says_what_intervals_will_be_over(parse, tmp_path):
    stages = StageFolder(tmp_path)
    one, three = (study.needs(planned(parse("reward", f"seeds={n}"), tmp_path), stages)[0]
                  for n in (1, 3))  # fmt: skip
    assert one.startswith("3 arms, 1 seed (intervals will be over items alone), in ")
    assert three.startswith("3 arms, 3 seeds, in ")


def test_a_plan_of_a_pods_model_needs_no_weights(parse, tmp_path, capsys):
    cfg = parse("reward,qwen2.5-7b", "plan_only=True", f"workdir={tmp_path / 'run'}")
    study.run(cfg)
    said = capsys.readouterr().out
    weights_and_moments = 7_615_616_512 * (4 + 8)
    (size,) = re.findall(r"disk: ([\d.]+) GiB", said)
    assert float(size) * 2**30 == pytest.approx(9 * weights_and_moments, rel=1e-3)
    assert "not known, to be given as config.costs=KIND=SECONDS: text is of a text" in said


def test_a_plan_of_the_recipe_says_its_minutes(parse, tmp_path, capsys):
    given = ("sft.steps=240", "plan_only=True", f"workdir={tmp_path / 'run'}")
    study.run(parse("recipe,dapo", *given))
    said = capsys.readouterr().out
    rows = {row[0]: row[1:] for row in map(str.split, said.splitlines()[2:])}
    assert rows["evaluate"][0] == "6"
    assert rows["qa_sft"][2] == "360"
    minutes = {name: float(row[-1]) for name, row in rows.items() if name in ("ramp_sft", "qa_sft")}
    update = dict(cost.split("=") for cost in studies.SMOLLM2_COSTS)["sft"]
    for name, steps in (("ramp_sft", 120), ("qa_sft", 360)):
        assert minutes[name] == pytest.approx(steps * 2.048 * float(update) / 60, abs=0.05)
    assert "not known" not in said


def test_what_is_done_tells_the_costs_of_what_is_not(parse, tmp_path):
    cfg = parse("curriculum", "costs=('sft=1', 'cache=7')", f"workdir={tmp_path}")
    found = planned(cfg, tmp_path)
    stages = StageFolder(found.workshop.folder)
    assert study.costs(found, stages) == {"sft": 1.0, "cache": 7.0}
    training = found.trainings["mixed"][0][0]
    thousands = studies.UPDATES * 8 * 288 / 1000
    stages.stage(training.name, lambda: {"seconds": 2 * thousands})
    assert study.costs(found, stages) == {"sft": pytest.approx(2.0), "cache": 7.0}


# ---- making


def test_what_is_done_is_not_made_again_and_a_stop_goes_on(parse, tmp_path):
    calls = []

    def make(name, fails=False):
        def work(folder):
            calls.append(name)
            if fails and calls.count(name) == 1:
                raise KeyboardInterrupt
            return {"at": folder.name}

        return Made(name, "0", work, Work((("text", 1),)), of=["arm/0"])

    all_made = [make("text"), make("ramp_sft", fails=True), make("evaluate")]
    workshop = made.Workshop(tmp_path, Usage(tmp_path))
    workshop.all = {m.name: m for m in all_made}
    later = Made("evaluate", "later", dict, Work((("evaluate", 1),)))  # no results are written
    found = study.Study(parse("curriculum"), {}, workshop, {"arm": [later] * 3}, {})
    with pytest.raises(KeyboardInterrupt):
        study.make_all(found, StageFolder(tmp_path))
    study.make_all(found, StageFolder(tmp_path))
    assert calls == ["text", "ramp_sft", "ramp_sft", "evaluate"]
    assert json.loads((tmp_path / "stages" / "text-0.json").read_text())["at"] == "text-0"


def test_a_training_whose_weights_another_study_has_elsewhere_is_refused(parse, tmp_path):
    """Not where they were moved, nor where they are gone and nothing needs them any more."""

    def of(folder):
        flags = f"made={tmp_path / 'made'}", f"checkpoint.folder={tmp_path / folder}"
        return planned(parse("curriculum", *flags), tmp_path / "run")

    theirs, ours = (of(name).trainings["mixed"][0][0] for name in ("theirs", "ours"))
    assert theirs.name == ours.name
    assert theirs.weights == f"{tmp_path}/theirs/{theirs.name}/ramp_sft"
    at = of("ours").workshop.at(ours)
    record = {"config": {"checkpoint": {"folder": theirs.weights}}, "content": {}, "sessions": []}
    write_json(at / "ramp_sft" / "run.json", record)
    of("ours").workshop.check_weights(ours)
    checkpoint_at(theirs.weights)
    of("theirs").workshop.check_weights(theirs)
    with pytest.raises(ConfigError) as told:
        study.make_all(of("ours"), StageFolder(tmp_path / "made"))
    assert str(told.value) == (
        f"{at} is a training whose weights lie in {theirs.weights}, and this study looks for them "
        f"in {ours.weights}: give the config.checkpoint.folder of the study that made it, or "
        "another config.made"
    )
    checkpoint_at(ours.weights)
    of("ours").workshop.check_weights(ours)


def checkpoint_at(folder):
    state = TrainState(jnp.int32(1), {"w": jnp.zeros(4)}, ())
    with Checkpointer(folder, CheckpointConfig(every=1), TINY_QWEN2) as checkpointer:
        checkpointer.save(1, state, {})


@pytest.mark.usefixtures("one_device")
def test_a_study_that_another_process_makes_is_left_alone(parse, tmp_path):
    cfg = parse("curriculum", f"workdir={tmp_path}")
    with held(tmp_path) as other, pytest.raises(BeingWrittenError, match=f"process {other.pid} on"):
        study.run(cfg)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("one_device")
def test_what_a_study_of_the_same_folder_makes_is_waited_for(parse, tmp_path, monkeypatch):
    cfg = parse("curriculum", f"made={tmp_path / 'made'}")
    asked = []

    def note(folder, waits=False):
        asked.append((folder, waits))
        raise KeyboardInterrupt

    monkeypatch.setattr(stage_folder, "FolderLock", note)
    (text, *_) = study.order(planned(cfg, tmp_path))
    with pytest.raises(KeyboardInterrupt):
        study.run(dataclasses.replace(cfg, workdir=str(tmp_path / "run")))
    assert asked == [(tmp_path / "made" / text.name, True)]


def test_a_suite_that_no_text_has_and_items_that_an_arm_lost_are_told(parse, tmp_path):
    """Questions that the text has not; of the second seed of `rising` all masked paragraphs."""
    found = planned(parse("curriculum", "seeds=2", "eval.bootstrap=20"), tmp_path)
    for arm, evaluations in found.evaluations.items():
        for seed, one in enumerate(evaluations):
            ids = [] if (arm, seed) == ("rising", 1) else ["a", "b"]
            evaluated(found.workshop.at(one) / "eval" / "model", ids)
    results, absent = study.compared(found, 2)
    assert absent == [
        "questions was not asked: the text has no such items",
        "rising has no item of ramp that has span_recall in every seed, and no row",
    ]
    assert list(results) == ["ramp"]
    assert list(results["ramp"]["span_recall"]) == ["mixed", "gated"]
    _, first = study.compared(found, 1)
    assert first == absent[:1]


def test_a_training_that_never_updated_the_weights_is_told(parse, tmp_path):
    found = planned(parse("reward", "seeds=2"), tmp_path)
    stages = StageFolder(tmp_path)
    still = found.trainings["penalised"][1][1]
    for made_one in found.workshop.all.values():
        updates = {made_one.kind: int(made_one != still)}
        stages.records[made_one.name] = {"seconds": 1.0, "updates": updates}
    said = "penalised, seed 1: ramp_dapo never updated the weights, and left the model as it was"
    assert study.unmoved(found, stages, 2) == [said]
    assert study.unmoved(found, stages, 1) == []


def evaluated(folder, ids):
    """What evaluate leaves of the suite ramp: its name and metric, and a row of each item."""
    write_json(folder / "eval.json", {"suites": {"ramp": {"metric": "span_recall"}}})
    said = [{"author": "policy", "text": "<answer>no</answer>"}]
    row = {"suite": "ramp", "method": "agent", "opening": "", "segments": said}
    row |= {"status": "answered", "scores": {"span_recall": 0.5}, "answer": "no"}
    asked = {"dataset": "d", "question": "Who?", "answers": ["x"]}
    lines = [json.dumps(row | {"example": asked | {"id": name}}) for name in ids]
    write_lines(folder / "trajectories.jsonl", lines)


def test_lessons_decide_where_a_curriculum_has_several(parse, tmp_path):
    def names(*overrides):
        found = planned(parse("curriculum", "seeds=1", *overrides), tmp_path)
        return {arm: made[0].name for arm, made in found.evaluations.items()}

    before = names()
    gate = planned(parse("curriculum"), tmp_path).arms["gated"][1].lessons
    assert (gate.by, gate.ceiling) == ("gated", 400)
    kept = names("lessons.keep_earlier=0.2")
    assert kept["mixed"] == before["mixed"]  # one lesson has none before it
    assert (kept["rising"] != before["rising"], kept["gated"] != before["gated"]) == (True, True)


def test_more_seeds_go_on_in_the_same_folder(parse, tmp_path):
    run_record.resume(tmp_path, parse("curriculum", "seeds=1"))
    run_record.resume(tmp_path, parse("curriculum", "question=Which?"))
    with pytest.raises(ConfigError, match="reference: 'mixed' → 'rising'"):
        run_record.resume(tmp_path, parse("curriculum", "reference=rising"))


def test_the_table_says_what_was_run(parse, tmp_path):
    own = ("corpus.path=wiki.jsonl", "corpus.questions=asked.jsonl", "eval.examples=30")
    given = ("sft.steps=8", "dapo.steps=5", "eval.temperature=0.7")
    ran = study.what_was_run(planned(parse("reward", *own, *given), tmp_path))
    assert ran[:3] == [
        "model: random weights (qwen2, 3 layers of 128)",
        "text: wiki.jsonl, questions of asked.jsonl",
        "asked: at most 30 of ramp, at temperature 0.7",
    ]
    assert re.fullmatch(
        r"made with: masksearch_jax \S+, jax \S+, (\d+ × cpu|no device yet)", ran[3]
    )
    assert ran[4:6] == [
        "arm sft: ramp_sft of 8 steps",
        "arm recall: ramp_sft of 8 steps, ramp_dapo of 5 steps; dapo.reward=recall",
    ]
    _, text, *_ = study.what_was_run(planned(parse("curriculum"), tmp_path))
    assert text == "text: the built-in atlas of facts"
    ran = study.what_was_run(planned(parse("recipe"), tmp_path))
    assert ran[4] == (
        "arm closed_book: no training; eval.methods=closed_book eval.whole_replies=True"
    )


def test_gold_passages_are_left_out_by_their_share_and_nested(tmp_path):
    passages = [Passage(f"p{i}", "Oslo", "Oslo is a town.") for i in range(40)]
    write_passages(tmp_path / "passages.jsonl", passages)
    asked = [QAExample(f"q{i}", "d", "Where?", ("x",), gold=(f"p{i}",)) for i in range(20)]
    (tmp_path / "questions").mkdir()
    write_jsonl(tmp_path / "questions" / "train.jsonl", asked[:10])
    write_jsonl(tmp_path / "questions" / "heldout.jsonl", asked[10:])
    absent = []
    for share, count in ((0.1, 2), (0.5, 10)):
        assert made.leave_out_gold(tmp_path, tmp_path / "thinned", share) == count
        kept = read_passages(tmp_path / "thinned" / "passages.jsonl", max_bad_fraction=0.0)
        absent.append({p.id for p in passages} - {p.id for p in kept})
        assert len(absent[-1]) == count
        assert absent[-1] <= {f"p{i}" for i in range(20)}
    assert absent[0] < absent[1]


def test_gold_that_no_question_names_cannot_be_left_out(tmp_path):
    write_passages(tmp_path / "passages.jsonl", [Passage("p", "Oslo", "Oslo is a town.")])
    with pytest.raises(ConfigError, match=r"gold_left_out is 0\.1, and no question of .* names"):
        made.leave_out_gold(tmp_path, tmp_path / "thinned", 0.1)


# ---- whole


TINY = (
    *("eval.examples=4", "eval.bootstrap=50", "rollout.slots=4", "rollout.max_new_tokens=48"),
    *("ramp.max_examples=400", "demonstrations=60", "question_demonstrations=20"),
    *("ramp.cities=60", "model.num_layers=1", "heldout_examples=1", "ramp.statements=True"),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """What tiny studies have in common, which the first of them makes."""
    return tmp_path_factory.mktemp("made")


@pytest.mark.slow
@pytest.mark.usefixtures("one_device", "optimised")
def test_a_tiny_study_ends_with_its_table_and_goes_on_with_more_seeds(
    parse, shop, tmp_path, capsys
):
    """One seed, then two in the same folder: what the first made is not made again."""
    cfg = parse("controls,runlocal", *TINY, f"made={shop}")
    cfg = dataclasses.replace(cfg, arms=cfg.arms[::3])
    study.run(dataclasses.replace(cfg, seeds=1, workdir=str(tmp_path / "one")))
    said = capsys.readouterr()
    assert "1 seed is done; 95% intervals are over items alone: there is one seed" in said.out
    told = json.loads((tmp_path / "one" / "study.json").read_text())
    *_, of, command = said.out.splitlines()
    assert of == "ten trajectories of statements_alone/0, to be read on a page:"
    (folder,) = told["arms"]["statements_alone"]["evaluations"]
    argv = ["report", f"{folder}/eval/model", "--config.trajectories=10"]
    assert command.split()[3:] == argv[1:]
    cli.run(report.run, report.ReportConfig, report.arguments(argv))
    assert (Path(folder) / "eval" / "model" / "report.html").is_file()
    assert list(told["arms"]) == ["search", "statements_alone"]
    assert list(told["results"]["ramp"]) == ["span_recall", "searches"]
    assert list(told["results"]["statements"]) == ["em", "searches"]
    assert told["results"]["ramp"]["span_recall"]["search"]["mean"]["n"] == 4
    made_first = {name: one["seconds"] for name, one in told["made"].items()}
    study.run(dataclasses.replace(cfg, workdir=str(tmp_path / "two")))
    told = json.loads((tmp_path / "two" / "study.json").read_text())
    assert made_first.items() <= {n: one["seconds"] for n, one in told["made"].items()}.items()
    assert len(told["made"]) == len(made_first) + 5  # three trainings, two evaluations
    curve, *others = told["curves"]
    assert (curve["stage"], curve["arms"]) == ("ramp_sft", ["search"])
    assert [c["arms"] for c in others] == [curve["arms"], ["statements_alone"]]
    assert curve["metrics"]["heldout_span_recall"]["steps"] == [1, 2]
    page = (tmp_path / "two" / "study.html").read_text()
    assert "2 of 2 seeds are done; 95% intervals are over items and seeds" in page
    assert "<svg" in page


@pytest.mark.slow
@pytest.mark.usefixtures("one_device", "optimised")
def test_a_study_goes_through_both_stages_and_on_where_it_was_stopped(
    parse, shop, tmp_path, monkeypatch
):
    """Questions alone and after RAMP, to DAPO; stopped in the midst of the last stage's steps.

    A judge at an endpoint pays, which is asked at the start about an answer that is right.
    """
    cfg = parse("ramp_first,runlocal", *TINY, "checkpoint.every=1", f"made={shop}")
    none, _, half, _ = cfg.arms
    arms = (f"{none} qa_dapo qa_dapo.steps=2 qa_dapo.reward=judge", half)
    cfg = dataclasses.replace(cfg, arms=arms, workdir=str(tmp_path / "run"))
    step, taken = group_sampler.GroupSampler.step, []

    def stopped(self, model, version):
        taken.append(version)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return step(self, model, version)

    monkeypatch.setattr(group_sampler.GroupSampler, "step", stopped)
    with Endpoint(lambda request: Answer('{"reason": "so", "verdict": "correct"}')) as endpoint:
        calls = {"base_url": endpoint.url, "cache": str(tmp_path / "replies")}
        cfg = dataclasses.replace(cfg, judge=dataclasses.replace(cfg.judge, **calls))
        with pytest.raises(KeyboardInterrupt):
            study.run(cfg)
        assert not (tmp_path / "run" / "study.json").exists()
        study.run(cfg)
        asked = [request["messages"][-1]["content"] for request in endpoint.paid]
    assert len(asked) == len(set(asked)) > 0
    known, _, answer = asked[0].partition("Known:")[2].partition("Answer:")
    assert known.split()[0] in answer
    assert taken == [0, 1, 1, 0, 1]  # the stopped step again, then the other seed's two
    told = json.loads((tmp_path / "run" / "study.json").read_text())
    assert (told["seeds"], told["arms"]["none"]["stages"]) == (2, ["qa_sft", "qa_dapo"])
    assert set(told["results"]["questions"]) == {"recall"}
    by_stage = {(c["stage"], *c["arms"]): c["metrics"] for c in told["curves"]}
    assert list(by_stage) == [
        *(("qa_sft", "none"), ("qa_dapo", "none"), ("ramp_sft", "half"), ("qa_sft", "half")),
    ]
    assert by_stage["qa_dapo", "none"]["reward"]["steps"] == [1, 2]
    assert by_stage["qa_sft", "half"]["heldout_questions_recall"]["steps"] == [1, 2]
    table = (tmp_path / "run" / "study.txt").read_text()
    assert all(line in table.splitlines() for line in told["ran"])
    assert all(note in table for note in told["notes"])
    assert "2 of 2 seeds are done; 95% intervals are over items and seeds" in table


@pytest.mark.slow
@pytest.mark.usefixtures("one_device", "optimised")
def test_a_tiny_study_learns_from_what_its_first_arm_finds_hard_and_samples(parse, shop, tmp_path):
    tiny = (*TINY, f"made={shop}", f"workdir={tmp_path}", "seeds=1", "heldout_points=0")
    cfg = parse("masking,runlocal", *tiny, "eval.suites=('ramp',)", "eval.examples=1")
    random, _, ppl = cfg.arms
    study.run(dataclasses.replace(cfg, arms=(random, ppl, "own: ramp_sft self_sft")))
    told = json.loads((tmp_path / "study.json").read_text())
    assert list(told["results"]["ramp"]["span_recall"]) == ["random", "ppl", "own"]

    # ---- masks
    texts = [shop / name / "data" for name in told["made"] if name.startswith("text-")]
    counts = [json.loads((text / "counts.json").read_text())["ramp"] for text in texts]
    assert counts[0]["in"] == counts[1]["in"]
    assert 0 < counts[1]["out"] <= counts[0]["out"]
    read = (text / "ramp" / "train.jsonl" for text in texts)
    masks = [{e.masked for e in read_jsonl(path, RampExample)} for path in read]
    assert masks[0] != masks[1]

    # ---- own trajectories
    (name,) = [name for name in told["made"] if name.startswith("samples-")]
    counts = json.loads((shop / "stages" / f"{name}.json").read_text())["data"]
    assert counts["own trajectories"]["in"] == 16
    teachers, all_shown = demonstrations(texts[0]), demonstrations(shop / name / "data")
    assert {d.id for d in teachers} <= {d.id for d in all_shown}
    assert len(all_shown) == len(teachers) + counts["own trajectories"]["out"]


def demonstrations(data):
    return read_jsonl(data / "demonstrations" / "train.jsonl", Demonstration)
