"""Overlap of a corpus with evaluation sets: gold passages by title and id, long runs of words."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from masksearch_jax.core import chinese
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.ramp.question_files import read_questions

Item = TypeVar("Item", bound=Hashable)

_WORD = re.compile(rf"[{chinese.CHARACTERS}]|[^\W{chinese.CHARACTERS}_]+")
# With 500 gold passages 0.5% to 1.0% of the Chinese paragraphs of other articles share a run of 39
# characters, 0.2% to 0.3% of the English ones one of 13 words. Of 30 characters 3% do, of 13 11%.
_CHARACTERS_OF_A_WORD = 3


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What must not be trained on: titles, and hashes of runs of questions and gold passages.

    gold: ids of those gold passages that are the corpus's own. unresolved: of each file the ids
    that its questions name without a title, and that nothing has told the passages of.
    """

    titles: frozenset[str]
    runs: frozenset[int]
    n: int
    gold: frozenset[str] = frozenset()
    unresolved: tuple[tuple[str, frozenset[str]], ...] = ()

    def has_question(self, question: str) -> bool:
        """Whether one of the sets asks the same, in the same words or a run of `n` of them."""
        return any(run in self.runs for run in runs(question, self.n))

    def overlap(self, passage: Passage) -> str:
        """gold_id | gold_title | gold_text, or "" where a passage shares none of the three."""
        if passage.id in self.gold:
            return "gold_id"
        if passage.title.casefold() in self.titles:
            return "gold_title"
        return "gold_text" if any(run in self.runs for run in runs(passage.text, self.n)) else ""

    def resolved(self, corpus: Iterable[Passage]) -> Evaluation:
        """With the corpus's own passages that questions name by id alone. The corpus is read once.

        Raises ConfigError where not one passage that a file names is in the corpus: nothing could
        be said of that file then.
        """
        wanted = frozenset[str]().union(*(ids for _, ids in self.unresolved))
        found = [p for p in corpus if p.id in wanted]
        gold = {p.id for p in found}
        for path, ids in self.unresolved:
            if not ids & gold:
                raise ConfigError(
                    f"config.clean.evaluation has {path}, which names {len(ids):,} gold passages "
                    f"by id alone, such as {min(ids)!r}, and none is in the corpus; "
                    "config.clean.evaluation_passages must name the file that holds them"
                )
        return dataclasses.replace(
            self,
            titles=self.titles | {p.title.casefold() for p in found if p.title},
            runs=self.runs.union(*(runs(p.text, self.n) for p in found)),
            gold=self.gold | gold,
            unresolved=(),
        )


def runs(text: str, n: int) -> Iterator[int]:
    """64-bit hashes of runs of n words; of a shorter text that of all its words.

    Three Chinese characters count as a word.
    """
    words = _WORD.findall(text.casefold())
    sizes = (1 if chinese.CHARACTER.match(w) else _CHARACTERS_OF_A_WORD for w in words)
    ends = list(itertools.accumulate(sizes, initial=0))
    need = min(n * _CHARACTERS_OF_A_WORD, ends[-1])
    end = 0
    for start in range(len(words)):
        if ends[-1] - ends[start] < need:
            return
        while ends[end] - ends[start] < need:
            end += 1
        yield _hash(words[start:end])


def _hash(words: Iterable[str]) -> int:
    run = " ".join(words).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(run, digest_size=8).digest())


def evaluation(questions: Iterable[QAExample], passages: Iterable[Passage], n: int) -> Evaluation:
    """The titles and runs of questions and of those passages that their `gold` names."""
    found: set[int] = set()
    wanted: set[str] = set()
    titles: set[str] = set()
    for question in questions:
        wanted.update(question.gold)
        titles.update(question.titles)
        found.update(runs(question.question, n))
    for passage in passages:
        if passage.id in wanted:
            titles.add(passage.title)
            found.update(runs(passage.text, n))
    return Evaluation(frozenset(t.casefold() for t in titles if t), frozenset(found), n)


class Known(NamedTuple):
    """By what an item, or what was trained on, is known: its text, titles, ids of passages."""

    text: str
    titles: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


def shared(items: Mapping[Item, Known], trained: Iterable[Known], n: int) -> dict[Item, str]:
    """Which items share something with what was trained on: item → passage, title or text.

    passage: an id of one. text: a run of n words, or all of a shorter text. `trained` is read once,
    as it comes.
    """
    by_id: dict[str, list[Item]] = {}
    by_title: dict[str, list[Item]] = {}
    by_run: dict[int, list[Item]] = {}
    for item, known in items.items():
        for name in known.ids:
            by_id.setdefault(name, []).append(item)
        for title in filter(None, known.titles):
            by_title.setdefault(title.casefold(), []).append(item)
        for run in runs(known.text, n):
            by_run.setdefault(run, []).append(item)
    found: dict[str, dict[Item, str]] = {"text": {}, "title": {}, "passage": {}}
    for text, titles, ids in trained:
        places = {
            "passage": (by_id.get(name, ()) for name in ids),
            "title": (by_title.get(title.casefold(), ()) for title in titles),
            "text": (by_run.get(run, ()) for run in runs(text, n)),
        }
        for why, groups in places.items():
            found[why].update(dict.fromkeys(itertools.chain.from_iterable(groups), why))
    return found["text"] | found["title"] | found["passage"]


def read(questions: Iterable[str], passages: str, n: int) -> Evaluation:
    """The evaluation sets of files of questions, and of the passages (JSONL) that those name.

    Questions are in any form that `question_files` reads; they need no answers. Raises ValueError
    where no file is named, and as the readers do.
    """
    sets = {path: read_questions(path, with_answers=False).examples for path in questions}
    asked = list(itertools.chain.from_iterable(sets.values()))
    if not asked:
        raise ValueError("no file of questions that must not be trained on (clean.evaluation)")
    wanted = {name for question in asked for name in question.gold}
    known = read_passages(passages) if passages else ()
    gold = [passage for passage in known if passage.id in wanted]
    told = {passage.id for passage in gold}
    unresolved = {
        path: frozenset(name for q in own if not q.titles for name in q.gold) - told
        for path, own in sets.items()
    }
    return dataclasses.replace(
        evaluation(asked, gold, n),
        unresolved=tuple((path, ids) for path, ids in unresolved.items() if ids),
    )
