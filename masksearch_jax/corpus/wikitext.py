"""Wikitext as paragraphs of plain text.

What is no text leaves a HOLE where it stood in a sentence, so that the paragraph is not clean.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from masksearch_jax.corpus import templates
from masksearch_jax.corpus.prose import HOLE
from masksearch_jax.corpus.templates import APART, ASIDE, FOREIGN, FRACTION, QUIET

_HIDDEN = re.compile(  # links that show nothing: pictures, categories, the article's translations
    r"\s*(?:(?i:file|image|category|文件|档案|檔案|图像|圖像|圖片|分类|分類)"
    r"|(?!wp|mos|voy|rev)[a-z]{2,3}(?:-[a-z-]+)?|simple)\s*:"
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DISPLAY_NONE = re.compile(r"display\s*:\s*none")
_BLOCKS = {"gallery", "timeline", "score", "table", "references", "imagemap"}  # stand apart
_GONE = {"templatestyles", "section", "indicator", "includeonly"}
_NO_TEXT = {
    "math", "chem", "ce", "code", "pre", "syntaxhighlight", "source", "hiero", "maplink",
    "mapframe", "graph", "inputbox", "s", "del", "strike",
}  # fmt: skip
_APART_TAGS = {"blockquote", "div", "center", "p", "poem"}
_ITEMS = {"li", "dt", "dd"}
_SPACES = re.compile(r"[ \t\xa0]+")
_EMPTY = re.compile(r" ?[(（][\s,;，；、]*[)）]")
_BRACKETS = re.compile(r"[(（][^()（）]*[)）]")
_MARK = re.compile(f"[{HOLE}{QUIET}{APART}{ASIDE}{FOREIGN}{FRACTION}]")
_QUIET_BEFORE_STOP = re.compile(rf"\s*{QUIET}[\s{QUIET}]*(?=[,.;:!?)，。；：！？）])")
_ASIDE_RUN = rf"{ASIDE}(?:\s*{ASIDE})*"
_ASIDE_ALONE = re.compile(  # with the stop that set it off
    rf"(?<=[(（])\s*{_ASIDE_RUN}\s*(?:[,;，；]\s*|(?=[)）]))"
    rf"|[,;，；]\s*{_ASIDE_RUN}\s*(?=[,;)，；）])|(?<={FOREIGN})\s*{_ASIDE_RUN}\s*(?=[,;)，；）])"
)
_AFTER_DIGIT = re.compile(rf"(?<=\d){FRACTION}")
_STYLE = re.compile("'{2,}")  # italics that the source does not close
_VARIANTS = "-{"  # Chinese in several spellings
_ENDED = re.compile(r"[.!?。！？:：][\"'”’」』)\]）]*$")
_FINISHED = re.compile(r"(?<!e\.g)(?<!i\.e)[.!?。！？…][\"'”’」』)\]）]*$")
_GOES_ON = re.compile(r"[a-z][a-z ,.]|[,;:.!?)，。；：！？）]")  # no sentence begins so
_LONG = 40  # characters of a line that is no heading


@dataclasses.dataclass(frozen=True)
class Article:
    """An article as paragraphs of plain text; anchors: the texts of its links, with counts."""

    id: str
    title: str
    paragraphs: tuple[str, ...]
    anchors: Counter[str] = dataclasses.field(default_factory=Counter)


def render(page_id: str, title: str, wikitext: str) -> Article:
    """The article of a page. Raises ValueError where its wikitext cannot be parsed."""
    import mwparserfromhell

    try:
        code = mwparserfromhell.parse(wikitext, skip_style_tags=False)
    except (mwparserfromhell.parser.ParserError, RecursionError) as error:
        raise ValueError(f"unparsable wikitext: {error}") from None
    anchors: Counter[str] = Counter()
    text = "".join(_pieces(code, anchors))
    return Article(page_id, title, tuple(_paragraphs(text)), anchors)


# ---- what each node shows


def _pieces(code: Any, anchors: Counter[str]) -> Iterator[str]:
    """The text of each node, with marks where it has none."""
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
                yield _external_link(node, anchors)
            case nodes.Template():
                yield templates.render(_call(node, anchors))
            case nodes.Tag():
                yield _tag(node, anchors)
            case nodes.Comment():
                yield ""
            case _:
                yield HOLE


def _link(node: Any, anchors: Counter[str]) -> str:
    target = str(node.title)
    if _HIDDEN.match(target):
        return ""
    if node.text is None:
        text = target.strip().removeprefix(":").partition("#")[0].strip()
    else:
        text = "".join(_pieces(node.text, Counter()))
    if not text.strip():
        return HOLE
    if not _MARK.search(text):
        anchors[text] += 1
    return text


def _external_link(node: Any, anchors: Counter[str]) -> str:
    if node.title:
        return "".join(_pieces(node.title, anchors))
    return QUIET if node.brackets else HOLE  # [1], as a footnote has it; or the bare address


def _call(node: Any, anchors: Counter[str]) -> templates.Call:
    name = str(node.name)
    if "<" in name:
        name = _COMMENT.sub("", name)
    name = " ".join(name.replace("_", " ").split()).lower().removeprefix("template:")
    values = {str(p.name).strip(): p.value for p in node.params}

    def get(key: str) -> str:
        return "".join(_pieces(values[key], anchors)).strip() if key in values else ""

    return templates.Call(name, tuple(values), get, "\n" in str(node))


def _tag(node: Any, anchors: Counter[str]) -> str:
    name = str(node.tag).strip().lower()
    if name == "ref":
        return QUIET
    if name in _GONE:
        return ""
    if name in _BLOCKS:
        return "\n\n"
    if name in _NO_TEXT:
        return HOLE
    if name in _ITEMS:
        return "\n* "
    if name in ("br", "hr"):
        return " "
    if any(_DISPLAY_NONE.search(str(attribute)) for attribute in node.attributes):
        return ""
    text = "".join(_pieces(node.contents, anchors)) if node.contents else ""
    match name:
        case "sup":
            return templates.raised(text.strip())
        case "sub":
            return templates.lowered(text.strip())
        case "q":
            return f'"{text}"'
        case _:
            return f"\n\n{text}\n\n" if name in _APART_TAGS else text


# ---- lines with marks to paragraphs


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text, marks resolved by what stands around them."""
    held = ""
    for line in text.split("\n"):
        line = _resolved(line) if _MARK.search(line) else line.strip()
        if held and line and _is_same_sentence(held, line):
            held = f"{held} {line}"
            continue
        if whole := _tidy(held):
            yield whole
        held = line
    if whole := _tidy(held):
        yield whole


def _resolved(line: str) -> str:
    """A line without marks: each is nothing, or a HOLE."""
    line = _QUIET_BEFORE_STOP.sub("", line).replace(QUIET, "")
    if ASIDE in line:
        line = _BRACKETS.sub(lambda m: _ASIDE_ALONE.sub("", m[0]), line).replace(ASIDE, HOLE)
    line = _AFTER_DIGIT.sub(" ", line.replace(FOREIGN, "")).replace(FRACTION, "")
    return (_without_apart(line) if APART in line else line).strip()


def _without_apart(line: str) -> str:
    """A line without what stands apart, before its first sentence and after its last."""
    body = line.strip(f"{APART} \t\xa0")
    start, end = line[: line.find(body)], line[line.find(body) + len(body) :]
    if not body:
        return ""
    before = HOLE if APART in start and _GOES_ON.match(body) else ""
    after = HOLE if APART in end and not _ENDED.search(body) else ""
    return f"{before}{body.replace(APART, HOLE)}{after}"


def _is_same_sentence(first: str, second: str) -> bool:
    """True for a line and the next one of a paragraph that is broken into lines."""
    if first.startswith("*") or second.startswith("*") or _ENDED.search(first):
        return False
    return len(first) >= _LONG or bool(_GOES_ON.match(second))


def _tidy(text: str) -> str:
    """A paragraph; with a HOLE where its first sentence began, or its last one ends, elsewhere.

    As before a list or a quotation that stands apart.
    """
    if "''" in text:
        text = _STYLE.sub("", text)
    text = _EMPTY.sub("", _SPACES.sub(" ", text.replace(_VARIANTS, HOLE))).strip()
    before = HOLE if _GOES_ON.match(text) else ""
    after = HOLE if len(text) >= _LONG and not _FINISHED.search(text) else ""
    return f"{before}{text}{after}"
