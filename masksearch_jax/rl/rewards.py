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

KINDS = ("recall", "penalised")


class RewardParts(NamedTuple):
    """`total` is what the policy is trained on; all lie in 0..1.

    `answer`: score of the answer by the configured kind. `format`: 1 when well-formed. `accuracy`:
    the answer's score before any penalty, which decides whether a sample counts as right.
    """

    total: float
    answer: float
    format: float
    accuracy: float


def reward(example: Example, trajectory: Trajectory, cfg: DapoConfig) -> RewardParts:
    """The reward of a trajectory, by the kind of its example."""
    score = ramp_reward if isinstance(example, RampExample) else qa_reward
    return score(example, trajectory.segments, cfg)


def ramp_reward(example: RampExample, segments: Sequence[Segment], cfg: DapoConfig) -> RewardParts:
    """Span recall in the slots; the penalty counts answer words beyond the paragraph's.

    penalised = max(0, recall - length_penalty * excess / words of the gold spans).
    """
    answer = read_answer(segments)
    recall = scoring.span_recall(example, answer)
    excess = _words(answer) - _words(example.paragraph)
    gold = sum(_words(span.text) for span in example.spans)
    return _combine(answer, recall, excess / max(gold, 1), segments, cfg)


def qa_reward(example: QAExample, segments: Sequence[Segment], cfg: DapoConfig) -> RewardParts:
    """Token recall over the accepted answers; the penalty counts words beyond the longest of them.

    penalised = max(0, recall - length_penalty * excess / words of that answer).
    """
    answer = read_answer(segments)
    recall = scoring.best_overlap(answer or "", example.answers).recall
    gold = max(map(_words, example.answers))
    excess = (_words(answer) - gold) / max(gold, 1)
    return _combine(answer, recall, excess, segments, cfg)


def read_answer(segments: Sequence[Segment]) -> str | None:
    """The policy's answer; None unless its own text holds exactly one, closed and not empty."""
    text = "".join(s.text for s in segments if s.author == "policy")
    return markup.extract_answer(text) or None


def _combine(
    answer: str | None,
    recall: float,
    excess: float,
    segments: Sequence[Segment],
    cfg: DapoConfig,
) -> RewardParts:
    """Mixes answer and format: (1 - format_weight) * answer + format_weight * format."""
    accuracy = score = recall if answer is not None else 0.0
    if cfg.reward == "penalised":
        score = max(0.0, score - cfg.length_penalty * max(0.0, excess))
    elif cfg.reward != "recall":
        raise ValueError(f"dapo.reward is {cfg.reward!r}; choose one of {KINDS}")
    form = float(markup.is_well_formed(segments))
    total = (1 - cfg.format_weight) * score + cfg.format_weight * form
    return RewardParts(total, score, form, accuracy)


def _words(text: str | None) -> int:
    return len(scoring.tokenise(text or ""))
