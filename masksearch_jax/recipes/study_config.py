"""What a study is told, and what each of its arms makes of that."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.schema import key, share
from masksearch_jax.core.search_config import REMOTE
from masksearch_jax.data.methods import Taught
from masksearch_jax.evals import suites
from masksearch_jax.evals.items import check_methods
from masksearch_jax.evals.scores import FANOUTQA_METRICS, QA_METRICS, RAMP_METRICS
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.recipes.arms import Arm
from masksearch_jax.recipes.made import OfStudy
from masksearch_jax.recipes.recipe_config import RecipeRun
from masksearch_jax.runtime import overrides
from masksearch_jax.tools.registry import instructions_of

_OF_THE_SPLIT = ("seed", "heldout_fraction")  # keys of `ramp` that decide what is held out
# Keys that no arm may override: they are the study's own.
_OWN = ("arms", "reference", "seeds", "made", "workdir", "metrics", "cpu_devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRun(RecipeRun):
    """`study`: arms of an experiment, trained with several seeds and compared."""

    ARMS_SWITCH: ClassVar[bool] = True  # keys that do nothing by the study's own may do so in arms

    arms: tuple[str, ...] = key(
        (),
        (
            '"NAME: STAGE … KEY=VALUE …": trainings in order, of ramp_sft, ramp_dapo, qa_sft, '
            "qa_dapo, more_sft, self_sft, and what the arm overrides; {sft.steps//2} in it is half "
            "of what the study's key says."
        ),
    )
    reference: str = key("", "The arm that the others are compared with; needed.")
    question: str = key("", "What is asked, as the page and the table say it.", harmless=True)
    seeds: int = key(
        3, "Seeds of each arm; with one, intervals are over items alone.", harmless=True, least=1
    )
    metrics: tuple[str, ...] = key(
        (), "Shown besides each suite's own, such as answer_tokens or searches."
    )
    method: Taught = key(
        "agent",
        (
            "What demonstrations show and SFT teaches. agent: searches in turns; rag: an answer "
            "from one retrieval in the prompt; closed_book: an answer without any."
        ),
    )
    gold_left_out: float = share(
        0.0, "Share of the passages that questions' answers need that the index is without."
    )
    costs: tuple[str, ...] = key(
        (),
        (
            "KIND=SECONDS, for the plan until they are measured: of a text, a tokenizer, a cache, "
            "of 1,000 tokens of sft, of a trajectory of dapo, of an item of evaluate."
        ),
        harmless=True,
    )
    plan_only: bool = key(False, "Say what the study needs, and make nothing.", harmless=True)
    own_examples: int = key(
        1200, "Of self_sft: examples that the model before samples, of articles new to it.", least=1
    )
    own_samples: int = key(4, "Of self_sft: trajectories of each.", least=1)
    own_least: int = key(
        1, "Of self_sft: fewer new demonstrations among these end the study; 0: none do.", least=0
    )
    ppl_by: str = key(
        "",
        (
            "What says how hard a span is, for ramp.strategy=ppl: an arm before, by its first "
            "training; the folder or file of a model; empty: what training starts from, init."
        ),
    )
    made: str = key(
        "",
        "Folder of what arms have in common, which studies may share; empty: WORKDIR/made.",
        harmless=True,
    )


def arm_config(cfg: StudyRun, arm: Arm) -> StudyRun:
    """The study's config with what the arm overrides.

    Raises ConfigError for a key that there is not, that is the study's own, or a wrong value, and
    for an arm that is evaluated by more than one method.
    """
    for given in arm.overrides:
        name = given.partition("=")[0]
        if name.partition(".")[0] in _OWN:
            raise ConfigError(
                f"config.arms: {arm.name} overrides {name}, which is of the whole study"
            )
    try:
        found = overrides.override(cfg, arm.overrides)
    except ConfigError as error:
        raise ConfigError(f"config.arms: {arm.name}: {error}") from error
    if len(found.eval.methods) != 1:
        raise ConfigError(
            f"config.arms: {arm.name} is evaluated by {len(found.eval.methods)} methods "
            f"({', '.join(found.eval.methods)}); an arm has one, as in eval.methods=agent"
        )
    if (found.eval.suites, found.eval.seed) != (cfg.eval.suites, cfg.eval.seed):
        raise ConfigError(
            f"config.arms: {arm.name} overrides eval.suites or eval.seed, and all arms are asked "
            "the same items"
        )
    check_text(cfg, found, arm)
    if not 0 <= found.gold_left_out < 1:
        raise ConfigError(
            f"config.gold_left_out is {found.gold_left_out:g} in {arm.name}; it must lie in 0..1, "
            "below 1"
        )
    check_method(found, arm)
    try:
        suites.paths(found.eval, "the text's folder")
        check_methods(found.eval)
    except ConfigError as error:
        raise ConfigError(f"config.arms: {arm.name}: {error}") from error
    return found


def check_text(cfg: StudyRun, own: StudyRun, arm: Arm) -> None:
    """Raises ConfigError for an arm that would train on what all arms are asked, or search all."""
    for part in _OF_THE_SPLIT:
        asked, found = (getattr(config.ramp, part) for config in (cfg, own))
        if asked != found:
            raise ConfigError(
                f"config.arms: {arm.name} overrides ramp.{part} ({asked!r} → {found!r}), which "
                "decides the articles that are held out: the arm would train on what all arms are "
                f"asked; give it to the whole study, as --config.ramp.{part}={found!r}"
            )
    if own.gold_left_out and (own.search.index or own.search.kind in REMOTE):
        searched = "search.index" if own.search.index else f"search.kind={own.search.kind}"
        raise ConfigError(
            f"config.arms: {arm.name} has gold_left_out={own.gold_left_out:g}, and {searched} "
            "names an index that lacks none of these passages; leave one of the two out"
        )


def check_method(cfg: StudyRun, arm: Arm) -> None:
    """Raises ConfigError where an arm that is taught no agent needs one."""
    if cfg.method == "agent":
        return
    said = f"config.method is {cfg.method!r} in {arm.name}"
    if samples := [s for s in arm.stages if s.endswith("dapo") or s == "self_sft"]:
        raise ConfigError(
            f"{said}, whose stage {samples[0]} samples an agent; its stages must be of SFT alone"
        )
    if cfg.heldout_points:
        raise ConfigError(
            f"{said}, and its curve (config.heldout_points={cfg.heldout_points}) is of an agent; "
            "give the arm heldout_points=0"
        )


def check_metrics(cfg: StudyRun, arms: Sequence[StudyRun]) -> None:
    """Raises ConfigError for a metric that no item of any arm has."""
    tools = {about.name for arm in arms for about in instructions_of(arm.tools)}
    known = [*RAMP_METRICS, *QA_METRICS, *FANOUTQA_METRICS, *(f"calls_{name}" for name in tools)]
    for metric in cfg.metrics:
        if metric not in known:
            choices = nearest(metric, dict.fromkeys(known))
            raise ConfigError(f"config.metrics has {metric!r}, which no item has; {choices}")


def recipe(cfg: StudyRun) -> QuickstartRun:
    """The config of the quickstart's stages."""
    return QuickstartRun(**{f.name: getattr(cfg, f.name) for f in dataclasses.fields(RecipeRun)})


def of_study(cfg: StudyRun) -> OfStudy:
    """What an arm is told that no recipe has."""
    return OfStudy(*(getattr(cfg, name) for name in OfStudy._fields))
