"""Wikipedia's own dumps: `pages-articles.xml.bz2`, streamed, wikitext rendered as paragraphs.

bz2 may be of many streams (multistream), or absent. A page whose wikitext cannot be parsed is one
drop; XML or bz2 that breaks ends the reading, since what follows is unknown.
"""

from __future__ import annotations

import bz2
import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from masksearch_jax.corpus.prose import HOLE

_ELSEWHERE = re.compile(r"\s*:?\s*[A-Za-z\u4e00-\u9fff][\w -]*:")  # File:, Category:, de:
_GONE = {"ref", "references", "gallery", "timeline", "score", "templatestyles", "section"}
_NO_TEXT = {"math", "chem", "code", "pre", "syntaxhighlight", "source", "hiero"}
_ITEMS = {"li", "dt", "dd"}
_QUIET = re.compile(  # templates that say nothing
    r"cite|citation|sfn|refn?\b|efn|harv|r\b|cn\b|fact\b|dubious|clarify|when\b|who\b|by whom"
    r"|as of\b|short description|use [dm]|infobox|taxobox|speciesbox|automatic|coord|main\b"
    r"|see also|further|about\b|redirect|hatnote|for\b|other uses|distinguish|authority|reflist"
    r"|portal|commons|sister|good article|featured|pp-|protection|good|multiple image|clear|toc"
    r"|navbox|defaultsort|ipa|pron|respell|audio|listen|noteta|lang-|refimprove|unreferenced"
    r"|expand|stub|note\b|sup\b",
    re.IGNORECASE,
)
_SHOWN = {"lang": 1, "transl": 1, "nowrap": 0, "small": 0, "nobr": 0, "nihongo": 0, "abbr": 0}
_SPACES = re.compile(r"[ \t\xa0]+")
_EMPTY = re.compile(r" ?[(（][\s,;，；、]*[)）]")
_DISAMBIGUATION = re.compile(r"\{\{\s*(?:[\w -]*disambig|dab|hndis|geodis|消歧义|消歧義)", re.I)


class Page(NamedTuple):
    """A page of a dump: its wikitext, and why it is none to read ("" where it is)."""

    id: str
    title: str
    text: str
    refusal: str


@dataclasses.dataclass(frozen=True)
class Article:
    """An article as paragraphs of plain text; anchors: the texts of its links, with counts."""

    id: str
    title: str
    paragraphs: tuple[str, ...]
    anchors: Counter[str] = dataclasses.field(default_factory=Counter)


class DumpError(ValueError):
    """A dump that breaks off; the message names the file and the last page that was whole."""


def read_pages(path: str | os.PathLike[str]) -> Iterator[Page]:
    """The pages of a dump in order. Raises DumpError where its bz2 or XML breaks, OSError."""
    import mwxml

    path = Path(path)
    with open(path, "rb") as raw:
        zipped = raw.read(3) == b"BZh"
        raw.seek(0)
        file = bz2.BZ2File(raw) if zipped else raw
        last = "its start"
        try:
            for page in mwxml.Dump.from_file(file).pages:
                text = next((r.text for r in page), None) or ""
                yield Page(str(page.id), page.title, text, _page_refusal(page, text))
                last = f"page {page.id} {page.title!r}"
        except (EOFError, OSError, SyntaxError, ValueError, mwxml.errors.MalformedXML) as error:
            raise DumpError(f"{path}: unreadable after {last}: {error}") from error


def _page_refusal(page: Any, text: str) -> str:
    if page.namespace != 0:
        return "namespace"
    if page.redirect:
        return "redirect"
    return "disambiguation" if _DISAMBIGUATION.search(text) else ""


def render(page: Page) -> Article:
    """The article of a page. Raises ValueError where its wikitext cannot be parsed."""
    import mwparserfromhell

    try:
        code = mwparserfromhell.parse(page.text, skip_style_tags=False)
    except (mwparserfromhell.parser.ParserError, RecursionError) as error:
        raise ValueError(f"unparsable wikitext: {error}") from None
    anchors: Counter[str] = Counter()
    text = "".join(_pieces(code, anchors))
    lines = (_EMPTY.sub("", _SPACES.sub(" ", line)).strip() for line in text.split("\n"))
    return Article(page.id, page.title, tuple(line for line in lines if line), anchors)


def _pieces(code: Any, anchors: Counter[str]) -> Iterator[str]:
    """The text of each node; what is no text leaves a HOLE where it stood in a sentence."""
    from mwparserfromhell import nodes

    for node in code.nodes:
        match node:
            case nodes.Text():
                yield node.value
            case nodes.HTMLEntity():
                yield node.normalize()
            case nodes.Heading():
                yield "\n\n"
            case nodes.Wikilink():
                yield _link(node, anchors)
            case nodes.ExternalLink():
                yield "".join(_pieces(node.title, anchors)) if node.title else ""
            case nodes.Template():
                yield _template(node, anchors)
            case nodes.Tag():
                yield _tag(node, anchors)
            case nodes.Comment():
                yield ""
            case _:
                yield HOLE


def _link(node: Any, anchors: Counter[str]) -> str:
    target = str(node.title)
    if _ELSEWHERE.match(target):
        return ""
    if node.text is None:
        text = target.partition("#")[0].strip()
    else:
        text = "".join(_pieces(node.text, Counter()))
    if text and HOLE not in text:
        anchors[text] += 1
    return text


def _template(node: Any, anchors: Counter[str]) -> str:
    name = str(node.name).strip().replace("_", " ").lower()
    plain = [p.value for p in node.params if not p.showkey]
    if name in ("convert", "cvt") and len(plain) > 1:
        return f"{str(plain[0]).strip()} {str(plain[1]).strip()}"
    if plain[_SHOWN.get(name, len(plain)) :]:
        return "".join(_pieces(plain[_SHOWN[name]], anchors))
    return "" if _QUIET.match(name) or "\n" in str(node) else HOLE


def _tag(node: Any, anchors: Counter[str]) -> str:
    name = str(node.tag).strip().lower()
    if name in _GONE:
        return ""
    if name == "table":
        return "\n\n"
    if name in _NO_TEXT:
        return HOLE
    if name in _ITEMS:
        return "\n* "
    if name in ("br", "hr"):
        return " "
    return "".join(_pieces(node.contents, anchors)) if node.contents else ""
