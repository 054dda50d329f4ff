"""Names that are known: titles of articles and texts of links, found by Aho-Corasick, with types.

A title's type comes from the sentence that defines it: "X was a German chemist" is a PERSON, "is a
town in" a PLACE. The same pass learns the ordinary words of English: those written small.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from masksearch_jax.core import chinese, files
from masksearch_jax.core.types import Passage, Span
from masksearch_jax.ramp import lexicon

LEARN_FROM = 50_000  # passages that ordinary words are learned from
_SMALL = re.compile(r"(?<![\w’'.-])[a-z]{2,}(?![\w’'-])")
_PARENTHESES = re.compile(r"\s*[(（][^()（）]*[)）]\Z")
_MIN = {"en": 3, "zh": 2}  # characters of a name

_IS = r"(?:is|was|are|were)(?: (?:a|an|the|one of the))?"
_KINDS = {
    "PERSON": rf"{lexicon.PEOPLE}|rapper|footballer|player|activist|economist|theologian|monk|nun"
    "|saint|soldier|athlete|swimmer|cricketer|model|dancer|comedian|entrepreneur|businessman|diplomat",
    "PLACE": "city|town|village|country|state|province|county|region|district|river|lake|island"
    "|mountain|capital|municipality|commune|peninsula|sea|ocean|bay|desert|valley|suburb|continent",
    "ORG": "company|corporation|band|group|university|college|school|party|organi[sz]ation|agency"
    "|club|team|institute|airline|newspaper|bank|union|association|society|label|museum|broadcaster",
}
_DEFINED = {
    kind: re.compile(rf"\b{_IS}(?: [\w'’,-]+){{0,6}}? (?:{names})\b")
    for kind, names in _KINDS.items()
}
_BORN = re.compile(
    r"\((?:[^()]{0,60}\b)?(?:born|b\.|\d{4}\s*[–-]\s*\d{4}|[^()]*\d{4} ?[–-] ?[^()]*\d{4})"
)
_ZH_NOUNS = {
    "PERSON": "家|人|演员|演員|歌手|导演|導演|教授|将军|將軍|球員|球员|皇帝|国王|國王|主席",
    "PLACE": "市|县|縣|省|区|區|镇|鎮|村|村落|岛|島|河|河流|山|湖|城市|国家|國家|行政区|聚落",
    "ORG": "公司|大学|大學|学校|學校|组织|組織|机构|機構|党|黨|樂團|乐团|俱乐部|俱樂部|球队|球隊",
}
_ZH_KINDS = {
    kind: re.compile(f"[是为為][^，。]{{0,20}}(?:{nouns})[，。、]")
    for kind, nouns in _ZH_NOUNS.items()
}
_ZH_LIFE = re.compile("（[^（）]*年[^（）]*[-－—–～]")  # （1901年—1970年）


@dataclasses.dataclass(frozen=True)
class Gazetteer:
    """Names with their types, ready to be found in a text; `ordinary`: words that are no names."""

    language: str
    types: dict[str, str]
    ordinary: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        import ahocorasick_rs

        names = list(self.types)
        matcher = ahocorasick_rs.AhoCorasick(
            names, matchkind=ahocorasick_rs.MatchKind.LeftmostLongest
        )
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_matcher", matcher)

    def find(self, text: str) -> list[Span]:
        """Known names in text order, the longest where several start; whole words in English."""
        found = []
        names: list[str] = self._names  # type: ignore[attr-defined]
        for index, start, end in self._matcher.find_matches_as_indexes(text):  # type: ignore
            if self.language == "en" and not _is_whole(text, start, end):
                continue
            name = names[index]
            found.append(Span(start, end, name, self.types[name]))
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON line: language, names with types, ordinary words."""
        value = dataclasses.asdict(self) | {"ordinary": sorted(self.ordinary)}
        files.write_text(path, json.dumps(value, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Gazetteer:
        value: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(value["language"], value["types"], frozenset(value["ordinary"]))


def _is_whole(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() or before in ("-", "_") or after.isalnum() or after == "-")


class Learner:
    """Gathers a gazetteer from passages in order; the first of each article defines its title.

    size: names kept, titles before links, 0: all.
    """

    def __init__(self, language: str, size: int):
        self.language, self.size = language, size
        self._types: dict[str, str] = {}
        self._links: Counter[str] = Counter()
        self._small: Counter[str] = Counter()
        self._last = ""
        self._seen = 0

    def add(self, passage: Passage) -> None:
        self._seen += 1
        if self.language == "en" and self._seen <= LEARN_FROM:
            self._small.update(set(_SMALL.findall(passage.text)))
        if passage.title == self._last:
            return
        self._last = passage.title
        name = _PARENTHESES.sub("", passage.title)
        if self._has_form_of_name(name) and (not self.size or len(self._types) < self.size):
            self._types.setdefault(name, define(passage.text[:300], self.language))

    def add_link(self, text: str) -> None:
        """A link's text: a name where it is written as one."""
        if self._has_form_of_name(text) and (not self.size or len(self._links) < self.size):
            self._links[text] += 1

    def _has_form_of_name(self, name: str) -> bool:
        if len(name) < _MIN[self.language] or len(name) > 60:
            return False
        if self.language == "zh":
            return bool(chinese.CHARACTER.search(name)) and not name.isascii()
        return name[0].isupper() and " and " not in name and name not in lexicon.TRIVIAL

    def finish(self) -> Gazetteer:
        """Single words that the corpus also writes small are no names."""
        ordinary = {w for w, n in self._small.items() if n > 1} | lexicon.ORDINARY
        types = self._types | {n: "TERM" for n in self._links if n not in self._types}
        kept = {n: t for n, t in types.items() if self._is_name(n, ordinary)}
        if self.size:
            kept = dict(list(kept.items())[: self.size])
        return Gazetteer(self.language, kept, frozenset(ordinary if self._small else ()))

    def _is_name(self, name: str, ordinary: Collection[str]) -> bool:
        if self.language == "zh":
            return len(name) > 2 or self._types.get(name, "TERM") != "TERM"
        small = name.casefold()
        return not (small in ordinary or all(w in ordinary for w in small.split()))


def define(sentence: str, language: str) -> str:
    """The type that an article's first sentence gives its title; TERM where it tells none."""
    if language == "zh":
        if _ZH_LIFE.search(sentence[:60]):
            return "PERSON"
        return next((k for k, pattern in _ZH_KINDS.items() if pattern.search(sentence)), "TERM")
    if _BORN.search(sentence[:200]):
        return "PERSON"
    places = {k: m.end() for k, p in _DEFINED.items() if (m := p.search(sentence))}
    return min(places, key=places.__getitem__) if places else "TERM"


def learn(passages: Iterable[Passage], language: str, size: int = 0) -> Gazetteer:
    """The gazetteer of a corpus given as passages in the order of their articles."""
    learner = Learner(language, size)
    for passage in passages:
        learner.add(passage)
    return learner.finish()
