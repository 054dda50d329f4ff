"""Files of questions as their authors publish them, read into one schema, `QAExample`.

Read are JSON arrays, JSON lines and CSV (or TSV) with rows above its header, packed as
`corpus.packed` says, in UTF-8 or in UTF-16 with a byte order mark. A text where a list is due is a
list in JSON, or else the only item. A row's keys, in any case, tell the data set:

- ours: `id` (or `qid`), `dataset`, `question`, `answers` and, if known, `gold`, `type`, `titles`,
  `level`, `hops`, `parts`, `decomposition`;
- HotpotQA, 2WikiMultihopQA: `_id`, `question`, `answer`, `supporting_facts`, `type`, `level`;
- MuSiQue: `paragraphs`, `question_decomposition`, `answer_aliases`, `answerable`;
- Bamboogle: `Question`, `Answer`; FreshQA: `answer_0` and so on, `fact_type`, `num_hops`;
- FanOutQA: `decomposition` with evidence, or `necessary_evidence` and no answer;
- FlashRAG: `golden_answers`, and the rest in `metadata`; `data_source` names the data set where
  a file holds several;
- NQ-open: `answer`, a list of accepted answers. FanOutQA's list is one answer of several parts.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import hashlib
import html
import io
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

from masksearch_jax.core.types import QAExample
from masksearch_jax.corpus import json_values
from masksearch_jax.corpus.packed import DAMAGE, PackingError, unpack

_log = logging.getLogger(__name__)
FORMS = "a JSON array, JSON lines, or CSV with a column `question`"
_HEAD = 4096  # characters that tell the kind of a file
_HEADER_WITHIN = 20  # rows of a sheet, above its header and with it
_HOPS = {"one-hop": 1, "two-hop": 2}
_HOPS_IN_NAME = re.compile(r"(?<![^\W_])(\d)hop")  # MuSiQue: 2hop__1_2, 3hop1
_NOT_ANSWERABLE = "not answerable"
_NO_ANSWERS = "no answers"
_PAIRED = "its question is there already, with another context"  # of MuSiQue-Full
_NO_FAULT = (_NOT_ANSWERABLE, _PAIRED)
_LIST = re.compile(r"\s*\[\s*[]\"'\d{[]")  # as a list begins in JSON or in Python
_TOLD = 3  # malformed rows of a file that a warning quotes


class QuestionsError(ValueError):
    """A file of questions that cannot be used; the message names the file and the row."""


class Questions(NamedTuple):
    """The questions of a file in its order, and rows that are none by reason."""

    examples: list[QAExample]
    dropped: Counter[str]


class _BadRow(Exception):
    """A row that is no question; `reason` is what it is counted by."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_questions(
    path: str | os.PathLike[str],
    *,
    dataset: str = "",
    with_answers: bool = True,
    names_of: Callable[[str], Sequence[str]] = lambda entity: (),
    max_bad_fraction: float = 0.01,
    log: Callable[[str], None] | None = None,
) -> Questions:
    """The questions of a file.

    dataset: the name of the set, where rows do not say it and have not the form of a known set; by
    default the file's. names_of: other names of the entity of an `answer_id`, which are accepted
    answers too. with_answers: a row without an answer is bad; else it is a question without
    answers. A bad row is left out and goes to `log` as "file:row: reason"; without a `log` a
    warning quotes the first few and counts them. A question that is marked as not answerable is
    left out where answers are needed, else the second of its id, and is not bad. An id that a
    question of another data set has already is prefixed by its own set's name. QuestionsError
    for a file that is missing, empty, of another form or encoding, or damaged, and for more than
    `max_bad_fraction` bad rows (names the first).
    """
    path = Path(path)
    examples: list[QAExample] = []
    dropped: Counter[str] = Counter()
    bad_rows = 0
    first: list[str] = []
    seen: dict[str, QAExample] = {}
    for where, row in rows(path):
        try:
            row = _folded(row)
            example = _example(row, dataset or _name(path), with_answers, names_of)
            may_repeat = "answerable" in row and not with_answers
            example = _new(example, seen, may_repeat=may_repeat)
        except _BadRow as bad:
            dropped[bad.reason] += 1
            if bad.reason not in _NO_FAULT:
                bad_rows += 1
                first += [f"{path}:{where}: {bad}"] if len(first) < _TOLD else []
                if log:
                    log(f"{path}:{where}: {bad}")
            continue
        seen[example.id] = example
        examples.append(example)
    count = len(examples) + dropped.total()
    if count and dropped[_NO_ANSWERS] == count:
        raise QuestionsError(
            f"{path} holds {count} questions without answers, as the test file of a set does whose "
            "authors keep them: there is nothing to train on or to score; use the dev file"
        )
    if bad_rows > max_bad_fraction * count:
        raise QuestionsError(
            f"{bad_rows} of {count} rows of {path} are malformed, more than "
            f"{max_bad_fraction:.0%}; the first is {first[0]}"
        )
    if not examples:
        raise QuestionsError(f"{path} holds no questions")
    if first and not log:
        _log.warning("%d rows of %s are left out: %s", bad_rows, path, "; ".join(first))
    return Questions(examples, dropped)


def _name(path: Path) -> str:
    """A name for the set of a file: its own, or its folder's where it is named by a split."""
    stem = path.name.partition(".")[0]
    return path.resolve().parent.name if stem in ("train", "dev", "test", "validation") else stem


# ---- files to rows


def rows(path: Path) -> Iterator[tuple[int | str, Any]]:
    """(line number or the like, row) of a file; a row is a dict, or else what stands in its place.

    Raises QuestionsError.
    """
    try:
        with open(path, "rb") as raw:
            text = _decoded(unpack(raw, path))
            try:
                yield from _text_rows(path, text)
            finally:
                text.detach()
    except PackingError as error:
        raise QuestionsError(str(error)) from None
    except UnicodeError as error:
        raise QuestionsError(
            f"{path} is neither UTF-8 nor UTF-16 with a byte order mark ({error}); save it as UTF-8"
        ) from None
    except IsADirectoryError:
        raise QuestionsError(
            f"the questions {path} are a folder; they must be a file: {FORMS}"
        ) from None
    except DAMAGE as error:
        said = getattr(error, "strerror", None) or error
        raise QuestionsError(f"cannot read the questions {path}: {said}") from None


def _decoded(file: IO[bytes]) -> io.TextIOWrapper:
    """The text of a file. A byte order mark tells UTF-16, and is no part of the text."""
    wide = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return io.TextIOWrapper(file, encoding="utf-16" if wide else "utf-8-sig", newline="")


def _text_rows(path: Path, text: TextIO) -> Iterator[tuple[int | str, Any]]:
    head = text.read(_HEAD)
    if "\0" in head:
        raise QuestionsError(
            f"{path} holds NUL characters, as a binary file or UTF-16 without a byte order mark "
            f"does; it reads {FORMS}, in UTF-8"
        )
    whole = _Rest(head, text)
    if json_values.is_array(head) or json_values.is_spread(head):
        try:
            yield from enumerate(json_values.values(whole), 1)
        except UnicodeError:
            raise
        except ValueError as error:
            raise QuestionsError(f"{path}: {error}") from None
    elif head.lstrip()[:1] in ("{", "["):
        yield from _json_lines(whole)
    elif head.strip():
        yield from _sheet(path, whole)


class _Rest:
    """A text whose first characters were read already, as `read` and as lines."""

    def __init__(self, head: str, text: TextIO):
        self._head, self._text = head, text

    def read(self, size: int) -> str:
        head, self._head = self._head, ""
        return head or self._text.read(size)

    def __iter__(self) -> Iterator[str]:
        """Lines end with a line feed alone: other breaks may stand within a JSON string."""
        held = ""
        while more := self.read(1 << 16):
            *lines, held = (held + more).split("\n")
            yield from (f"{line}\n" for line in lines)
        if held:
            yield held


def _json_lines(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, _BadRow("not JSON", str(error))


def _sheet(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Rows of a sheet, named by its header: the first row with a cell `question`."""
    lines = iter(lines)
    top = list(itertools.islice(lines, 200))
    tabs = any("question" in line.casefold() and "\t" in line for line in top)
    reader = csv.reader(itertools.chain(top, lines), delimiter="\t" if tabs else ",")
    names: list[str] = []
    try:
        for number, cells in enumerate(reader, 1):
            if names:
                if len(cells) == len(names) and any(cells):
                    yield reader.line_num, dict(zip(names, cells, strict=True))
                elif any(cells):
                    detail = f"{len(cells)}, not {len(names)}"
                    yield reader.line_num, _BadRow("wrong number of columns", detail)
            elif "question" in (folded := [cell.strip().casefold() for cell in cells]):
                names = folded
            elif number == _HEADER_WITHIN:
                break
    except csv.Error as error:
        raise QuestionsError(f"{path}:{reader.line_num}: {error}") from None
    if not names:
        raise QuestionsError(f"{path} has no questions; it reads {FORMS}, in UTF-8")


# ---- rows to questions


def _folded(row: Any) -> dict[str, Any]:
    """The fields of a row and of its metadata by their names in lower case. Raises _BadRow."""
    if isinstance(row, _BadRow):
        raise row
    if not isinstance(row, dict):
        raise _BadRow("not a JSON object", type(row).__name__)
    plain = {key: value for key, value in row.items() if key == key.casefold()}
    row = {key.casefold(): value for key, value in row.items()} | plain
    more = row.get("metadata")
    return {**_folded(more), **row} if isinstance(more, dict) else row


def _new(example: QAExample, seen: Mapping[str, QAExample], *, may_repeat: bool) -> QAExample:
    """With an id that no question of another data set has.

    may_repeat: a question that is there already is no fault. Raises _BadRow for an id that is.
    """
    earlier = seen.get(example.id)
    if earlier and earlier.dataset != example.dataset:
        example = dataclasses.replace(example, id=f"{example.dataset}:{example.id}")
        earlier = seen.get(example.id)
    if earlier and may_repeat and earlier.question == example.question:
        raise _BadRow(_PAIRED)
    if earlier:
        raise _BadRow("id is there already", repr(example.id))
    return example


def _example(
    row: dict[str, Any],
    dataset: str,
    with_answers: bool,
    names_of: Callable[[str], Sequence[str]],
) -> QAExample:
    """The question of a row of any of the forms. Raises _BadRow."""
    if "question" not in row:
        raise _BadRow("no question", f"keys are {', '.join(map(str, row)) or 'none'}")
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        raise _BadRow("question is not text", repr(question)[:80])
    if row.get("answerable") is False and with_answers:
        raise _BadRow(_NOT_ANSWERABLE)
    named = row.get("dataset") or row.get("data_source")
    try:
        dataset = str(named or _dataset(row) or dataset)
        answers = _answers(row, dataset)
        if answers and isinstance(entity := row.get("answer_id"), str):
            answers = tuple(dict.fromkeys((*answers, *names_of(entity))))
        example = QAExample(
            id=_id(row, dataset, question.strip()),
            dataset=dataset,
            question=question.strip(),
            answers=answers,
            gold=_gold(row),
            type=_type(row),
            titles=tuple(dict.fromkeys(html.unescape(t) for t in _titles(row) if t)),
            level=str(row.get("level") or ""),
            hops=_hops(row),
            parts=_parts(row),
            calls=_calls(row),
        )
    except (TypeError, LookupError, AttributeError, ValueError, OverflowError) as error:
        raise _BadRow("not a row of its form", repr(error)) from None
    if with_answers and not answers:
        raise _BadRow(_NO_ANSWERS, f"keys are {', '.join(map(str, row))}")
    try:
        json.dumps(dataclasses.astuple(example), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _BadRow("not valid Unicode", error.reason) from None
    return example


def _dataset(row: Mapping[str, Any]) -> str:
    """The set that a row's keys are of, "" for none that is known."""
    if "fact_type" in row:
        return "freshqa"
    if "necessary_evidence" in row or _has_evidence(row):
        return "fanoutqa"
    if "question_decomposition" in row:
        return "musique"
    if "evidences" in row:
        return "2wiki"
    return "hotpotqa" if "_id" in row and "context" in row else ""


def _has_evidence(row: Mapping[str, Any]) -> bool:
    steps = _list(row, "decomposition")
    return bool(steps) and isinstance(steps[0], dict) and "evidence" in steps[0]


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key; of a text the list that it is in JSON, or the text alone; of none [].

    Raises _BadRow for what is neither, and for a text that begins as a list and is none in JSON.
    """
    value = row.get(key)
    if isinstance(value, str):
        if not _LIST.match(value):
            return [value] if value.strip() else []
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list | None):
        raise _BadRow("a field is no list", f"{key} is {value!r}; it must be a list")
    return value or []


def _records(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key, which may be stored in columns, as `datasets` does. Raises _BadRow."""
    value = row.get(key)
    if not isinstance(value, Mapping):
        return _list(row, key)
    columns = [_list(value, name) for name in value]
    return [dict(zip(value, each, strict=True)) for each in zip(*columns, strict=True)]


def _id(row: Mapping[str, Any], dataset: str, question: str) -> str:
    """The row's id; FreshQA's, a number, after the set's name; a hash where there is none."""
    for key in ("id", "_id", "qid"):
        if row.get(key) not in (None, ""):
            return f"freshqa:{row[key]}" if "fact_type" in row else str(row[key])
    digest = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=6)
    return f"{dataset}:{digest.hexdigest()}"


def _answers(row: Mapping[str, Any], dataset: str) -> tuple[str, ...]:
    """All accepted answers, each once; none where the row has none. Raises _BadRow."""
    found: list[Any] = []
    for key in ("answers", "golden_answers"):
        found += _list(row, key)
    answer = row.get("answer")
    is_choice = isinstance(answer, list) and dataset != "fanoutqa"
    found += answer if is_choice else [answer]
    found += _list(row, "answer_aliases")
    found += (row[key] for key in row if re.fullmatch(r"answer_\d+", key))
    texts = (_flat(each).strip() for each in found if each is not None and each == each)  # no NaN
    return tuple(dict.fromkeys(text for text in texts if text))


def _gold(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of passages, which may be numbers. Raises _BadRow."""
    found = _list(row, "gold")
    if not all(isinstance(g, str | int) for g in found):
        detail = f"gold is {found!r}; it must be a list of passages' ids"
        raise _BadRow("gold names no passage", detail)
    return tuple(map(str, found))


def _calls(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tools other than search are to be asked, of our form. Raises _BadRow."""
    calls = row.get("calls") or []
    if not isinstance(calls, list) or not all(isinstance(c, str) and ": " in c for c in calls):
        detail = f"calls is {calls!r}; it must be a list of texts 'TOOL: REQUEST'"
        raise _BadRow("calls are no list of texts", detail)
    return tuple(calls)


def _parts(row: Mapping[str, Any]) -> str:
    """Our `parts`, or FanOutQA's answer, as JSON. Raises _BadRow for a text that is not JSON.

    The answer of another set is a text or several to choose from.
    """
    parts = row.get("parts")
    if isinstance(parts, str) and parts.strip():
        try:
            json.loads(parts)
        except (ValueError, RecursionError) as error:
            detail = f"parts is {parts[:80]!r}; it must be a list or an object, or JSON of one"
            raise _BadRow("parts are not JSON", f"{detail} ({error})") from None
        return parts
    if parts and not isinstance(parts, str) and parts == parts:  # no NaN
        return json.dumps(parts, ensure_ascii=False)
    is_structured = _has_evidence(row) and row.get("answer") is not None
    return json.dumps(row["answer"], ensure_ascii=False) if is_structured else ""


def _flat(answer: Any) -> str:
    """A nested answer as one line: "Babe Ruth: left, Hank Aaron: right"; true is yes."""
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    if isinstance(answer, Mapping):
        return ", ".join(f"{k}: {_flat(v)}" for k, v in answer.items())
    if isinstance(answer, list):
        return ", ".join(_flat(a) for a in answer)
    return str(answer)


def _type(row: Mapping[str, Any]) -> str:
    if "fact_type" in row:
        return f"{row['fact_type']},{row.get('num_hops', '')}".strip(",")
    return str(row.get("type") or ",".join(_list(row, "categories")))


def _titles(row: Mapping[str, Any]) -> Iterator[str]:
    """Titles of the articles that support the answer."""
    yield from _list(row, "titles")
    facts = row.get("supporting_facts")
    if isinstance(facts, Mapping):  # in columns
        yield from _list(facts, "title")
    else:
        facts = _list(row, "supporting_facts")
        yield from (fact if isinstance(fact, str) else fact[0] for fact in facts)
    for paragraph in _records(row, "paragraphs"):
        if paragraph.get("is_supporting"):
            yield paragraph["title"]
    if _has_evidence(row):
        steps = _with_evidence(_list(row, "decomposition"))
        yield from (step["evidence"]["title"] for step in steps)
    yield from (article["title"] for article in _list(row, "necessary_evidence"))


def _with_evidence(steps: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The steps of FanOutQA's tree that read an article."""
    for step in steps:
        if step.get("evidence"):
            yield step
        yield from _with_evidence(step.get("decomposition") or ())


def _hops(row: Mapping[str, Any]) -> int:
    """Steps to the answer, as the row says or as many as it lists; 0 where it does neither."""
    if row.get("hops"):
        return int(row["hops"])
    if (number := row.get("num_hops")) and isinstance(number, int | str):
        return number if isinstance(number, int) else _HOPS.get(number, 0)
    steps = _list(row, "decomposition")
    if _has_evidence(row):
        return sum(1 for _ in _with_evidence(steps))
    for listed in (_records(row, "question_decomposition"), steps, _records(row, "evidences")):
        if listed:
            return len(listed)
    named = (_HOPS_IN_NAME.search(str(row.get(key))) for key in ("id", "qid", "type"))
    return next((int(found[1]) for found in named if found), 0)
