"""Rewards of finished trajectories: answer score, format, what search has shown. No jax.

Answers are read from what the policy wrote, never from search results. The paper (arXiv 2505.20285,
section 3.3) names recall, its penalised form and a judge; the formulas of penalty and mixing are
ours.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

from masksearch_jax.core import markup, scoring
from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.reward_config import RewardConfig
from masksearch_jax.core.schema import check_idle
from masksearch_jax.core.types import SEARCH, Example, QAExample, RampExample, Trajectory
from masksearch_jax.core.user_code import import_function
from masksearch_jax.rl import turns

RULES = ("recall", "f1", "penalised")
KINDS = (*RULES, "judge")
KEY = "config.dapo.reward"

_LARGEST = (2 - 2**-23) * 2.0**127  # that float32 holds, in which rewards are trained on
_SIGN = re.compile(r"[^\w\s]")

# A function of a user's: the reward, or its terms by name with `total`; or a coroutine of either.
OwnReward = Callable[[Example, Trajectory], Any]


class Judge(Protocol):
    """Whether an answer is right; None where the judge's reply cannot be read.

    What it raises is an outage of the judge, of which nobody's answer is to blame. `check_known`
    raises UserError unless it calls the known answer of an example right. Beyond the share
    `max_unreadable` its verdicts are no scores; `forget_unreadable` then has them asked for anew,
    and tells why the last one could not be read.
    """

    max_unreadable: float

    async def __call__(self, example: Example, answer: str) -> bool | None: ...
    async def check_known(self, example: Example) -> None: ...
    async def forget_unreadable(self) -> str: ...


JUDGE_UNREADABLE = "judge_unreadable"


@dataclasses.dataclass(frozen=True)
class RewardTerms:
    """`total` trains, less the overlong penalty; the terms of our kinds lie in 0..1.

    `answer`: score of the answer by the configured kind. `format`: 1 when well-formed. `accuracy`:
    what decides whether a sample counts as right. `turns`: what each policy turn adds to the
    advantage of its tokens. `logged`: further figures, by name. `failure`: why there is no reward.
    A sample that is not `is_known` neither trains nor counts.
    """

    total: float
    answer: float
    format: float
    accuracy: float
    turns: tuple[float, ...] = ()
    logged: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failure: str = ""

    @property
    def is_known(self) -> bool:
        """Whether it says what the sample is worth: no failure, no verdict that cannot be read."""
        return not self.failure and not self.logged.get(JUDGE_UNREADABLE)


def no_reward(why: str) -> RewardTerms:
    """Of a sample that nobody could score."""
    return RewardTerms(0.0, 0.0, 0.0, 0.0, failure=why)


def check_reward(cfg: RewardConfig, max_turns: int, tools: Sequence[str] = ()) -> None:
    """Raises ConfigError for a reward that there is not, that nothing could earn, or pays nothing.

    tools: of the run, besides search.
    """
    if ":" in cfg.reward:
        own_reward(cfg)
    elif cfg.reward not in KINDS:
        choices = f"{', '.join(KINDS)} or package.module:function"
        raise ConfigError(f"{KEY} is {cfg.reward!r}, not {choices}; {nearest(cfg.reward, KINDS)}")
    if not 0 <= cfg.min_searches <= max_turns:
        raise ConfigError(
            f"config.dapo.min_searches is {cfg.min_searches}; it must lie in 0.."
            f"config.rollout.max_turns, {max_turns}"
        )
    because = f"dapo.reward={cfg.reward}"
    if ":" in cfg.reward:
        because += ": a function of yours returns the whole reward"
        instead = f"add it there, choose {', '.join(KINDS)}"
        own = {"coverage_weight": 0.0, "gold_hit_weight": 0.0, "format_weight": 0.0}
        check_idle(cfg, "config.dapo", because, instead, **own, min_searches=0, length_penalty=0.0)
    elif cfg.reward != "penalised":
        instead = "choose dapo.reward=penalised"
        check_idle(cfg, "config.dapo", because, instead, length_penalty=0.0)
    if not cfg.format_weight:
        instead = "pay for the format"
        check_idle(cfg, "config.dapo", "dapo.format_weight=0", instead, min_searches=0)
    if cfg.unreadable_call_penalty and not tools:
        raise ConfigError(
            f"config.dapo.unreadable_call_penalty is {cfg.unreadable_call_penalty:g}, which does "
            "nothing without another tool than search, of which every call is readable; choose "
            "config.tools, or 0"
        )


def own_reward(cfg: RewardConfig) -> OwnReward:
    """The user's function that `cfg.reward` names. Raises ConfigError."""
    return import_function(cfg.reward, KEY, ("example", "trajectory"))


def reward(example: Example, trajectory: Trajectory, cfg: RewardConfig) -> RewardTerms:
    """The reward of a trajectory by one of RULES, by the kind of its example."""
    if cfg.reward not in RULES:
        raise ValueError(f"{cfg.reward!r} is none of {', '.join(RULES)}")
    if isinstance(example, RampExample):
        terms = ramp_reward(example, trajectory, cfg)
    else:
        terms = qa_reward(example, trajectory, cfg)
    return _paid_for_search(_described(terms, example, trajectory, cfg), cfg)


def is_to_judge(answer: str | None) -> TypeGuard[str]:
    """Whether a judge is asked: what is no answer, or leaves masks, is wrong without."""
    return answer is not None and not markup.has_mask(answer)


def judged_reward(
    example: Example, trajectory: Trajectory, verdict: bool | None, cfg: RewardConfig
) -> RewardTerms:
    """The reward of a trajectory by what the judge said of its answer; None: nothing readable.

    logged: `judge_unreadable`, and `judge_agreement` with exact match, of what it was asked about.
    """
    answer, right = read_answer(trajectory), bool(verdict)
    terms = _combine(float(right), trajectory, cfg)
    terms = _paid_for_search(_described(terms, example, trajectory, cfg), cfg)
    if not is_to_judge(answer):
        return terms
    agrees = right == scoring.is_exact_answer(example, answer)
    said = {JUDGE_UNREADABLE: float(verdict is None), "judge_agreement": float(agrees)}
    return dataclasses.replace(terms, logged={**terms.logged, **said})


def own_terms(
    returned: Any, example: Example, trajectory: Trajectory, cfg: RewardConfig
) -> RewardTerms:
    """What a user's function returned, as terms: `total` as it is, the others logged.

    A term named `accuracy` decides which samples count as right; else `total` does. Raises
    TypeError for anything but a number or named numbers with `total`, ValueError for NaN,
    infinities and what float32 cannot hold.
    """
    named = returned._asdict() if hasattr(returned, "_asdict") else returned
    if not isinstance(named, Mapping):
        _check_number(named, "")
        named = {"total": named}
    for name, value in named.items():
        _check_number(value, f"{name} is ")
    if "total" not in named:
        raise TypeError(f"there is no total among the terms: {', '.join(map(str, named))}")
    values = {name: float(value) for name, value in named.items()}
    total = values.pop("total")
    accuracy = values.pop("accuracy", total)
    form = _format(trajectory, cfg)
    logged = {f"reward_{name}": value for name, value in values.items()}
    terms = RewardTerms(total, total, form, accuracy, logged=logged)
    return _described(terms, example, trajectory, cfg)


def _check_number(value: Any, name: str) -> None:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}{value!r:.80} ({type(value).__name__}), which is no number")
    size: Any = abs(value)  # an int beyond any float, too
    if _LARGEST < size < math.inf:
        raise ValueError(f"{name}{value!r:.40}, which float32 cannot hold: at most {_LARGEST:.3g}")
    if not math.isfinite(value):
        raise ValueError(f"{name}{float(value)}, which is not finite")


def ramp_reward(example: RampExample, trajectory: Trajectory, cfg: RewardConfig) -> RewardTerms:
    """Scores of what stands in the slots: `recall`, or `penalised` slot by slot; `f1` is recall.

    A slot pays by `penalised` as a question's answer does, with quantities all or nothing.
    """
    answer = read_answer(trajectory)
    if cfg.reward == "penalised":
        score = scoring.penalised_span_recall(example, answer, cfg.length_penalty)
    else:
        score = scoring.span_recall(example, answer)
    return _combine(score, trajectory, cfg)


def qa_reward(example: QAExample, trajectory: Trajectory, cfg: RewardConfig) -> RewardTerms:
    """Scores against the accepted answers: `f1` and `penalised` with quantities all or nothing.

    `recall` is the paper's, and pays for whatever an answer holds besides the right one.
    """
    answer = read_answer(trajectory)
    if answer is None:
        return _combine(0.0, trajectory, cfg)
    rules = scoring.rules_of(example)
    if cfg.reward == "penalised":
        score = scoring.penalised_recall(answer, example.answers, cfg.length_penalty, rules)
    elif cfg.reward == "f1":
        score = scoring.strict_f1(answer, example.answers, rules)
    else:
        score = scoring.best_overlap(answer, example.answers, rules).recall
    return _combine(score, trajectory, cfg)


def read_answer(trajectory: Trajectory) -> str | None:
    """The policy's answer; None unless its own text holds exactly one, closed and not blank."""
    answer = markup.extract_answer(trajectory.text_by("policy"), trajectory.tools)
    return None if answer is None or markup.is_blank(answer) else answer


def _combine(score: float, trajectory: Trajectory, cfg: RewardConfig) -> RewardTerms:
    """Mixes answer and format: (1 - format_weight) * answer + format_weight * format."""
    form = _format(trajectory, cfg)
    total = (1 - cfg.format_weight) * score + cfg.format_weight * form
    return RewardTerms(total, score, form, score)


def _format(trajectory: Trajectory, cfg: RewardConfig) -> float:
    tools = trajectory.tools
    stops = (markup.find_stop(s.text, tools) for s in trajectory.segments if s.author == "policy")
    searches = sum(stop is not None and stop.kind == SEARCH for stop in stops)
    is_well_formed = markup.is_well_formed(trajectory.segments, tools)
    return float(is_well_formed and searches >= cfg.min_searches)


def _described(
    terms: RewardTerms, example: Example, trajectory: Trajectory, cfg: RewardConfig
) -> RewardTerms:
    """The terms with what search has shown, and with the faults of the turns and their terms."""
    shown = {"coverage": coverage(example, trajectory), "gold_hit": gold_hit(example, trajectory)}
    known = {name: share for name, share in shown.items() if share is not None}
    faults = turns.faults(trajectory)
    logged = {**terms.logged, **known, **turns.totals(faults)}
    return dataclasses.replace(terms, turns=turns.terms(faults, cfg), logged=logged)


def _paid_for_search(terms: RewardTerms, cfg: RewardConfig) -> RewardTerms:
    weights = {"coverage": cfg.coverage_weight, "gold_hit": cfg.gold_hit_weight}
    extra = sum(weight * terms.logged.get(name, 0.0) for name, weight in weights.items())
    return dataclasses.replace(terms, total=terms.total + extra)


def coverage(example: Example, trajectory: Trajectory) -> float | None:
    """Share of what an answer needs that search results hold, in 0..1; None of nothing known.

    Of a masked paragraph: its spans. Of a question: the titles of the articles that support its
    answer; without titles, 1 for any accepted answer, and nothing known where the answer is to be
    computed. What other tools than search say does not count: it may be what they were asked.
    Compared by words, without articles.
    """
    shown = markup.shown_by_search(trajectory.segments, trajectory.tools)
    text = _spaced("\n".join(shown))

    def share(wanted: Sequence[str]) -> float | None:
        words = [w for w in map(_spaced, wanted) if w.strip()]
        return sum(w in text for w in words) / len(words) if words else None

    if isinstance(example, RampExample):
        return share([span.text for span in example.spans])
    if example.titles or example.calls:
        return share(example.titles)
    each = [share([answer]) for answer in example.answers]
    return max((found for found in each if found is not None), default=None)


def gold_hit(example: Example, trajectory: Trajectory) -> float | None:
    """Share of the passages known to hold the answer that search has shown; None of none known.

    Of a masked paragraph: the passage that it is of.
    """
    gold = (example.passage_id,) if isinstance(example, RampExample) else example.gold
    shown = {passage for turn in trajectory.turns for passage in turn.passage_ids}
    return sum(passage in shown for passage in gold) / len(gold) if gold else None


def _spaced(text: str) -> str:
    """Words with a space before and after each, so that one text is in another by whole words."""
    return f" {' '.join(scoring.tokenise(_SIGN.sub(' ', text)))} "
