"""A passage as one text: its title in quotes on a line of its own, then its text (wiki-18)."""

from __future__ import annotations

_MAX_TITLE = 255  # bytes: no title of MediaWiki is longer
_ENDS = tuple(".!?。！？")


def join(title: str, text: str) -> str:
    """The contents of a passage."""
    return f'"{title}"\n{text}'


def split(contents: str) -> tuple[str, str]:
    """The title ("" where there is none) and the text of contents; the inverse of `join`.

    Contents of one line are text. Of more lines the first is the title, unless it is longer than
    titles are or reads as a sentence does. One pair of quotes comes off a title that has both.
    """
    line, newline, text = contents.partition("\n")
    title = line.strip()
    if not newline or not _is_title(title):
        return "", contents
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, text


def _is_title(line: str) -> bool:
    """False for a line that is too long, and for one of eight words or more that ends as prose."""
    if len(line.encode("utf-8", "surrogatepass")) > _MAX_TITLE:
        return False
    words = len(line.split()) if " " in line else len(line) // 2
    return words < 8 or not line.endswith(_ENDS)
