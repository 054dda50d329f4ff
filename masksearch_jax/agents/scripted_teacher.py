"""The scripted teacher: demonstrations of searching that need no language model.

It knows the answer, but queries only with words of the task and of what it has read, shows the real
search engine's results, and keeps a demonstration only if they hold the answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Sequence

from masksearch_jax.agents.thoughts import KINDS, Thoughts
from masksearch_jax.core import chinese, markup, retrieval
from masksearch_jax.core.scoring import is_verdict
from masksearch_jax.core.tools import Toolbox
from masksearch_jax.core.types import (
    NOT_ITS_DOING,
    SEARCH,
    Demonstration,
    Example,
    Passage,
    QAExample,
    RampExample,
    Segment,
    Turn,
)
from masksearch_jax.data import methods

TEACHER = "scripted"
REASONS = (
    *("no_query", "spans_not_found", "gold_not_found", "answer_not_found", "reserved_text"),
    *("no_tool", "no_turns_left"),  # of a question that wants another tool than search
)
# Reasons of any teacher that are no fault of it or of the example: an endpoint, a search tool or
# the clock failed. They are never final: the example is to be attempted again.
NOT_FINAL = ("llm_failed", "search_failed", *NOT_ITS_DOING)
_QUERY_WORDS = 5
_NEAR = 10  # words on either side of a mask from which a query may draw
_RAMP_SEARCHES = 2
_FIRST_QUERIES = (3, 1)  # weights of a first query: the subject; the subject and a word near a mask

_LETTER = r"(?:[^\W_][\u0300-\u036f]*)"
_WORD = re.compile(rf"\[mask\]|{_LETTER}+(?:[’'ʻ‘.-]{_LETTER}+)*")
_FIGURE = re.compile(r"\d+(?:[.,]\d+)*")
_LINK_WORDS = "of de da do dos del la las los el al von van der and the"
_NAME_LINKS = frozenset(_LINK_WORDS.split())
_COMMON_WORDS = """
a about after all also an and any are as at be been before between by can city country did do
does for from had has have he her his how if in into is it its larger lies located more most
name named nearest not of on one or other people she some such than that the their them then
there these they this those through time to under up used was were what when where which while
who whom whose why will with would
"""
_COMMON = frozenset(_COMMON_WORDS.split())


@dataclasses.dataclass(frozen=True)
class Rejection:
    """An example without a demonstration; `reason` is one of a teacher's, `detail` tells more."""

    example_id: str
    reason: str
    detail: str = ""

    @property
    def is_final(self) -> bool:
        return self.reason not in NOT_FINAL


def task_name(example: Example) -> str:
    """The task that a demonstration of the example is of."""
    return f"ramp_k{example.k}" if isinstance(example, RampExample) else example.dataset


def is_shown(text: str, segments: Iterable[Segment]) -> bool:
    """Whether the text stands, as whole words, in what the search tool returned."""
    return any(chinese.is_within(text, s.text) for s in segments if s.author == "tool")


@dataclasses.dataclass
class _Transcript:
    """A demonstration being written. `seen` holds the passages that each search has shown."""

    tools: Toolbox
    source: str  # passage that the example masks, if any
    thoughts: Thoughts
    segments: list[Segment] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    seen: list[tuple[Passage, ...]] = dataclasses.field(default_factory=list)

    def find(self, queries: Sequence[str]) -> tuple[Passage, ...]:
        """What the engine would show for these queries; writes nothing."""
        return self.tools[SEARCH].call(queries, self.source).passages

    def retrieve(self, query: str) -> None:
        """One retrieval before the answer: no action of the agent, its result is in the prompt."""
        self._add_passages((query,), self.find((query,)))

    def add_search(self, thought: str, queries: Sequence[str], passages: Sequence[Passage]) -> None:
        self._add_action(thought, SEARCH, queries)
        self._add_passages(queries, passages)

    def add_call(self, thought: str, tool: str, request: str) -> None:
        """Asks another tool than search, and writes down what it says."""
        self._add_action(thought, tool, (request,))
        self._add_result(self.tools[tool].call((request,), "").documents)
        self.turns.append(Turn((request,), (), (), seconds=0.0, tool=tool))

    def _add_action(self, thought: str, tool: str, requests: Sequence[str]) -> None:
        action = markup.wrap("think", thought) + markup.wrap(tool, "\n".join(requests))
        self.segments.append(Segment("policy", action))

    def _add_passages(self, queries: Sequence[str], found: Sequence[Passage]) -> None:
        shown = self._add_result(found)
        ids, titles = tuple(p.id for p in shown), tuple(p.title for p in shown)
        self.turns.append(Turn(tuple(queries), ids, titles, seconds=0.0))
        self.seen.append(shown)

    def _add_result(self, found: Sequence[Passage]) -> tuple[Passage, ...]:
        """Writes what a call shows, and returns which of what was found that is."""
        text, shown = markup.render_information(found, tools=self.tools.names)
        self.segments.append(Segment("tool", text))
        return shown

    def finish(
        self, thought: str, answer: str, example: Example, method: str = "agent"
    ) -> Demonstration:
        action = markup.wrap("think", thought) + markup.wrap("answer", answer)
        return Demonstration(
            id=f"{example.id}/{TEACHER}",
            example_id=example.id,
            task=task_name(example),
            teacher=TEACHER,
            segments=(*self.segments, Segment("policy", action)),
            turns=tuple(self.turns),
            method=method,
        )

    def has_shown(self, text: str) -> bool:
        """Whether the text stands, as whole words, in what was shown."""
        return is_shown(text, self.segments)


def demonstrate(
    example: Example,
    tools: Toolbox,
    rng: random.Random,
    *,
    max_searches: int = 4,
    thoughts: str = "full",
    method: str = "agent",
) -> Demonstration | Rejection:
    """A solved example, or why there is none; the same for the same tools and rng.

    max_searches: calls of all tools together. thoughts: one of `thoughts.KINDS`. method: "agent",
    or "rag" or "closed_book", whose demonstrations are of one turn. `turns` carry 0 seconds, so
    that the file of demonstrations is reproducible. What a tool raises passes through.
    """
    mind = KINDS[thoughts](rng)
    transcript = _Transcript(tools, retrieval.source_of(example), mind)
    answer = _answer_of(example)
    if markup.escape(answer, tools.names) != answer:
        return Rejection(example.id, "reserved_text")
    if method != "agent":
        return _answer_at_once(example, transcript, method)
    if isinstance(example, RampExample):
        return _solve_ramp(example, transcript, rng, min(max_searches, _RAMP_SEARCHES))
    return _solve_qa(example, transcript, max_searches)


def _answer_at_once(
    example: Example, transcript: _Transcript, method: str
) -> Demonstration | Rejection:
    """An answer from one retrieval with the task itself, which shows what it needs, or by heart."""
    thoughts = transcript.thoughts
    if method == "closed_book":
        return transcript.finish(thoughts.from_memory(), _answer_of(example), example, method)
    query = methods.query_of(example)
    transcript.retrieve(query)
    if isinstance(example, RampExample):
        if not all(transcript.has_shown(span.text) for span in example.spans):
            return Rejection(example.id, "spans_not_found", _unshown(example, transcript))
        thought = thoughts.before_filling(example, transcript.seen)
    else:
        if not is_verdict(example.answers[0]) and not transcript.has_shown(example.answers[0]):
            return Rejection(example.id, "answer_not_found")
        thought = thoughts.before_answer(example, transcript.seen)
    return transcript.finish(thought, _answer_of(example), example, method)


def _answer_of(example: Example) -> str:
    return example.paragraph if isinstance(example, RampExample) else example.answers[0]


def _solve_ramp(
    example: RampExample, transcript: _Transcript, rng: random.Random, max_searches: int
) -> Demonstration | Rejection:
    subject = _subject(example.title, example.masked)
    plans = _ramp_queries(example, subject, transcript.tools[SEARCH].max_requests, rng)[
        :max_searches
    ]
    if not plans:
        return Rejection(example.id, "no_query")
    for queries in plans:
        thought = transcript.thoughts.before_search(
            example, queries, bool(subject), transcript.seen
        )
        transcript.add_search(thought, queries, transcript.find(queries))
        if all(transcript.has_shown(span.text) for span in example.spans):
            thought = transcript.thoughts.before_filling(example, transcript.seen)
            return transcript.finish(thought, example.paragraph, example)
    return Rejection(example.id, "spans_not_found", _unshown(example, transcript))


def _unshown(example: RampExample, transcript: _Transcript) -> str:
    lacking = [span.text for span in example.spans if not transcript.has_shown(span.text)]
    return f"no passage shown has {', '.join(map(repr, lacking))}"


def _ramp_queries(
    example: RampExample, subject: Sequence[str], max_queries: int, rng: random.Random
) -> list[tuple[str, ...]]:
    """What to search for, first choice first: the subject, then the subject and what is near masks.

    A paragraph that shows nothing of its title is searched for by the words near its masks alone.
    """
    near = _near_masks(example.masked, subject)
    wide = " ".join([*subject, *near][:_QUERY_WORDS])
    if not subject:
        return [(wide,)] if wide else []
    plain, more = " ".join(subject), " ".join([*subject, *near[:1]])
    first = rng.choices((plain, more), weights=_FIRST_QUERIES)[0]
    context = " ".join(near[:_QUERY_WORDS])
    second = (wide, context) if max_queries > 1 and near else (wide,)
    return [(first,), second]


def _subject(title: str, masked: str) -> list[str]:
    """The title, or those of its words that the masked paragraph shows, as it writes them."""
    if title in masked:
        return title.split()
    given = {w.casefold(): w for w in reversed(_WORD.findall(masked))}
    words = [given[w.casefold()] for w in _WORD.findall(title) if w.casefold() in given]
    while words and words[0].casefold() in _COMMON:
        words = words[1:]
    while words and words[-1].casefold() in _COMMON:
        words = words[:-1]
    return words[:_QUERY_WORDS]


def _near_masks(masked: str, subject: Sequence[str]) -> list[str]:
    """Telling words around the masks: names first, then the longest."""
    words = _WORD.findall(masked)
    masks = [i for i, w in enumerate(words) if w == markup.MASK]
    known = {w.casefold() for w in subject}
    found: dict[str, tuple[bool, int, int]] = {}
    for i, word in enumerate(words):
        key = word.casefold()
        distance = min((abs(i - m) for m in masks), default=0)
        telling = len(word) > 2 and word != markup.MASK and key not in known | _COMMON
        if telling and distance <= _NEAR:
            found.setdefault(word, (not word[0].isupper(), -len(word), distance))
    return sorted(found, key=found.__getitem__)


def _unread(gold: set[str], transcript: _Transcript) -> str:
    asked = [query for turn in transcript.turns for query in turn.queries]
    searched = f"searches for {', '.join(map(repr, asked))}" if asked else "no name in sight"
    return f"{searched} did not show {', '.join(sorted(gold))}; see search.top_k and max_searches"


def _solve_qa(
    example: QAExample, transcript: _Transcript, max_searches: int
) -> Demonstration | Rejection:
    """Reads the gold passages one after the other, each found by a name already in sight.

    Then asks the tools that the question names, for what it has read.
    """
    if lacking := [c for c in example.calls if _call(c)[0] not in transcript.tools.names]:
        return Rejection(example.id, "no_tool", lacking[0])
    unread = set(example.gold)
    max_searches -= len(example.calls)
    if example.calls and max_searches < 1:
        return Rejection(example.id, "no_turns_left")
    while len(transcript.turns) < max_searches and (unread or not transcript.turns):
        query, found = _next_query(example, transcript, unread)
        if query is None:
            return Rejection(example.id, "gold_not_found", _unread(unread, transcript))
        thought = transcript.thoughts.before_lookup(example, query, transcript.seen)
        transcript.add_search(thought, (query,), found)
        unread -= {p.id for p in found}
    if unread:
        return Rejection(example.id, "gold_not_found", _unread(unread, transcript))
    for tool, request in map(_call, example.calls):
        # It works with what it has read, not with what it knows.
        if unseen := [f for f in _FIGURE.findall(request) if not transcript.has_shown(f)]:
            return Rejection(example.id, "answer_not_found", unseen[0])
        thought = transcript.thoughts.before_call(request)
        transcript.add_call(thought, tool, request)
    answer = example.answers[0]
    if not is_verdict(answer) and not transcript.has_shown(answer):
        return Rejection(example.id, "answer_not_found")
    thought = transcript.thoughts.before_answer(example, transcript.seen)
    return transcript.finish(thought, answer, example)


def _call(text: str) -> tuple[str, str]:
    """Tool and request of one of a question's `calls`."""
    tool, _, request = text.partition(": ")
    return tool, request


def _next_query(
    example: QAExample, transcript: _Transcript, unread: set[str]
) -> tuple[str | None, tuple[Passage, ...]]:
    """The first name in sight whose search shows an unread gold passage, and all that it shows."""
    read = itertools.chain.from_iterable(transcript.seen)
    gold_text = [p.text for p in read if p.id in example.gold]
    names = list(_names(" . ".join([*gold_text[::-1], example.question])))
    if not transcript.turns:
        words = _WORD.findall(example.question)
        names += [" ".join(names), " ".join(w for w in words if w.casefold() not in _COMMON)]
    asked = {q for turn in transcript.turns for q in turn.queries}
    for name in dict.fromkeys(names):
        if not name or name in asked or len(name.split()) > 2 * _QUERY_WORDS:
            continue
        found = transcript.find((name,))
        hits = [p for p in found if p.id in unread]
        if not example.gold or (hits and _is_about(name, hits, transcript)):
            return name, found
    return None, ()


def _is_about(name: str, hits: Iterable[Passage], transcript: _Transcript) -> bool:
    """Whether a name found what it names; the first search may find otherwise."""
    if not transcript.turns:
        return True
    words = {w.casefold() for w in _WORD.findall(name)}
    return any(words & {w.casefold() for w in _WORD.findall(p.title)} for p in hits)


def _names(text: str) -> Iterable[str]:
    """Runs of capitalised words, quotations too: "Port of Spain", and of "X and Y" all three."""
    yield from re.findall(r"[\"“]([^\"“”]{3,60})[\"”]", text)
    for piece in re.split(r"[.!?:;,()\"“”]\s+|[()\"“”?]|\.$", text):
        run: list[str] = []
        for word in [*piece.split(), ""]:
            capital = word[:1].isupper() and word.casefold() not in _COMMON
            if capital or (run and word in _NAME_LINKS):
                run.append(word)
                continue
            yield from _name_of(run)
            run = []


def _name_of(run: list[str]) -> Iterable[str]:
    while run and run[-1] in _NAME_LINKS:
        run = run[:-1]
    if run:
        name = " ".join(run)
        yield name
        if " and " in name:
            yield from (part.removeprefix("the ") for part in name.split(" and "))
