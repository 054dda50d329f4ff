"""Rewards of finished trajectories, from their text: answer score, format, accuracy. No jax.

Answers are read from what the policy wrote, never from search results. The paper (arXiv 2505.20285,
section 3.3) names both kinds; the formulas of penalty and mixing are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from masksearch_jax.core import markup, scoring
from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.types import Example, QAExample, RampExample, Segment, Trajectory

KINDS = ("recall", "f1", "penalised")


class RewardParts(NamedTuple):
    """`total` is what the policy is trained on; all lie in 0..1.

    `answer`: score of the answer by the configured kind. `format`: 1 when well-formed. `accuracy`:
    what decides whether a sample counts as right, the answer's score.
    """

    total: float
    answer: float
    format: float
    accuracy: float


def reward(example: Example, trajectory: Trajectory, cfg: DapoConfig) -> RewardParts:
    """The reward of a trajectory, by the kind of its example."""
    if isinstance(example, RampExample):
        return ramp_reward(example, trajectory.segments, cfg)
    return qa_reward(example, trajectory.segments, cfg)


def ramp_reward(example: RampExample, segments: Sequence[Segment], cfg: DapoConfig) -> RewardParts:
    """Scores of what stands in the slots: `recall`, or `penalised` slot by slot; `f1` is recall."""
    answer = read_answer(segments)
    if cfg.reward == "penalised":
        score = scoring.penalised_span_recall(example, answer, cfg.length_penalty)
    else:
        score = scoring.span_recall(example, answer)
    return _combine(score, segments, cfg)


def qa_reward(example: QAExample, segments: Sequence[Segment], cfg: DapoConfig) -> RewardParts:
    """Scores against the accepted answers: `f1` with numbers all or nothing, `penalised`, `recall`.

    `recall` is the paper's, and pays for whatever an answer holds besides the right one.
    """
    answer = read_answer(segments)
    if answer is None:
        return _combine(0.0, segments, cfg)
    if cfg.reward == "penalised":
        score = scoring.penalised_recall(answer, example.answers, cfg.length_penalty)
    elif cfg.reward == "f1":
        score = scoring.strict_f1(answer, example.answers)
    else:
        score = scoring.best_overlap(answer, example.answers).recall
    return _combine(score, segments, cfg)


def read_answer(segments: Sequence[Segment]) -> str | None:
    """The policy's answer; None unless its own text holds exactly one, closed and not empty."""
    text = "".join(s.text for s in segments if s.author == "policy")
    return markup.extract_answer(text) or None


def _combine(score: float, segments: Sequence[Segment], cfg: DapoConfig) -> RewardParts:
    """Mixes answer and format: (1 - format_weight) * answer + format_weight * format."""
    if cfg.reward not in KINDS:
        raise ValueError(f"dapo.reward is {cfg.reward!r}; choose one of {KINDS}")
    form = float(markup.is_well_formed(segments))
    total = (1 - cfg.format_weight) * score + cfg.format_weight * form
    return RewardParts(total, score, form, score)
