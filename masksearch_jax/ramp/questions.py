"""Questions split by article into those to train on and those held out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.types import QAExample
from masksearch_jax.ramp.examples import is_heldout


@dataclasses.dataclass(frozen=True)
class QuestionSplit:
    """Questions by article: `train` reads no held-out article, `heldout` starts from one.

    `between` counts the others: they start from a training article and lead to a held-out one.
    """

    train: tuple[QAExample, ...]
    heldout: tuple[QAExample, ...]
    between: int


def split_questions(
    questions: Iterable[QAExample], titles: Mapping[str, str], fraction: float, seed: int
) -> QuestionSplit:
    """The split of RAMP applied to questions; `titles` gives the title of each passage id.

    A question's first gold passage is where it starts, or its first title where it names no
    passage; without either a hash of its id decides.
    """
    train, heldout, between = [], [], 0
    for question in questions:
        keys = [titles.get(g) or g for g in question.gold] or question.titles or [question.id]
        held = [is_heldout(key, fraction, seed) for key in keys]
        if held[0]:
            heldout.append(question)
        elif any(held):
            between += 1
        else:
            train.append(question)
    return QuestionSplit(tuple(train), tuple(heldout), between)


def write_split(
    folder: Path,
    questions: Iterable[QAExample],
    dropped: Counter[str],
    titles: Mapping[str, str],
    cfg: RampConfig,
    path: str,
) -> dict[str, Any]:
    """Writes FOLDER/questions/{train,heldout}.jsonl, split by article; the counts in and out.

    Kept are the questions whose gold passages are all in `titles`. dropped: rows of the file
    `path` that were none, by reason. Raises ConfigError where not one of the file is kept.
    """
    asked = list(questions)
    kept = [q for q in asked if titles.keys() >= set(q.gold)]
    if asked and not kept and path:
        raise ConfigError(
            f"not one of the {len(asked)} questions of {path} has its gold passages in the corpus; "
            f"the first asks for {asked[0].gold}"
        )
    split = split_questions(kept, titles, cfg.heldout_fraction, cfg.seed)
    for name in ("train", "heldout"):
        file = folder / "questions" / f"{name}.jsonl"
        file.unlink(missing_ok=True)
        if found := getattr(split, name):
            write_jsonl(file, found)
    read = len(asked) + dropped.total()
    lost = {
        "gold passage not in the corpus": len(asked) - len(kept),
        "between splits": split.between,
    }
    by_split = {"train": len(split.train), "heldout": len(split.heldout)}
    counts = {"in": read, "out": sum(by_split.values()), "dropped": dict(dropped + Counter(lost))}
    return counts | by_split
