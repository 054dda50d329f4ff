"""Chinese characters: words are not spaced there, so each counts as a word of its own."""

from __future__ import annotations

import re

CHARACTERS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # for a class of a regular expression
CHARACTER = re.compile(f"[{CHARACTERS}]")
PUNCTUATION = "，。、；：？！（）《》「」『』【】"


def spaced(text: str) -> str:
    """The text with white space around each Chinese character."""
    return CHARACTER.sub(r" \g<0> ", text)


def as_words(text: str) -> re.Pattern[str]:
    """Finds a text, in any case, where no word of letters and digits goes on before or after it."""
    before = "" if CHARACTER.match(text) else rf"(?<![^\W{CHARACTERS}])"
    after = "" if CHARACTER.match(text[-1:]) else rf"(?![^\W{CHARACTERS}])"
    return re.compile(before + re.escape(text) + after, re.IGNORECASE)
