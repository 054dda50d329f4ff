"""Salient spans: what a reader would have to look up, found by one of several extractors.

An extractor proposes; `sift` refuses what would make a bad mask, with counts by reason. All is pure
and needs one paragraph at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from masksearch_jax.core import chinese, markup
from masksearch_jax.core.types import Passage, Span
from masksearch_jax.ramp import lexicon, rules_en, rules_zh
from masksearch_jax.ramp.gazetteer import Gazetteer

TYPES = ("PERSON", "PLACE", "ORG", "DATE", "NUMBER", "TERM")
EXTRACTORS = ("rules", "spacy", "llm")
MAX_WORDS = 6
MAX_CHARS = 60
_TOKEN = re.compile(r"[^\W_]+")
_JOINTS = re.compile("[-–/]")
_CONTRACTION = re.compile(r"(?:I|It|He|She|We|You|They|There|That|What)[’']\w+\Z|U\.S\.?\Z")
_VARIABLE = re.compile(r"[^\W\d_]{1,2}\d{1,2}(?:/[^\W\d_]{1,2}\d{1,2})*\Z")  # Q5, Q3/Q4, Kd8


class Candidates(NamedTuple):
    """Spans in text order without overlaps, `text[s.start:s.end] == s.text`; refusals by reason.

    links: pairs of spans, of which what tells the first leads to what tells the second (`support`).
    """

    spans: list[Span]
    refused: Counter[str]
    links: tuple[tuple[Span, Span], ...] = ()


class Extractor(Protocol):
    """Finds the salient spans of passages; their titles name the articles and are never spans."""

    def find(self, passages: Sequence[Passage]) -> list[Candidates]: ...


class RulesExtractor:
    """Salient spans by regular expressions and a gazetteer, no model and no network.

    language: en | zh. gazetteer: names that are spans wherever they stand, with their types, and
    the ordinary words of the corpus.
    """

    def __init__(self, language: str = "en", gazetteer: Gazetteer | None = None):
        self.language = language
        self.gazetteer = gazetteer

    def find(self, passages: Sequence[Passage]) -> list[Candidates]:
        return [self._find(p) for p in passages]

    def _find(self, passage: Passage) -> Candidates:
        known = self.gazetteer
        ordinary = known.ordinary if known and known.ordinary else lexicon.ORDINARY
        if self.language == "zh":
            proposed = rules_zh.candidates(passage.text)
        else:
            proposed = rules_en.candidates(passage.text, ordinary)
        spans: list[Span] = []
        cut: list[Span] = []  # of longer names and titles; so are known names within them
        refused: Counter[str] = Counter()
        for span, reason in proposed:
            if not reason:
                spans.append(span)
                continue
            refused[reason] += 1
            if reason in ("cut_name", "quoted_words"):
                cut.append(span)
        if known:
            spans = merge(spans, known.find(passage.text), cut)
        kept, refused, _ = sift(passage, spans, refused)
        if self.language == "en":
            kept = [rules_en.typed(passage.text, s, ordinary) for s in kept]
        return Candidates(kept, refused)


def merge(spans: Sequence[Span], known: Iterable[Span], cut: Sequence[Span] = ()) -> list[Span]:
    """Spans by rule, corrected by known names: equal ones take its type, longer ones replace.

    A known name inside a longer span by rule is left out: "Paris" in "University of Paris". So is
    one that does not reach beyond one of `cut`, which rules have refused.
    """
    merged = list(spans)
    for name in known:
        if cut and any(p.start <= name.start and name.end <= p.end for p in cut):
            continue
        over = [s for s in merged if s.start < name.end and name.start < s.end]
        if any(s.end - s.start > len(name.text) or s.type in ("DATE", "NUMBER") for s in over):
            continue
        same = next((s for s in over if s.text == name.text), None)
        kind = same.type if same and name.type == "TERM" else name.type
        if over:
            merged = [s for s in merged if s.end <= name.start or name.end <= s.start]
        merged.append(Span(name.start, name.end, name.text, kind))
    return sorted(merged, key=lambda s: s.start)


def sift(
    passage: Passage, spans: Iterable[Span], refused: Counter[str] | None = None
) -> Candidates:
    """The spans that make good masks; why the others do not is added to `refused`.

    overlap | too_long | title | trivial | demonym | repeated | given_away: a mask must be hidden,
    worth asking for, and not to be read off the rest of the paragraph or the article's title.
    """
    refused = Counter() if refused is None else refused
    title_words = set(words(passage.title))
    roots: Counter[str] = Counter()
    kept: list[Span] = []
    for span in spans:
        mine = words(span.text)
        reason = _refusal(span, mine, passage, title_words)
        if not reason and span.type not in ("DATE", "NUMBER"):
            roots = roots or Counter([w[:5] for w in words(passage.text)])
            reason = "given_away" if _is_given_away(mine, roots) else ""
        if not reason and kept and span.start < kept[-1].end:
            reason = "overlap"
        if reason:
            refused[reason] += 1
        else:
            kept.append(span)
    return Candidates(kept, refused)


def _refusal(span: Span, mine: Sequence[str], passage: Passage, title_words: set[str]) -> str:
    if len(span.text) > MAX_CHARS or len(span.text.split()) > MAX_WORDS:
        return "too_long"
    if _is_in_title(span, mine, passage.title, title_words):
        return "title"
    if _is_trivial(span.text, mine):
        return "trivial"
    if lexicon.DEMONYM.match(span.text):
        return "demonym"
    if _is_repeated(span, passage.text):
        return "repeated"
    return ""


def words(text: str) -> list[str]:
    """The words of a text in small letters; Chinese is one word as long as it runs."""
    return _TOKEN.findall(text.casefold())


def _is_in_title(span: Span, mine: Sequence[str], title: str, title_words: Collection[str]) -> bool:
    """True when the span is part of the title, has all of it, or shares a word of four letters."""
    if chinese.CHARACTER.search(span.text):
        return span.text in title or (len(title) > 1 and title in span.text)
    shared = [w for w in mine if w in title_words]
    whole = len(shared) in (len(mine), len(title_words))
    return bool(shared) and (whole or any(len(w) > 3 for w in shared))


def _is_trivial(text: str, mine: Sequence[str]) -> bool:
    """True for ordinary words, months, weekdays, titles, variables, and numbers of one digit."""
    return bool(
        all(part in lexicon.TRIVIAL for part in _JOINTS.split(text))
        or _CONTRACTION.match(text)
        or _VARIABLE.match(text)
        or (len(text) < 2 and not chinese.CHARACTER.match(text))
        or all(w in lexicon.ORDINARY for w in mine)
    )


def _is_repeated(span: Span, paragraph: str) -> bool:
    """True when the text stands once more in the paragraph, in any case, as a whole word."""
    rest = f"{paragraph[: span.start]}{markup.MASK}{paragraph[span.end :]}"
    return span.text.lower() in rest.lower() and chinese.is_within(span.text, rest)


def _is_given_away(mine: Sequence[str], roots: Counter[str]) -> bool:
    """True when each word of the span has a relative in the rest of the paragraph."""
    own = [w[:5] for w in mine]  # Japan and Japanese, Curie and Curies share it
    telling = [root for root in own if len(root) > 2]
    return bool(telling) and all(roots[root] > own.count(root) for root in telling)
