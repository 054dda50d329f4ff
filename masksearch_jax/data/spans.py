"""Salient spans by rules: names, dates, numbers and terms that a reader would have to look up.

`RulesExtractor` works on any English prose. What it refuses it counts by reason.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from masksearch_jax.types import Span

TYPES = ("PERSON", "PLACE", "ORG", "DATE", "NUMBER", "TERM")
EXTRACTORS = ("rules",)
MAX_WORDS = 6
MAX_CHARS = 60

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_DATE = (
    rf"(?:\d{{1,2}}(?:st|nd|rd|th)? (?:{_MONTHS})(?:,? \d{{4}})?"
    rf"|(?:{_MONTHS}) \d{{1,2}}(?:, \d{{4}})?"
    rf"|(?:{_MONTHS}),? \d{{4}}|\d{{1,4}} (?:BCE?|AD|CE)|(?:1\d|20)\d\ds"
    rf"|\d{{1,2}}(?:st|nd|rd|th)[ -]century(?: BCE?)?|(?:1[0-9]|20)\d\d(?![\d,.]\d|%))\b"
)
_UNIT = (
    r"(?:hundred|thousand|million|billion|trillion|percent|per cent|degrees(?: (?:north|south|east"
    r"|west|Celsius|Fahrenheit))?|square (?:km|kilomet(?:re|er)s|miles|metres|meters)"
    r"|kilomet(?:re|er)s|met(?:re|er)s|miles|feet|inches|acres|hectares|tonnes|tons|pounds|kilograms|grams"
    r"|km²|km2|km|kg|mm|cm|nm|mph|m|ft|GHz|MHz|kHz|kW|MW|GW|years|days|hours|minutes|seconds)\b"
)
_NUMBER = (
    rf"(?:US)?[$€£+−-]?\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?(?:[ -]{_UNIT}|%)?"
    rf"|(?:US)?[$€£+−]?\d+(?:\.\d+)?(?:%|[ -]{_UNIT}(?: {_UNIT})?|(?:st|nd|rd|th)\b)?"
)
_DOMAIN = r"(?<![\w.])\.[a-z]{2,4}\b(?!\.\w)"
_QUOTED = r"(?<![^\s(])[\"“](?P<quoted>[^\"“”]{3,50})[\"”](?![^\s.,;:)!?])"
_LINK = (
    r"(?:of the|of|de la|de los|de las|de|del|della|di|da|dos|do|van der|van den|van|von der|von"
    r"|bin|ibn|al|el|la|le|du|es|y|und)"
)
_TOKEN = re.compile(r"[^\W_]+")

_ORDINARY_WORDS = """
a about above according across after again against all along also although always among an and
another any apart are as at away back because been before behind being below beneath besides
between beyond both but by can could currently despite did do does down due during each either
element even eventually every except few finally first following for former formerly four from
further generally given had has have having he hence her here his how however i if in including
indeed initially instead into is it its itself just later latter less like likewise many
meanwhile more moreover most much my near nearly neither never nevertheless next no nonetheless
nor not now number of often on once one only or originally other others otherwise our out over
overall part perhaps previously prior rather recent recently several she should similarly simply
since so some sometimes soon still such symbol that the their them then there therefore these
they third this those though three through throughout thus to today together traditionally two
typically under unfortunately unlike until up upon us usually various very was we well were what
when where whereas whether which while who whom whose why will with within without would yet you
your
"""
_ORDINARY = frozenset(_ORDINARY_WORDS.split())
_TRIVIAL = frozenset(
    f"{_MONTHS}|{_DAYS}|I|A|OK|TV|UK|US|USA|AD|BC|Mr|Mrs|Ms|Dr|St|Sir|King|Queen|Prince|President|God"
    "|City|River|University|North|South|East|West|Northern|Southern|Eastern|Western|Category|Note"
    "|English|Internet".split("|")
)
_ORG = re.compile(
    r"\b(?:University|Institute|Laborator(?:y|ies)|College|School|Company|Corporation|Corp|Inc|Ltd"
    r"|Party|Church|Club|Association|Society|Committee|Council|Ministry|Department|Agency|Bank|Union"
    r"|League|Orchestra|Museum|Records|Press|Times|Army|Navy|Force|Court|Parliament|Congress|Senate"
    r"|Foundation|Group|Centre|Center|Commission|Organi[sz]ation|Airlines|Studios|F\.?C\.?)\b"
)
_PLACE = re.compile(
    r"\b(?:River|Lake|Mount|Mountains?|Island|Islands|Sea|Ocean|Bay|Gulf|Street|Avenue|County"
    r"|Province|Republic|Kingdom|Valley|Desert|Peninsula|Cape|Park|Bridge|Castle|Palace|Cathedral"
    r"|Airport|Station|States|Africa|America|Asia|Europe|Oceania)\b"
)
_PLACE_CUE = re.compile(
    r"\b(?:in|at|from|near|to|of|into|across|throughout|borders|lies|capital|city)(?: the)? $",
    re.IGNORECASE,
)
_PERSON_CUE = re.compile(r"\b(?:by|Sir|Lord|Dr\.?|Mr\.?|Mrs\.?|President|King|Queen|Saint) $")
_BORN = re.compile(r"^\s*(?:\(born\b|was born\b|died\b|wrote\b|said\b|married\b)")


class Extractor(Protocol):
    """Finds the salient spans of a paragraph; `title` names its article and is never a span."""

    refused: Counter[str]

    def extract(self, paragraph: str, title: str) -> list[Span]: ...


class RulesExtractor:
    """Salient spans by regular expressions, no model and no network.

    gazetteer: names that are spans even alone at the start of a sentence.
    refused: candidates refused so far, by reason.
    """

    def __init__(self, gazetteer: Collection[str] = ()):
        self.gazetteer = frozenset(gazetteer)
        self.refused: Counter[str] = Counter()

    def extract(self, paragraph: str, title: str) -> list[Span]:
        """Spans in text order, without overlaps; `paragraph[s.start:s.end] == s.text`."""
        title_words = set(_words(title))
        roots = Counter(map(_root, _words(paragraph)))
        found = []
        for span in _candidates(paragraph):
            span, reason = self._check(span, paragraph, title_words, roots)
            if reason:
                self.refused[reason] += 1
            else:
                found.append(span)
        return found

    def _check(
        self, span: Span, paragraph: str, title_words: set[str], roots: Counter[str]
    ) -> tuple[Span, str]:
        """The span without words that only open its sentence; why it cannot be masked, or ""."""
        known = span.text in self.gazetteer
        if not known and span.text[0].isupper() and _opens_sentence(paragraph, span.start):
            span = _without_opening(paragraph, span)
            if span is None or (_opens_sentence(paragraph, span.start) and " " not in span.text):
                return span, "sentence_start"
        words = _words(span.text)
        if len(span.text.split()) > MAX_WORDS or len(span.text) > MAX_CHARS:
            return span, "too_long"
        if _in_title(words, title_words):
            return span, "title"
        if _is_trivial(span.text, words):
            return span, "trivial"
        if _repeated(span.text, paragraph):
            return span, "repeated"
        if span.type not in ("DATE", "NUMBER") and _given_away(words, roots):
            return span, "given_away"
        return span, ""


def extractor(name: str, gazetteer: Collection[str] = ()) -> Extractor:
    """The extractor called `name`. ValueError with the choices where there is none."""
    if name != "rules":
        raise ValueError(f"no extractor {name!r}; choices: {', '.join(EXTRACTORS)}")
    return RulesExtractor(gazetteer)


@functools.cache
def _pattern() -> re.Pattern[str]:
    """One expression for all candidates; its groups say what was found."""
    upper = "".join(c for c in map(chr, range(0x41, 0x2000)) if c.isupper())
    word = rf"(?!(?:{_MONTHS}),? \d)[{upper}]\w*(?:[’'ʻ‘](?!s\b)\w+|-\w+)*"
    part = rf"(?:(?:[{upper}]\. ?)+{word}|(?:[{upper}]\.){{2,}}|(?:St|Mt|Ft|Dr)\. {word}|{word})"
    name = rf"(?<![\w’']){part}(?: {part}| {_LINK} {part}|/{part})*"
    return re.compile(
        rf"{_QUOTED}|(?P<domain>{_DOMAIN})|(?P<date>(?<![\w.,$€£+/-]){_DATE})"
        rf"|(?P<number>(?<![\w.])(?:{_NUMBER})(?!\w|-[^\W\d]))|(?P<name>{name})"
    )


def _candidates(paragraph: str) -> Iterator[Span]:
    for match in _pattern().finditer(paragraph):
        group = match.lastgroup
        start, end = match.span(group)
        if group == "name":
            end = start + _length_of_name(paragraph[start:end])
            kind = _name_type(paragraph, start, end)
        else:
            kind = {"date": "DATE", "number": "NUMBER"}.get(group, "TERM")
        yield Span(start, end, paragraph[start:end], kind)


def _length_of_name(text: str) -> int:
    """Its length without a next sentence taken for a surname: "F. It" is F, "J. Smith" all."""
    for dot in re.finditer(r"\. ?", text):
        following = _TOKEN.match(text, dot.end())
        if following and len(following[0]) > 1 and following[0].casefold() in _ORDINARY:
            return dot.start()
    return len(text)


def _without_opening(paragraph: str, span: Span) -> Span | None:
    """The name inside a sentence's opening: "In France" → "France", "Critics of Marx" → "Marx"."""
    first, _, rest = span.text.partition(" ")
    linked = re.match(rf"{_LINK} (?=\S)", rest)
    if linked and not _ORG.match(first):
        rest = rest[linked.end() :]
    elif first.lower() not in _ORDINARY:
        return span
    if not rest:
        return None
    start = span.end - len(rest)
    return Span(start, span.end, rest, _name_type(paragraph, start, span.end))


def _name_type(paragraph: str, start: int, end: int) -> str:
    """The likely type of a name from its words and its neighbours; TERM where nothing tells."""
    text, before, after = paragraph[start:end], paragraph[:start], paragraph[end : end + 20]
    if _ORG.search(text):
        return "ORG"
    if "/" in text or _PLACE.search(text):
        return "PLACE"
    if _PERSON_CUE.search(before[-12:]) or _BORN.match(after) or re.match(r"(?:\w\. ?)+\w", text):
        return "PERSON"
    if text.isupper():
        return "ORG" if len(text) > 2 else "TERM"
    if _PLACE_CUE.search(before[-16:]):
        return "PLACE"
    return "PERSON" if text.count(" ") in (1, 2) else "TERM"


def _words(text: str) -> list[str]:
    return [w.casefold() for w in _TOKEN.findall(text)]


def _root(word: str) -> str:
    """What forms of a word share: Japan and Japanese, Curie and Curies."""
    return word[:5]


def _opens_sentence(paragraph: str, start: int) -> bool:
    before = paragraph[:start].rstrip(" \"“'(")
    return not before or before[-1] in ".!?:\n"


def _in_title(words: Sequence[str], title_words: set[str]) -> bool:
    """True when the span is part of the title or shares a word of four letters with it."""
    shared = [w for w in words if w in title_words]
    return bool(shared) and (len(shared) == len(words) or any(len(w) > 3 for w in shared))


def _is_trivial(text: str, words: Sequence[str]) -> bool:
    """True for ordinary words, months and weekdays alone, titles, and numbers of one digit."""
    return (
        text in _TRIVIAL
        or len(text) < 2
        or (text.isdigit() and len(text) == 1)
        or all(w in _ORDINARY for w in words)
    )


def _repeated(text: str, paragraph: str) -> bool:
    if paragraph.count(text) < 2:
        return False
    return len(re.findall(rf"(?<!\w){re.escape(text)}(?!\w)", paragraph)) > 1


def _given_away(words: Sequence[str], roots: Counter[str]) -> bool:
    """True when each word of the span has a relative in the rest of the paragraph."""
    telling = [w for w in words if len(w) > 2]
    mine = Counter(map(_root, words))
    return bool(telling) and all(roots[_root(w)] > mine[_root(w)] for w in telling)
