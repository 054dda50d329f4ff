"""Questions for training and evaluation: gold passages by title, split by article, even by type."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from masksearch_jax.core import chinese
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.types import SPLITS, STATEMENTS, Passage, QAExample
from masksearch_jax.corpus import atlas_statements
from masksearch_jax.ramp.examples import split_of
from masksearch_jax.ramp.leakage import Evaluation


class GoldPassages:
    """The passages of a corpus that support questions, noted as they go by.

    A question that names articles and no passage, as HotpotQA's do, gets one of each article: the
    first that holds an accepted answer, else the article's first.
    """

    def __init__(self, questions: Iterable[QAExample]):
        self.titles: dict[str, str] = {}  # of each gold passage that was seen, by id
        self._wanted: set[str] = set()
        self._asking: dict[str, list[QAExample]] = defaultdict(list)
        self._found: dict[tuple[str, str], tuple[bool, Passage]] = {}
        for question in questions:
            self._wanted.update(question.gold)
            for title in () if question.gold else question.titles:
                self._asking[title.casefold()].append(question)

    def note(self, passage: Passage) -> None:
        if passage.id in self._wanted:
            self.titles[passage.id] = passage.title
        title = passage.title.casefold()
        for question in self._asking.get(title, ()):
            tells = any(chinese.is_within(answer, passage.text) for answer in question.answers)
            told, _ = self._found.get((question.id, title), (False, None))
            if (tells and not told) or (question.id, title) not in self._found:
                light = dataclasses.replace(passage, text="")
                self._found[question.id, title] = tells, light

    def of(self, question: QAExample) -> QAExample:
        """The question with its gold passages, where all its articles were seen."""
        if question.gold or not question.titles:
            return question
        found = [self._found.get((question.id, t.casefold())) for t in question.titles]
        if not all(found):
            return question
        passages = [passage for _, passage in found]
        self.titles.update((p.id, p.title) for p in passages)
        return dataclasses.replace(question, gold=tuple(p.id for p in passages))


@dataclasses.dataclass(frozen=True)
class QuestionSplit:
    """Questions by article: `train` and `rl` read no held-out article, `heldout` starts from one.

    `rl` starts from an article kept for reinforcement learning. `between` counts the others:
    they start from a training article and lead to a held-out one. Each split is in a random order
    that takes types in turn: whatever is first in it is of as many types as can be.
    """

    train: tuple[QAExample, ...]
    rl: tuple[QAExample, ...]
    heldout: tuple[QAExample, ...]
    between: int


def split_questions(
    questions: Iterable[QAExample],
    titles: Mapping[str, str],
    cfg: RampConfig,
    reworded: Iterable[QAExample] = (),
) -> QuestionSplit:
    """The split of RAMP applied to questions; `titles` gives the title of each passage id.

    reworded: questions in other words, the id that of the question, "#" and a number; to train on
    alone.
    A question's first gold passage is where it starts, or its first title where it names no
    passage; without either a hash of its id decides.
    """
    found: dict[str, list[QAExample]] = {"train": [], "rl": [], "heldout": []}
    between = 0
    for question in questions:
        articles = [titles.get(g) or g for g in question.gold] or question.titles or [question.id]
        splits = [split_of(article, cfg) for article in articles]
        if splits[0] != "heldout" and "heldout" in splits:
            between += 1
        else:
            found[splits[0]].append(question)
    to_train_on = {question.id for question in found["train"]}
    found["train"] += [q for q in reworded if q.id.rpartition("#")[0] in to_train_on]
    made = {name: tuple(evenly(asked, f"{cfg.seed}/{name}")) for name, asked in found.items()}
    return QuestionSplit(**made, between=between)


def evenly(questions: Iterable[QAExample], seed: str) -> list[QAExample]:
    """The questions in a random order that takes their types in turn, as long as each lasts."""
    by_type: dict[str, list[QAExample]] = defaultdict(list)
    for question in questions:
        by_type[question.type].append(question)
    for name, asked in by_type.items():
        random.Random(f"{seed}/{name}").shuffle(asked)
    ranked = [(i, name, q) for name, asked in by_type.items() for i, q in enumerate(asked)]
    return [q for _, _, q in sorted(ranked, key=lambda r: r[:2])]


def write_split(
    folder: Path,
    questions: Iterable[QAExample],
    dropped: Counter[str],
    titles: Mapping[str, str],
    cfg: RampConfig,
    path: str,
    evaluation: Evaluation | None = None,
    reworded: Iterable[QAExample] = (),
) -> dict[str, Any]:
    """Writes FOLDER/questions/{train,rl,heldout}.jsonl, split by article; the counts in and out.

    Kept are the questions whose gold passages are all in `titles`, and that no `evaluation` asks.
    reworded: as `split_questions` has it; those that are kept count as "in". dropped: rows of the
    file `path` that were none, by reason. Raises ConfigError where not one of the file is kept.
    """
    asked = list(questions)
    kept = [q for q in asked if titles.keys() >= set(q.gold)]
    if asked and not kept and path:
        raise ConfigError(
            f"not one of the {len(asked)} questions of {path} has its gold passages in the corpus; "
            f"the first asks for {asked[0].gold}"
        )
    free = [q for q in kept if not (evaluation and evaluation.has_question(q.question))]
    split = split_questions(free, titles, cfg, reworded)
    by_split = {}
    for name in ("train", "rl", "heldout"):
        file = folder / "questions" / f"{name}.jsonl"
        file.unlink(missing_ok=True)
        found = getattr(split, name)
        by_split[name] = len(found)
        if found:
            write_jsonl(file, found)
    read = sum(by_split.values()) + len(asked) - len(free) + split.between + dropped.total()
    lost = {
        "gold passage not in the corpus": len(asked) - len(kept),
        "asked by an evaluation set": len(kept) - len(free),
        "between splits": split.between,
    }
    counts = {"in": read, "out": sum(by_split.values()), "dropped": dict(dropped + Counter(lost))}
    return counts | by_split


def write_statements(
    folder: Path, statements: Iterable[QAExample], titles: Mapping[str, str], cfg: RampConfig
) -> dict[str, int]:
    """Writes FOLDER/statements/{train,rl,heldout}.jsonl, split by article; counts by split.

    Kept are those whose passage is in `titles`, and of each fact in a split as many of each label.
    """
    kept = [s for s in statements if titles.keys() >= set(s.gold)]
    split = split_questions(kept, titles, cfg)
    counts = {}
    for name in SPLITS:
        found = atlas_statements.balanced(getattr(split, name))
        counts[name] = write_jsonl(folder / STATEMENTS / f"{name}.jsonl", found)
    return counts
