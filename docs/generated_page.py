"""What the pages that are made from the code share: escaping, and writing where a page changed."""

from __future__ import annotations

import re
from pathlib import Path


def escaped(text: str) -> str:
    """Text as Markdown: what would be a tag, emphasis, a link or a formula is escaped.

    Text in backticks stays as it is.
    """
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p[:1] == "`" else re.sub(r"([*<_\[\]$])", r"\\\1", p) for p in parts)


def write(path: Path, text: str) -> None:
    """Writes a page, and leaves its file alone where nothing changed."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
