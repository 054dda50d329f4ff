"""Rewards of finished trajectories, from their text: answer score, format, accuracy. No jax.

Answers are read from what the policy wrote, never from search results. The paper (arXiv 2505.20285,
section 3.3) names the kinds recall, penalised and judge; the formulas of penalty and mixing are
ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from masksearch_jax.core import markup, scoring
from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.types import Example, QAExample, RampExample, Segment, Trajectory

KINDS = ("recall", "f1", "penalised", "judge")

# (example, answer) -> verdict in 0..1; a verdict that could not be read must be 0.
Judge = Callable[[Example, str], float]


class RewardParts(NamedTuple):
    """`total` is what the policy is trained on; all lie in 0..1.

    `answer`: score of the answer by the configured kind. `format`: 1 when well-formed. `accuracy`:
    what decides whether a sample counts as right, the answer's score.
    """

    total: float
    answer: float
    format: float
    accuracy: float


def reward(
    example: Example, trajectory: Trajectory, cfg: DapoConfig, judge: Judge | None = None
) -> RewardParts:
    """The reward of a trajectory, by the kind of its example."""
    score = ramp_reward if isinstance(example, RampExample) else qa_reward
    return score(example, trajectory.segments, cfg, judge)


def ramp_reward(
    example: RampExample,
    segments: Sequence[Segment],
    cfg: DapoConfig,
    judge: Judge | None = None,
) -> RewardParts:
    """Scores of what stands in the slots: `recall`, or `penalised` slot by slot; `f1` is recall."""
    answer = read_answer(segments)
    if cfg.reward == "penalised":
        score = scoring.penalised_span_recall(example, answer, cfg.length_penalty)
    else:
        score = scoring.span_recall(example, answer)
    return _combine(example, answer, score, segments, cfg, judge)


def qa_reward(
    example: QAExample,
    segments: Sequence[Segment],
    cfg: DapoConfig,
    judge: Judge | None = None,
) -> RewardParts:
    """Scores against the accepted answers: `f1` with numbers all or nothing, `penalised`, `recall`.

    `recall` is the paper's, and pays for whatever an answer holds besides the right one.
    """
    answer = read_answer(segments) or ""
    if cfg.reward == "penalised":
        score = scoring.penalised_recall(answer, example.answers, cfg.length_penalty)
    elif cfg.reward == "f1":
        score = scoring.strict_f1(answer, example.answers)
    else:
        score = scoring.best_overlap(answer, example.answers).recall
    return _combine(example, answer or None, score, segments, cfg, judge)


def read_answer(segments: Sequence[Segment]) -> str | None:
    """The policy's answer; None unless its own text holds exactly one, closed and not empty."""
    text = "".join(s.text for s in segments if s.author == "policy")
    return markup.extract_answer(text) or None


def _combine(
    example: Example,
    answer: str | None,
    score: float,
    segments: Sequence[Segment],
    cfg: DapoConfig,
    judge: Judge | None,
) -> RewardParts:
    """Mixes answer and format: (1 - format_weight) * answer + format_weight * format."""
    if cfg.reward not in KINDS:
        raise ValueError(f"dapo.reward is {cfg.reward!r}; choose one of {KINDS}")
    if answer is None:
        score = 0.0
    elif cfg.reward == "judge":
        score = _judged(example, answer, judge)
    form = float(markup.is_well_formed(segments))
    total = (1 - cfg.format_weight) * score + cfg.format_weight * form
    return RewardParts(total, score, form, score)


def _judged(example: Example, answer: str, judge: Judge | None) -> float:
    if judge is None:
        raise ValueError(
            "dapo.reward is 'judge' but no judge was given; pass one, or choose recall or penalised"
        )
    verdict = float(judge(example, answer))
    if not 0.0 <= verdict <= 1.0:
        raise ValueError(f"example {example.id}: the judge returned {verdict}; it must lie in 0..1")
    return verdict
