"""Overlap of a corpus with evaluation sets: titles of gold passages, long runs of their words."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator

from masksearch_jax.core import chinese
from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.ramp.question_files import read_questions

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

    def asks(self, question: str) -> bool:
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
