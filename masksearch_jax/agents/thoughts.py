"""What the scripted teacher thinks: what is missing, where it looks, what it has found there.

Every sentence is put together from the example's spans, the text around its masks and the passages
that were shown. `Short` says next to nothing, for models of a short context.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Protocol

from masksearch_jax.agents import wordings
from masksearch_jax.core import chinese, markup
from masksearch_jax.core.scoring import is_verdict
from masksearch_jax.core.types import VERDICTS, Passage, QAExample, RampExample, Span

Observations = Sequence[Sequence[Passage]]  # what each search has shown, in order

_CUE_WORDS = (1, 2, 2, 3, 3, 4)  # beside a mask; drawn from
_CUE_CHARACTERS = 5  # of Chinese
_NAMED = 3  # gaps that a thought goes through at most
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_EDGES = " \n\t,;:.!?()[]{}“”\"'‘’«»–—-，。、；：（）《》「」"
_SENTENCE = re.compile(r"[.!?]\s+(?=\S)|[。！？\n]")


class Thoughts(Protocol):
    """A thought for each turn of a demonstration; each call may draw from the same generator."""

    def before_search(
        self, example: RampExample, queries: Sequence[str], subject: bool, seen: Observations
    ) -> str:
        """subject: the query names what the paragraph is about."""
        ...

    def before_filling(self, example: RampExample, seen: Observations) -> str: ...

    def before_lookup(self, example: QAExample, query: str, seen: Observations) -> str: ...

    def before_call(self, request: str) -> str:
        """Of another tool than search."""
        ...

    def before_answer(self, example: QAExample, seen: Observations) -> str: ...

    def from_memory(self) -> str:
        """Of an answer for which nothing was read."""
        ...


class Short:
    """Stock phrases of a few words."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def before_search(
        self, example: RampExample, queries: Sequence[str], subject: bool, seen: Observations
    ) -> str:
        first = wordings.SHORT_FIRST if subject else wordings.SHORT_AROUND
        return self._rng.choice(wordings.SHORT_AGAIN if seen else first)

    def before_filling(self, example: RampExample, seen: Observations) -> str:
        return self._rng.choice(wordings.SHORT_ENDING)

    def before_lookup(self, example: QAExample, query: str, seen: Observations) -> str:
        begin = wordings.SHORT_NEXT if seen else wordings.SHORT_START
        return f"{self._rng.choice(begin)} {query}."

    def before_call(self, request: str) -> str:
        return self._rng.choice(wordings.SHORT_CALL)

    def before_answer(self, example: QAExample, seen: Observations) -> str:
        return self._rng.choice(wordings.SHORT_ENDING[:2])

    def from_memory(self) -> str:
        return self._rng.choice(wordings.SHORT_FROM_MEMORY)


class Full:
    """Sentences that name the gaps, what each asks for, and the passages that fill them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def before_search(
        self, example: RampExample, queries: Sequence[str], subject: bool, seen: Observations
    ) -> str:
        query = " and ".join(queries)
        if not seen:
            gaps = [
                self._say(wordings.GAP, cue=cue, need=self._need(example, i))
                for i, cue in self._gaps(example)[:_NAMED]
            ]
            plan = wordings.PLAN if subject else wordings.PLAN_AROUND
            return _sentences([*gaps, self._say(plan, query=query)])
        gaps = self._gaps(example)
        found = [s for i, cue in gaps if (s := self._found(example.spans[i], cue, seen))]
        lacking = [
            self._say(wordings.STILL, cue=cue, need=self._need(example, i))
            for i, cue in gaps
            if _where(example.spans[i].text, seen) is None
        ]
        known = found[:_NAMED] or [self._say(wordings.NOTHING)]
        return _sentences([*known, *lacking[:_NAMED], self._say(wordings.RETRY, query=query)])

    def before_filling(self, example: RampExample, seen: Observations) -> str:
        found = [self._found(example.spans[i], cue, seen) for i, cue in self._gaps(example)]
        return _sentences([*filter(None, found[:_NAMED]), self._say(wordings.DONE)])

    def before_lookup(self, example: QAExample, query: str, seen: Observations) -> str:
        if not seen:
            return _sentences([self._say(wordings.START, query=query)])
        if passage := self._place(query, seen):
            return _sentences([self._say(wordings.NEXT, passage=passage, query=query)])
        return _sentences([self._say(wordings.OTHER, query=query)])

    def before_call(self, request: str) -> str:
        return _sentences([self._say(wordings.CALL, request=request)])

    def before_answer(self, example: QAExample, seen: Observations) -> str:
        answer = example.answers[0]
        if example.calls:
            return _sentences([self._say(wordings.COMPUTED, answer=answer)])
        if answer in VERDICTS:
            return _sentences([self._say(wordings.JUDGED[answer])])
        if is_verdict(answer):
            return _sentences([self._say(wordings.DECIDED, answer=answer.casefold())])
        if passage := self._place(answer, seen):
            return _sentences([self._say(wordings.ANSWERED, passage=passage, answer=answer)])
        return _sentences([self._say(wordings.DONE_READING, answer=answer)])

    def from_memory(self) -> str:
        return _sentences([self._say(wordings.FROM_MEMORY)])

    def _say(self, choices: Sequence[str], **parts: str) -> str:
        return self._rng.choice(choices).format(**parts)

    def _gaps(self, example: RampExample) -> list[tuple[int, str]]:
        """Each mask's number and the words that tell where it stands."""
        pieces = example.masked.split(markup.MASK)
        return [
            (i, _cue(before, after, self._rng.choice(_CUE_WORDS), i))
            for i, (before, after) in enumerate(itertools.pairwise(pieces))
        ]

    def _need(self, example: RampExample, i: int) -> str:
        before = " ".join(example.masked.split(markup.MASK)[i].split()[-6:])
        kind = example.spans[i].type
        for pattern, of, needs in wordings.SPECIAL_NEEDS:
            if of == kind and re.search(pattern, before, re.IGNORECASE):
                return self._rng.choice(needs)
        return self._rng.choice(wordings.NEEDS.get(kind, wordings.NEEDS["TERM"]))

    def _found(self, span: Span, cue: str, seen: Observations) -> str:
        if passage := self._place(span.text, seen):
            return self._say(wordings.FOUND, passage=passage, span=span.text, cue=cue)
        return ""

    def _place(self, text: str, seen: Observations) -> str:
        """Words for the first passage that holds the text; "" where none does."""
        if (where := _where(text, seen)) is None:
            return ""
        turn, rank, passage = where
        names = [f"the passage on {passage.title}", f"the text about {passage.title}"]
        names += [f"“{passage.title}”"] if not turn else []
        if turn == len(seen) - 1 and rank < len(_ORDINALS):
            names += [f"the {_ORDINALS[rank]} passage"] * 2
        return self._rng.choice(names)


KINDS = {"full": Full, "short": Short}


def _where(text: str, seen: Observations) -> tuple[int, int, Passage] | None:
    """The search, counted from the first (0), the rank and the passage that shows a text first."""
    for turn, passages in enumerate(seen):
        for rank, passage in enumerate(passages):
            if chinese.is_within(text, f"{passage.title}: {passage.text}"):
                return turn, rank, passage
    return None


def _cue(before: str, after: str, count: int, number: int) -> str:
    """Where a gap stands: after the words before it, before those after it, or by its number."""
    if words := _edge(before, count, last=True):
        return f"after {_quoted(words)}"
    if words := _edge(after, count, last=False):
        return f"before {_quoted(words)}"
    return f"at the {_ORDINALS[min(number, len(_ORDINALS) - 1)]} place"


def _edge(text: str, count: int, last: bool) -> str:
    """The words nearest to a mask, of the sentence in which it stands."""
    parts = _SENTENCE.split(text)
    near = (parts[-1] if last else parts[0]).strip(_EDGES)
    if chinese.CHARACTER.search(near):
        return near[-_CUE_CHARACTERS:] if last else near[:_CUE_CHARACTERS]
    words = near.split()
    return " ".join(words[-count:] if last else words[:count]).strip(_EDGES)


def _quoted(words: str) -> str:
    return f'"{words}"' if "'" in words else f"'{words}'"


def _sentences(parts: Sequence[str]) -> str:
    """The parts as sentences; tags of the grammar in a title or a span cannot act."""
    ended = (part if part.endswith(("?", ".", "!")) else f"{part}." for part in parts)
    return markup.escape(" ".join(part[:1].upper() + part[1:] for part in ended))
