"""Chinese characters: words are not spaced there, so each counts as a word of its own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

CHARACTERS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # for a class of a regular expression
CHARACTER = re.compile(f"[{CHARACTERS}]")
_WORD = re.compile(rf"[^\W{CHARACTERS}]")
PUNCTUATION = "，。、；：？！（）《》〈〉「」『』【】〔〕“”‘’…—–·‧・•～〜．"


_WORDS = re.compile(rf"[^\W\d_{CHARACTERS}]+")


def is_chinese(text: str) -> bool:
    """Whether a text is written in Chinese: more of its characters than words of other letters."""
    return len(CHARACTER.findall(text)) > len(_WORDS.findall(text))


def half_width(text: str) -> str:
    """The text with digits, letters and signs as wide as a character made ordinary ones."""
    return unicodedata.normalize("NFKC", text)


def spaced(text: str) -> str:
    """The text with white space around each Chinese character."""
    return CHARACTER.sub(r" \g<0> ", text)


def places(words: str, text: str, *, any_case: bool = False) -> Iterator[int]:
    """Where the words begin in a text, whole: no word goes on beside them.

    Chinese has no whole words, so that anything may stand beside its characters.
    """
    open_start, open_end = CHARACTER.match(words), CHARACTER.match(words[-1:])
    for found in re.finditer(re.escape(words), text, re.IGNORECASE if any_case else 0):
        before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        if (open_start or not _WORD.match(before)) and (open_end or not _WORD.match(after)):
            yield found.start()


def is_within(words: str, text: str) -> bool:
    """Whether the words stand in a text, in any case, whole (`places`)."""
    return next(places(words, text, any_case=True), None) is not None
