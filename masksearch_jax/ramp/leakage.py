"""Overlap of a corpus with evaluation sets: titles of gold passages, long runs of their words."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

from masksearch_jax.core import chinese
from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.ramp.question_files import read_questions

Item = TypeVar("Item", bound=Hashable)

_WORD = re.compile(rf"[{chinese.CHARACTERS}]|[^\W{chinese.CHARACTERS}_]+")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What must not be trained on: titles, and hashes of n-grams of questions and gold passages.

    questions: hashes of all words of each question, since most are shorter than `n` words.
    """

    titles: frozenset[str]
    ngrams: frozenset[int]
    n: int
    questions: frozenset[int] = frozenset()

    def has_question(self, question: str) -> bool:
        """Whether one of the sets asks the same, in the same words or a run of `n` of them."""
        whole = _hash(_WORD.findall(question.casefold()))
        return whole in self.questions or any(g in self.ngrams for g in ngrams(question, self.n))

    def overlap(self, passage: Passage) -> str:
        """gold_title | gold_text, or "" where a passage shares neither title nor n-gram."""
        if passage.title.casefold() in self.titles:
            return "gold_title"
        return "gold_text" if any(g in self.ngrams for g in ngrams(passage.text, self.n)) else ""


def ngrams(text: str, n: int) -> Iterator[int]:
    """64-bit hashes of runs of n words; none for a shorter text."""
    words = _WORD.findall(text.casefold())
    for i in range(len(words) - n + 1):
        yield _hash(words[i : i + n])


def _hash(words: Iterable[str]) -> int:
    run = " ".join(words).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(run, digest_size=8).digest())


def evaluation(questions: Iterable[QAExample], passages: Iterable[Passage], n: int) -> Evaluation:
    """The titles and n-grams of questions and of those passages that their `gold` names."""
    grams: set[int] = set()
    asked: set[int] = set()
    wanted: set[str] = set()
    titles: set[str] = set()
    for question in questions:
        wanted.update(question.gold)
        titles.update(question.titles)
        grams.update(ngrams(question.question, n))
        asked.add(_hash(_WORD.findall(question.question.casefold())))
    for passage in passages:
        if passage.id in wanted:
            titles.add(passage.title)
            grams.update(ngrams(passage.text, n))
    folded = frozenset(t.casefold() for t in titles if t)
    return Evaluation(folded, frozenset(grams), n, frozenset(asked))


def shared(
    items: Mapping[Item, tuple[Iterable[str], str]], passages: Iterable[Passage], n: int
) -> dict[Item, str]:
    """Which items share a title or a run of n words with a passage: item → title or text.

    items: titles and text by which each is known. Passages are read once, as they come.
    """
    by_title: dict[str, list[Item]] = {}
    by_run: dict[int, list[Item]] = {}
    for item, (titles, text) in items.items():
        for title in titles:
            by_title.setdefault(title.casefold(), []).append(item)
        for run in ngrams(text, n):
            by_run.setdefault(run, []).append(item)
    found: dict[Item, str] = {}
    for passage in passages:
        found.update(dict.fromkeys(by_title.get(passage.title.casefold(), ()), "title"))
        for run in ngrams(passage.text, n):
            for item in by_run.get(run, ()):
                found.setdefault(item, "text")
    return found


def read(questions: Iterable[str], passages: str, n: int) -> Evaluation:
    """The evaluation sets of files of questions, and of the passages (JSONL) that those name.

    Questions are in any form that `question_files` reads; they need no answers. Raises ValueError
    where no file is named, and as the readers do.
    """
    asked: list[QAExample] = []
    for path in questions:
        asked += read_questions(path, with_answers=False).examples
    if not asked:
        raise ValueError("no file of questions that must not be trained on (clean.evaluation)")
    known = read_passages(passages) if passages else ()
    return evaluation(asked, known, n)
