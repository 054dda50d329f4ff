"""Text records of `types` in files of JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from masksearch_jax.core import files
from masksearch_jax.core.errors import UserError
from masksearch_jax.core.types import R, Record, from_json, to_json


class RecordError(UserError, ValueError):
    """A line of a file that is no record of the kind that the file must hold."""


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record]) -> int:
    """Writes records as JSON lines, whole or not at all; returns their number."""
    return files.write_lines(path, (json.dumps(to_json(r), ensure_ascii=False) for r in records))


def read_jsonl(path: str | os.PathLike[str], cls: type[R]) -> list[R]:
    """Records of `cls` written by `write_jsonl`. RecordError names file and line of a bad one."""
    records: list[R] = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                records.append(from_json(cls, json.loads(line)))
            except (ValueError, TypeError) as error:
                raise RecordError(f"{path}:{number}: not a {cls.__name__}: {error}") from error
    return records
