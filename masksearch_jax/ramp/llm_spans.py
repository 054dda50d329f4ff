"""Salient spans named by a language model, located and checked here.

The model is a value: a function from passages to what it named in each, or to why it named nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from masksearch_jax.core import chinese
from masksearch_jax.core.types import Passage, Span
from masksearch_jax.ramp import spans

FAILED = "llm_failed"  # of a passage for which nobody answered: it is to be asked about again


class NoReply(NamedTuple):
    """In place of what the model names in a passage: it was not to be had."""

    error: str


Names = Sequence[tuple[str, str]]  # text and type of a passage's spans, as the model spells them
Named = Names | str | NoReply  # or the reason for none
Namer = Callable[[Sequence[Passage]], Sequence[Named]]


class LLMExtractor:
    """What a model names, where each name stands once in the paragraph and has one of our types.

    `first_error`: the first passage without a reply, and why; "" where all had one.
    """

    def __init__(self, name: Namer):
        self._name = name
        self.first_error = ""

    def find(self, passages: Sequence[Passage]) -> list[spans.Candidates]:
        answers = self._name(passages)
        for passage, answer in zip(passages, answers, strict=True):
            if isinstance(answer, NoReply) and not self.first_error:
                self.first_error = f"{passage.id}: {answer.error}"
        return [_located(p, a) for p, a in zip(passages, answers, strict=True)]


def _located(passage: Passage, named: Named) -> spans.Candidates:
    """Spans of the names in text order; names not in the text or of no type are counted.

    A name is in the text where it stands as whole words: "Iran" is not in "Iranian". `sift` refuses
    one that stands there twice.
    """
    if isinstance(named, NoReply):
        return spans.Candidates([], Counter([FAILED]))
    if isinstance(named, str):
        return spans.Candidates([], Counter([named]))
    refused: Counter[str] = Counter()
    proposed: dict[tuple[int, int], Span] = {}
    for text, kind in named:
        start = next(chinese.places(text, passage.text), None) if text else None
        if start is None:
            refused["not_in_text"] += 1
        elif kind not in spans.TYPES:
            refused["unknown_type"] += 1
        else:
            proposed[start, start + len(text)] = Span(start, start + len(text), text, kind)
    ordered = [proposed[place] for place in sorted(proposed)]
    return spans.sift(passage, ordered, refused)
