"""Overlap of a corpus with evaluation sets: titles of gold passages, long runs of their words."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator

from masksearch_jax.data import corpus, qa
from masksearch_jax.types import Passage, QAExample

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff_]+")  # a Chinese character is a word here


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What must not be trained on: titles, and hashes of n-grams of questions and gold passages."""

    titles: frozenset[str]
    ngrams: frozenset[int]
    n: int

    def overlap(self, passage: Passage) -> str:
        """gold_title | gold_text, or "" where a passage shares neither title nor n-gram."""
        if passage.title.casefold() in self.titles:
            return "gold_title"
        return "gold_text" if any(g in self.ngrams for g in ngrams(passage.text, self.n)) else ""


def ngrams(text: str, n: int) -> Iterator[int]:
    """64-bit hashes of runs of n words; none for a shorter text."""
    words = _WORD.findall(text.casefold())
    for i in range(len(words) - n + 1):
        run = " ".join(words[i : i + n]).encode("utf-8", "surrogatepass")
        yield int.from_bytes(hashlib.blake2b(run, digest_size=8).digest())


def evaluation(questions: Iterable[QAExample], passages: Iterable[Passage], n: int) -> Evaluation:
    """The titles and n-grams of questions and of those passages that their `gold` names."""
    grams: set[int] = set()
    wanted: set[str] = set()
    for question in questions:
        wanted.update(question.gold)
        grams.update(ngrams(question.question, n))
    titles: set[str] = set()
    for passage in passages:
        if passage.id in wanted:
            titles.add(passage.title.casefold())
            grams.update(ngrams(passage.text, n))
    return Evaluation(frozenset(titles), frozenset(grams), n)


def read(questions: Iterable[str], passages: str, n: int) -> Evaluation:
    """The evaluation sets of JSONL files of questions, and of the passages that they name, if any.

    Raises ValueError where no file is named, and as the readers do.
    """
    asked = [q for path in questions for q in qa.read_questions(path)]
    if not asked:
        raise ValueError("no file of questions that must not be trained on (clean.evaluation)")
    return evaluation(asked, corpus.read_passages(passages) if passages else (), n)
