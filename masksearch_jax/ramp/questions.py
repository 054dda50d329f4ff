"""Questions: our JSON lines, FanOutQA's JSON, FreshQA's CSV, and the split by article.

A line of ours has `qid`, `dataset`, `question`, `answers` and, if known, `type` and `gold` (the ids
of the passages that support the answer, in the order they are read).
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from masksearch_jax.core.config import RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.types import QAExample
from masksearch_jax.ramp.examples import is_heldout, write_jsonl

_log = logging.getLogger(__name__)


class QuestionsError(ValueError):
    """A file of questions that cannot be used; the message names the file and the line."""


def read_questions(
    path: str | os.PathLike[str],
    *,
    max_bad_fraction: float = 0.01,
    log: Callable[[str], None] = _log.warning,
) -> list[QAExample]:
    """The questions of a JSON lines file, plain or gzipped.

    A malformed line is left out and goes to `log` as "file:line: reason". QuestionsError for a
    missing or empty file, and for more than `max_bad_fraction` malformed lines (names the first).
    """
    path = Path(path)
    examples: list[QAExample] = []
    bad: list[str] = []
    seen: set[str] = set()
    lines = _lines(path)
    for number, line in lines:
        try:
            example = _from_line(line)
            if example.id in seen:
                raise ValueError(f"qid {example.id!r} is there already")
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            bad.append(f"{path}:{number}: {reason}")
            log(bad[-1])
            continue
        seen.add(example.id)
        examples.append(example)
    if len(bad) > max_bad_fraction * len(lines):
        raise QuestionsError(
            f"{len(bad)} of {len(lines)} lines of {path} are malformed, more than "
            f"{max_bad_fraction:.0%}; the first is {bad[0]}"
        )
    if not examples:
        raise QuestionsError(f"{path} holds no questions")
    return examples


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise QuestionsError(f"cannot read the questions {path}: {error}") from None
    numbered = enumerate(text.split("\n"), 1)
    return [(number, line) for number, line in numbered if line.strip()]


def _from_line(line: str) -> QAExample:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"an object is needed, got {type(row).__name__}")
    if not isinstance(row["question"], str) or not row["question"].strip():
        raise ValueError(f"question is {row['question']!r}; it must be text")
    return QAExample(
        id=str(row["qid"]),
        dataset=str(row["dataset"]),
        question=row["question"].strip(),
        answers=_answers(row["answers"]),
        gold=tuple(str(g) for g in row.get("gold", ())),
        type=str(row.get("type", "")),
    )


def _answers(value: Any) -> tuple[str, ...]:
    found = tuple(str(a).strip() for a in value) if isinstance(value, list) else ()
    found = tuple(dict.fromkeys(a for a in found if a))
    if not found:
        raise ValueError(f"answers is {value!r}; it must be a list of texts")
    return found


def read_fanoutqa(path: str | os.PathLike[str]) -> list[QAExample]:
    """FanOutQA in its authors' JSON; the answer is its values, joined by commas.

    `gold` holds the page ids of the evidence. Source: github.com/zhudotexe/fanoutqa.
    """
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return [
        QAExample(
            id=row["id"],
            dataset="fanoutqa",
            question=row["question"],
            answers=(_flat(row["answer"]),),
            gold=tuple(dict.fromkeys(_evidence(row.get("decomposition", ())))),
            type=",".join(row.get("categories", ())),
        )
        for row in rows
    ]


def _flat(answer: Any) -> str:
    """A nested answer as one line: "Babe Ruth: left, Hank Aaron: right"."""
    if isinstance(answer, Mapping):
        return ", ".join(f"{k}: {_flat(v)}" for k, v in answer.items())
    if isinstance(answer, list):
        return ", ".join(_flat(a) for a in answer)
    return str(answer)


def fanoutqa_titles(path: str | os.PathLike[str]) -> set[str]:
    """The titles of all articles that are evidence in a FanOutQA file."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return {t for row in rows for t in _evidence(row.get("decomposition", ()), "title")}


def _evidence(steps: Iterable[Mapping[str, Any]], key: str = "pageid") -> Iterable[str]:
    for step in steps:
        if step.get("evidence"):
            yield str(step["evidence"][key])
        yield from _evidence(step.get("decomposition", ()), key)


def read_freshqa(path: str | os.PathLike[str]) -> list[QAExample]:
    """FreshQA in its authors' CSV, all accepted answers. Source: github.com/freshllms/freshqa."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    examples = []
    for row in rows:
        answers = [row[k].strip() for k in row if k and k.startswith("answer_") and row[k]]
        examples.append(
            QAExample(
                id=f"freshqa:{row['id']}",
                dataset="freshqa",
                question=row["question"].strip(),
                answers=tuple(dict.fromkeys(a for a in answers if a)),
                type=f"{row['fact_type']},{row['num_hops']}",
            )
        )
    return examples


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

    A question's first gold passage is where it starts; without gold a hash of its id decides.
    """
    train, heldout, between = [], [], 0
    for question in questions:
        keys = [titles.get(g, g) for g in question.gold] or [question.id]
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
    titles: Mapping[str, str],
    dropped: Counter[str],
    cfg: RampConfig,
    path: str,
) -> dict[str, Any]:
    """Writes FOLDER/questions/{train,heldout}.jsonl, split by article; the counts in and out.

    Kept are the questions whose gold passages are all in `titles`. dropped: lines of the file
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
