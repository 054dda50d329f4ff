"""Articles as WikiExtractor writes them to wiki_00: `<doc id= url= title=>`, text, `</doc>`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

_OPEN = re.compile(r'<doc id="(.*?)".* title="(.*)">\s*$')
_CLOSE = "</doc>"


def is_document(head: str) -> bool:
    """True where a text begins as a file of documents does; such files may hold JSON lines too."""
    return head.lstrip().startswith("<doc ")


def rows(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(line number, row of id, title, text) of each document in numbered lines.

    None in place of a row: a document that has no end, or text outside of documents.
    """
    start, row, text = 0, None, []
    for number, line in lines:
        if opened := _OPEN.match(line):
            if row is not None:
                yield start, None
            start, text = number, []
            row = {"id": opened[1], "title": html.unescape(opened[2])}
        elif line.strip() != _CLOSE:
            text.append(line)
            if row is None and line.strip():
                yield number, None
        elif row is not None:
            yield start, row | {"text": html.unescape("".join(text))}
            row = None
    if row is not None:
        yield start, None


def without_title(row: dict[str, Any]) -> dict[str, Any]:
    """The row without a first line that repeats its title."""
    title, text = row.get("title"), row.get("text")
    if not isinstance(text, str):
        return row
    line, _, rest = text.strip().partition("\n")
    return row | {"text": rest.strip()} if line.strip() == title and rest.strip() else row
