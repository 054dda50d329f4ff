"""Which questions a corpus can answer at all: what of them it has, and what it states."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.scoring import is_verdict, tokenise
from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.search.store import PassageStore

_GRAM = 3  # words in a row by which texts are compared
_SHARE = 0.5  # of a document's that a corpus with the document has under its title
_ADDED = "added/"


@dataclasses.dataclass(frozen=True)
class Covered:
    """What a corpus has for one question.

    gold_missing, titles_missing: those that it lacks. answer_in_gold: an accepted answer stands in
    a gold passage. answer_rank: the rank, from 1, of the first passage found that has one, 0: none.
    gold_ranks: the rank of each gold passage among those found, 0: not found. is_stated: whether
    the answer is one that a passage has to state; one that judges is not.
    """

    id: str
    dataset: str
    gold_missing: tuple[str, ...]
    titles_missing: tuple[str, ...]
    answer_in_gold: bool
    answer_rank: int
    gold_ranks: tuple[int, ...]
    is_stated: bool

    @property
    def is_answerable(self) -> bool:
        """All that supports the answer is there, and the answer in a passage, if it has to be."""
        has_answer = self.answer_in_gold or self.answer_rank > 0 or not self.is_stated
        return has_answer and not self.gold_missing and not self.titles_missing


def title_key(title: str) -> str:
    """Equal for two spellings of a title."""
    return " ".join(title.replace("_", " ").casefold().split())


def missing_titles(passages: Iterable[Passage], questions: Iterable[QAExample]) -> set[str]:
    """Titles that questions name and no passage has; one reading of the corpus."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for title in {title for question in questions for title in question.titles}:
        wanted[title_key(title)].add(title)
    for passage in passages:
        if not wanted:
            break
        wanted.pop(title_key(passage.title), None)
    return {title for titles in wanted.values() for title in titles}


def cover(
    questions: Sequence[QAExample],
    passages: PassageStore,
    tool: SearchTool,
    absent: set[str],
    depth: int,
) -> list[Covered]:
    """absent: what `missing_titles` found. depth: passages that are searched for a question.

    Raises SearchError.
    """
    found = tool.search([q.question for q in questions], depth) if questions else []
    return [
        _cover(question, passages, hits, absent)
        for question, hits in zip(questions, found, strict=True)
    ]


def _cover(
    question: QAExample, passages: PassageStore, hits: Sequence[Passage], absent: set[str]
) -> Covered:
    gold = {name: passages.find(name) for name in question.gold}
    there = [passage for passage in gold.values() if passage is not None]
    answers = [a for a in (_words(answer) for answer in question.answers) if a.strip()]
    places = [passage.id for passage in hits]
    with_answer = (rank for rank, p in enumerate(hits, start=1) if _has_answer(p, answers))
    return Covered(
        id=question.id,
        dataset=question.dataset,
        gold_missing=tuple(name for name, passage in gold.items() if passage is None),
        titles_missing=tuple(title for title in question.titles if title in absent),
        answer_in_gold=any(_has_answer(passage, answers) for passage in there),
        answer_rank=next(with_answer, 0),
        gold_ranks=tuple(places.index(n) + 1 if n in places else 0 for n in question.gold),
        is_stated=not any(map(is_verdict, question.answers)),
    )


def _words(text: str) -> str:
    """Normalised, with a space at both ends, so that whole words are looked for.

    Each Chinese character is a word.
    """
    return f" {' '.join(tokenise(text))} "


def _has_answer(passage: Passage, answers: Sequence[str]) -> bool:
    text = _words(f"{passage.title} {passage.text}")
    return any(answer in text for answer in answers)


def summary(covered: Iterable[Covered], cuts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Data set → percentages of its questions, and their number.

    gold@k is the share of gold passages among the first k, at most what is in the corpus.
    """
    by_set: dict[str, list[Covered]] = defaultdict(list)
    for one in covered:
        by_set[one.dataset].append(one)
    return {name: _percentages(rows, cuts) for name, rows in by_set.items()}


def _percentages(rows: Sequence[Covered], cuts: Sequence[int]) -> dict[str, float]:
    def percent(flags: Iterable[bool]) -> float:
        return 100.0 * sum(flags) / len(rows)

    told: dict[str, float] = {
        "questions": len(rows),
        "gold_there": percent(not row.gold_missing for row in rows),
        "titles_there": percent(not row.titles_missing for row in rows),
        "answer_in_gold": percent(row.answer_in_gold for row in rows),
        "answerable": percent(row.is_answerable for row in rows),
    }
    named = [row for row in rows if row.gold_ranks]
    for k in cuts:
        told[f"answer@{k}"] = percent(0 < row.answer_rank <= k for row in rows)
        shares = [
            sum(0 < rank <= k for rank in row.gold_ranks) / len(row.gold_ranks) for row in named
        ]
        told[f"gold@{k}"] = 100.0 * sum(shares) / len(named) if named else 0.0
    return told


def additions(documents: Iterable[tuple[str, str]], passages: Iterable[Passage]) -> list[Passage]:
    """Passages of the (title, text)s that the corpus lacks; one reading of the corpus.

    A document is lacking whose title no passage has, and one of which the passages of its title
    have less than half: that much is left of an article in another year's words. Ids begin with
    `added/`, and none is taken already.
    """
    wanted: dict[str, list[str]] = {title_key(title): [] for title, _ in documents}
    ids: set[str] = set()
    for passage in passages:
        if (key := title_key(passage.title)) in wanted:
            wanted[key].append(passage.text)
        if passage.id.startswith(_ADDED):
            ids.add(passage.id)
    held = {key: _grams(texts) for key, texts in wanted.items()}
    added = []
    for title, text in documents:
        own = _grams([text])
        if own and len(own & held[title_key(title)]) < _SHARE * len(own):
            names = itertools.chain([title], (f"{title}#{n}" for n in itertools.count(2)))
            name = next(_ADDED + n for n in names if _ADDED + n not in ids)
            ids.add(name)
            held[title_key(title)] |= own
            added.append(Passage(name, title, text))
    return added


def _grams(texts: Iterable[str]) -> set[tuple[str, ...]]:
    """Words in a row of texts, _GRAM of them or all of a shorter text."""
    found: set[tuple[str, ...]] = set()
    for words in map(tokenise, texts):
        last = max(1, len(words) - _GRAM + 1) if words else 0
        found |= {tuple(words[i : i + _GRAM]) for i in range(last)}
    return found
