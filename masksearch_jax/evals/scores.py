"""What an item of a suite scores: answer, form, what was retrieved, and what it took."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

from masksearch_jax.core import markup, retrieval, scoring
from masksearch_jax.core.scoring import Rules
from masksearch_jax.core.types import SEARCH_ALONE, Example, RampExample, Segment, Trajectory
from masksearch_jax.evals.fanoutqa import Lemmatizer, accuracy
from masksearch_jax.evals.metrics import answer_metrics

# Measures of every item, after those of its answer; those of the source and, of a question,
# `gold_recall` where the passages that support the answer are known.
_COMMON = (
    *("answer_tokens", "format_rate", "searches", "turns", "tokens", "tool_failures"),
    *("source_hit", "source_first", "source_reciprocal_rank"),
)
RAMP_METRICS = ("span_recall", "precision", "f1", "em", *_COMMON)
QA_METRICS = ("recall", "precision", "f1", "em", *_COMMON, "gold_recall")
CALLS = "calls_"  # before the name of a tool, where there are others than search
FANOUTQA_METRICS = ("loose", "strict")  # of a question with an answer of several parts
_SHARES = (
    *("span_recall", "recall", "precision", "f1", "em", "strict", "format_rate"),
    *("source_hit", "source_first", "source_reciprocal_rank", "gold_recall"),
)


@dataclasses.dataclass(frozen=True)
class Scorer:
    """How the items of a suite are scored.

    lemmatize: for FanOutQA's accuracy. takes_whole: a reply without `<answer>` is the answer. ends:
    the texts of the tokens that end a reply, where the vocabulary is known.
    """

    rules: Rules
    lemmatize: Lemmatizer = str
    takes_whole: bool = False
    ends: tuple[str, ...] = ()


# As tokenizers spell the tokens that end a reply; DeepSeek's have fullwidth bars and a low block.
_END = r"<\|\w+\|>|<｜[\w▁]+｜>"


def bounds(metric: str) -> tuple[float, float]:
    """The least and the most that it can be: of shares 0 and 1, of counts 0 and nothing.

    `loose` is at most 1 and has no least: what a nested part lacks counts one by one.
    """
    if metric == "loose":
        return -math.inf, 1.0
    return 0.0, 1.0 if metric in _SHARES else math.inf


def scored_answer(trajectory: Trajectory, scorer: Scorer, opening: str = "") -> str | None:
    """What is scored: the policy's answer, or its whole reply where the scorer takes one."""
    answer = read_answer(trajectory, opening)
    if answer or not scorer.takes_whole or "<answer>" in trajectory.text_by("policy"):
        return answer
    ends = "|".join([_END, *map(re.escape, scorer.ends)])
    return re.sub(rf"(?:\s*(?:{ends}))+\s*$", "", trajectory.text_by("policy")).strip() or None


def read_answer(trajectory: Trajectory, opening: str = "") -> str | None:
    """The policy's answer; None unless its text, after `opening`, holds exactly one, not empty."""
    return markup.extract_answer(opening + trajectory.text_by("policy"), trajectory.tools) or None


def score(
    example: Example,
    trajectory: Trajectory,
    scorer: Scorer,
    opening: str = "",
    tool_failures: int = 0,
    tokens: int | None = None,
) -> dict[str, float]:
    """The metrics of one trajectory.

    RAMP: `span_recall` (core.scoring), `precision` and `f1` the means over the slots, `em` 1 where
    every fill is its span. Questions: `evals.metrics.answer_metrics`; with an answer of several
    parts `loose` and `strict` (evals.fanoutqa). Both: `answer_tokens`, words of the answer's normal
    form; `format_rate` 1 when well-formed; `searches`, calls of the search tool; `calls_NAME`, of
    each tool where there are others; `turns` that the policy wrote; `tokens` that it sampled;
    `tool_failures`, attempts before this one that ended for no fault of its own; `source_hit` 1
    when a search showed the passage that the example masks, or one that supports the answer;
    `source_first` 1 when that was the first passage shown, and `source_reciprocal_rank` 1 / its
    place among all that were; `gold_recall`, share of these that searches showed, by id, or by
    title where the question names articles alone.

    opening: what of its answer the prompt has written already. tokens: where not those sampled.
    """
    answer = scored_answer(trajectory, scorer, opening)
    if isinstance(example, RampExample):
        scores = _score_fills(example, answer, scorer.rules)
    else:
        scores = answer_metrics(answer, example.answers, scorer.rules)
        if example.parts:
            found = accuracy(example.parts, answer or "", scorer.lemmatize)
            scores |= {"loose": found.loose, "strict": found.strict}
    is_chinese = scorer.rules.is_chinese
    sampled = int(trajectory.sampled.sum()) if tokens is None else tokens
    segments, tools = list(opened(trajectory, opening)), trajectory.tools
    scores |= {
        "answer_tokens": float(len(scoring.tokenise(answer or "", is_chinese))),
        "format_rate": float(markup.is_well_formed(segments, tools)),
        "searches": float(trajectory.searches),
        "turns": float(sum(s.author == "policy" for s in trajectory.segments)),
        "tokens": float(sampled),
        "tool_failures": float(tool_failures),
    }
    if tools != SEARCH_ALONE:
        calls = Counter(turn.tool for turn in trajectory.turns)
        scores |= {f"{CALLS}{name}": float(calls[name]) for name in tools}
    return scores | retrieval.sources_shown(example, trajectory.turns)


def slot_scores(
    example: RampExample, trajectory: Trajectory, scorer: Scorer, opening: str = ""
) -> list[float]:
    """Recall of each masked span in its slot, in text order."""
    return scoring.slot_recalls(example, scored_answer(trajectory, scorer, opening))


def opened(trajectory: Trajectory, opening: str) -> Iterator[Segment]:
    """The segments, the first that the policy wrote after what the prompt wrote of it."""
    for segment in trajectory.segments:
        if segment.author == "policy":
            yield Segment("policy", opening + segment.text)
            opening = ""
        else:
            yield segment


def _score_fills(example: RampExample, answer: str | None, rules: Rules) -> dict[str, float]:
    pairs = scoring.filled_spans(example, answer or "")
    each = [scoring.overlap(fill or "", gold, rules) for fill, gold in pairs]
    return {
        "span_recall": scoring.span_recall(example, answer),
        "precision": sum(found.precision for found in each) / example.k,
        "f1": sum(found.f1 for found in each) / example.k,
        "em": float(scoring.is_exact_answer(example, answer or "")),
    }
