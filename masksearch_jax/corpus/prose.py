"""What of an encyclopedia is prose, and prose cut into passages; English and Chinese.

Length is in words. Chinese writes none: there two characters count as one word, and a run of Latin
letters or digits as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from masksearch_jax.core import chinese, markup

LANGUAGES = ("en", "zh")
HOLE = "\ufffc"  # where something that is no text stood: a formula, a template
MAX_CHARS = 20_000  # of a paragraph; nothing longer is read at all
STUB_WORDS = 30  # an article with less prose than this is left out

_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_LATIN_RUN = re.compile(r"[^\W_]+")
_MARKUP = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|\[ ?\[?update\]|'''|==|__[A-Z]{3,}__|\bthumb\||\d+px\b|https?://"
    r"|<(?:/?(?:ref|br|div|span|table|tr|td|sub|sup|small|nowiki|gallery|math|code)\b|!--)"
    r"|&(?:nbsp|amp|lt|gt|quot|[nm]dash|#\d+);"
)
_HOLES = re.compile(
    rf"{HOLE}|[^\W\d]  [^\W\d]|\w ,|[$€£]\s+(?:million|billion)|\( ?[-–—]?\d*[-–—]\)"
    r"|(?<!\S)\"\"(?=[\s.,;]|$)|(?:\b[Aa]s|(?<!\S)s) of (?:none\b|\d{4}\[)|\"\"\s*(?:and|or)\b"
    r"|《》|「」|[，、；：]\s*[，。；、]"
)
_EMPTY = re.compile(r" ?[(（][\s,;:，；：、]*[)）]")
_EMPTY_START = re.compile(r"(?<=[(（])\s*[,;:，；：、]\s*")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LIST_LINE = re.compile(r"\s*(?:[*#•·▪–-]|\d{1,2}[.)])\s")
_FUNCTION_TEXT = """
a an the of in on at to by for from with and or but as is are was were be been it its he she
his her their they that which who this these had has have not than also into during after
before between under over about when where while such other some more most one two
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())
_FUNCTION_HAN = re.compile("[的了在是和與与及於于為为以由有被而並并其之中個个一]")
_ENDS = {
    "en": re.compile(r"(?<=[.!?])[\"”’)\]]*\s+(?=[\"“‘(\[]?[^\W_a-z])"),
    "zh": re.compile(r"(?<=[。！？])[」』”）]*(?=[^」』”）])"),
}
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Mt|Jr|Sr|vs|No|Vol|Inc|Ltd|Co|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Prof"
    r"|Fr|cf|ca|c|e\.g|i\.e|etc|approx|b|d|r)\.|\.\.)$"
)


def length(text: str, language: str) -> int:
    """Words of a text; in Chinese two characters are one word."""
    if language == "en":
        return len(text.split())
    characters = len(chinese.CHARACTER.findall(text))
    return (characters + 1) // 2 + len(_LATIN_RUN.findall(chinese.CHARACTER.sub(" ", text)))


def mend(text: str) -> str:
    """The text without empty brackets, which are left where a pronunciation was cut out."""
    if "(" not in text and "（" not in text:
        return text
    return _EMPTY_START.sub("", _EMPTY.sub("", text))


def refusal(text: str, language: str) -> str:
    """Why a text is no clean paragraph of prose, or "". Constant time for one of any size.

    empty | too_long | control_characters | reserved_text | markup | hole | list | table
    | other_script | not_prose. A hole is where something was cut out of a sentence: "US$ million".
    """
    if not text.strip():
        return "empty"
    if len(text) > MAX_CHARS:
        return "too_long"
    if _CONTROL.search(text):
        return "control_characters"
    if markup.has_mask(text) or markup.escape(text) != text:
        return "reserved_text"
    if _MARKUP.search(text):
        return "markup"
    if _is_list(text):
        return "list"
    if text.count("|") > 2 or _is_mostly_numbers(text):
        return "table"
    if _HOLES.search(text):
        return "hole"
    return _language_refusal(text, language)


def _is_list(text: str) -> bool:
    """True for lines of items, and for a flat enumeration: a comma after every third word."""
    lines = [line for line in text.split("\n") if line.strip()]
    items = sum(bool(_LIST_LINE.match(line)) for line in lines)
    if items and 2 * items >= len(lines):
        return True
    marks = sum(map(text.count, ",;、"))
    words = len(text.split()) if " " in text else len(text) // 2
    return marks > 12 and marks > words / 3


def _is_mostly_numbers(text: str) -> bool:
    words = text.split()
    return len(words) > 8 and sum(w[0].isdigit() for w in words) > 0.35 * len(words)


def _language_refusal(text: str, language: str) -> str:
    if language == "en" and text.isascii():
        letters = latin = 1
    else:
        letters = len(_LETTER.findall(text))
        latin = len(_LATIN.findall(text))
    if language == "zh":
        characters = len(chinese.CHARACTER.findall(text))
        if characters < 0.5 * letters or not letters:
            return "other_script"
        return "" if len(_FUNCTION_HAN.findall(text)) >= 0.03 * characters else "not_prose"
    if latin < 0.7 * letters or not letters:
        return "other_script"
    words = text.casefold().split()
    share = sum(map(_FUNCTION_WORDS.__contains__, words)) / len(words)
    return "" if share >= 0.15 else "not_prose"


def is_heading(text: str, language: str) -> bool:
    """True for a short line that does not end as a sentence does."""
    return length(text, language) < 8 and text.rstrip()[-1:] not in '.!?。！？”"」)）'


def sentences(text: str, language: str) -> list[str]:
    """The sentences of a paragraph, in order, stripped; abbreviations do not end one."""
    found: list[str] = []
    held = ""
    for piece in _split(text, _ENDS[language]):
        held += piece
        if language == "zh" or not _ABBREVIATION.search(held.rstrip()):
            found.append(held.strip())
            held = ""
    return [s for s in [*found, held.strip()] if s]


def _split(text: str, ends: re.Pattern[str]) -> Iterator[str]:
    start = 0
    for match in ends.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


def cut(paragraphs: Iterable[str], words: int, language: str) -> list[str]:
    """Passages of about `words` words: whole sentences, short paragraphs of an article joined.

    A passage ends where the next sentence would make it longer than `words`; only a sentence that
    is longer itself makes a longer one. Nothing is lost but white space.
    """
    passages: list[str] = []
    held: list[str] = []
    size = 0
    for sentence in (s for p in paragraphs for s in sentences(p, language)):
        more = length(sentence, language)
        if held and size + more > words:
            passages.append(_join(held, language))
            held, size = [], 0
        held.append(sentence)
        size += more
    return [*passages, _join(held, language)] if held else passages


def _join(pieces: Sequence[str], language: str) -> str:
    return ("" if language == "zh" else " ").join(pieces)
