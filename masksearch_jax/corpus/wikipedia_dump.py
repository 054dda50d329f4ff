"""Wikipedia's own dumps: `pages-articles.xml`, packed or not, streamed page by page.

bz2 may be of many streams (multistream). Of a dump with all revisions the newest of each page is
read. A page whose wikitext cannot be parsed is one drop; XML or packing that breaks ends the
reading, since what follows is unknown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from masksearch_jax.corpus.packed import DAMAGE, PackingError, unpack

# A call of a template of pages that tell namesakes apart: whole names, and families by their ends.
# Articles have templates with names that begin so, or that say what a link of theirs needs.
_DISAMBIGUATION = re.compile(
    r"""\{\{ [\s_]* (?:template:\s*)?
    (?: (?! [\s_] ) (?! [\w\ –-]* (?:need|\bto\b)) [\w\ –-]{0,60}
        disambig(?:uation)? (?:[ _-](?:page|cleanup))?
      | (?!需) \w{0,20} 消歧[义義] [页頁]?
      | dab
      | (?:hn|geo)dis(?:-cleanup)?
    ) [\s_]* (?: \| | \}\} | <!-- )""",
    re.I | re.X,
)


class Page(NamedTuple):
    """A page of a dump: its wikitext, and why it is none to read ("" where it is)."""

    id: str
    title: str
    text: str
    refusal: str


class DumpError(ValueError):
    """A dump that breaks off; the message names the file and the last page that was whole."""


def read_pages(path: str | os.PathLike[str]) -> Iterator[Page]:
    """The pages of a dump in order. Raises DumpError where its packing or XML breaks, OSError."""
    import mwxml

    path = Path(path)
    with open(path, "rb") as raw:
        last = "its start"
        try:
            file = unpack(raw, path)
            for page in mwxml.Dump.from_file(file).pages:
                text = _newest(page)
                yield Page(str(page.id), page.title, text, _page_refusal(page, text))
                last = f"page {page.id} {page.title!r}"
        except PackingError:
            raise
        except (*DAMAGE, SyntaxError, ValueError, mwxml.errors.MalformedXML) as error:
            raise DumpError(f"{path}: unreadable after {last}: {error}") from error


def _newest(revisions: Iterable[Any]) -> str:
    """The wikitext of the newest revision that has any; of several at one time the last."""
    newest, text = "", ""
    for revision in revisions:
        time = str(revision.timestamp or "")  # 2026-01-01T00:00:00Z sorts as text
        if revision.text and time >= newest:
            newest, text = time, revision.text
    return text


def _page_refusal(page: Any, text: str) -> str:
    if page.namespace != 0:
        return "namespace"
    if page.redirect:
        return "redirect"
    return "disambiguation" if _DISAMBIGUATION.search(text) else ""
