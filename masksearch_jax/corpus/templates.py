"""Wikipedia's templates inside of prose: what each shows, or the mark of why it shows nothing.

A template that is not known here leaves a hole, and a paragraph with a hole is not clean. A name
is known as a whole name, never by how it begins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from masksearch_jax.corpus import quantities
from masksearch_jax.corpus.prose import HOLE

# Marks, noncharacters of Unicode, that `wikitext` reads when the sentence around them is there.
QUIET = "\ufdd0"  # a footnote or an editor's remark: nothing is missing without it
APART = "\ufdd1"  # a box, a notice: nothing is missing where it stands apart from sentences
ASIDE = "\ufdd2"  # a pronunciation: nothing is missing where it stands alone in brackets
FOREIGN = "\ufdd3"  # the end of a text in another language
FRACTION = "\ufdd4"  # the start of a fraction, which a whole number may stand before

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.replace("\n", ",").split(",")) - {""}


_QUIET = _names("""
sfn, sfnp, sfnm, efn, efn-ua, efn-la, efn-lr, efn-lg, efn-ur, refn, r, rp, ref, ref label, note
note label, notetag, fn, cref, cref2, #tag:ref, inflation-fn, inflation/fn, anchor
citation needed, cn, fact, citation required, clarify, clarification needed, when, who, whom
by whom, which, where, why, how, vague, dubious, disputed inline, disputed-inline, verify source
verification needed, failed verification, better source needed, better source, page needed, pn
full citation needed, full, unreliable source?, unreliable source, self-published inline
primary source inline, primary source needed, non-primary source needed, third-party inline
importance inline, according to whom, attribution needed, weasel inline, weasel-inline
peacock inline, peacock-inline, peacock term, update inline, needs update, update needed
update after, dead link, deadlink, cbignore, webarchive, subscription required, in lang
registration required, closed access, open access, link note, tone inline, pov statement
pov-statement, quantify, discuss, original research inline, synthesis inline, 来源请求, 來源請求
flagicon, flag icon, flagicon image, nowrap begin, nowrap end, zwsp, zwj, zwnj, wbr, shy
""")
_APART = _names("""
infobox, taxobox, automatic taxobox, speciesbox, subspeciesbox, chembox, drugbox, geobox, starbox
short description, use dmy dates, use mdy dates, italic title, lowercase title, noteta
main, main article, main articles, see also, further, further information, details, about
redirect, redirect2, redirect-distinguish, hatnote, for, for multi, other uses, otheruses
other people, other places, other ships, distinguish, not to be confused with, family name hatnote
spanish name, portuguese name, chinese name, korean name, eastern name order, authority control
reflist, notelist, refbegin, refend, portal, portal bar, commons, commons category, commonscat
sister project links, good article, featured article, featured list, protection padlock
multiple image, wide image, image, listen, quote box, sidebar, navbox, weather box, location map
historical populations, track listing, clear, clear left, clear right, -, toc, toc limit
toc left, toc right, tocleft, tocright, compact toc, refimprove, more citations needed
unreferenced, multiple issues, cleanup, expand section, stub, orphan, excerpt, coord missing
""")
_APART_FAMILY = re.compile(
    r"(?:infobox|campaignbox|starbox|navbox|location map|use|pp) .+|pp-.+|.+[ -]stub"
    r"|(?:defaultsort|displaytitle)[:：].*"
)
_ASIDE = _names("""
ipa, ipac-en, ipa link, pron-en, pronunciation, respell, respelling, audio, audio-ipa, coord, zh
lang-zh, korean
""")
_ASIDE_FAMILY = re.compile(r"ipac?-[a-z-]+")
_FOREIGN_FAMILY = re.compile(r"lang-[a-z]{2,3}(?:-[a-z0-9]+)*|script/.+")
_ICON = re.compile(r"[a-z]{2,3} icon")
_SHOWN = {  # the parameter that a template shows
    **dict.fromkeys(_names("lang, langx, rtl-lang, wikt-lang, color, resize"), "2"),
    **dict.fromkeys(
        _names("""
        nowrap, nobr, nwr, small, smaller, big, larger, large, sc, smallcaps, sc1, sc2, abbr
        tooltip, abbrlink, mvar, var, em, strong, not a typo, proper name, visible anchor, vanchor
        nihongo, nihongo2, unicode, iast, mono, tt, lang unset, ill, interlanguage link
        citation needed span, cn span
        """),
        "1",
    ),
}
_FOREIGN = _names("lang, langx, rtl-lang, wikt-lang, iast")
_SYMBOLS = {
    "ndash": "–", "en dash": "–", "–": "–", "mdash": "—", "em dash": "—", "—": "—", "snd": " – ",
    "spnd": " – ", "spaced ndash": " – ", "spaced en dash": " – ", "sndash": " – ",
    "spaced mdash": " — ", "nbsp": " ", "space": " ", "thinsp": " ", "thin space": " ",
    "hair space": " ", "hsp": " ", "br": " ", "break": " ", "pb": "\n\n",
    "paragraph break": "\n\n", "'": "'", "'s": "'s", "\"'": "\"'", "'\"": "'\"", "!": "|",
    "pipe": "|", "=": "=", "minus": "−", "plusmn": "±", "times": "×", "pi": "π", "degree": "°",
    "deg": "°", "okina": "ʻ", "hamza": "ʾ", "ayin": "ʿ", "ellipsis": "…", "...": "…", "·": "·",
    "dot": "·", "middot": "·", "half": f"{FRACTION}1/2", "co2": "CO₂", "h2o": "H₂O",
}  # fmt: skip
_SHIPS = {name.lower(): name for name in (
    "HMS", "HMAS", "HMCS", "HMNZS", "USS", "USCGC", "USNS", "SS", "MV", "RMS", "INS", "ORP", "SMS",
)}  # fmt: skip
_RAISED = str.maketrans("0123456789+-−=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱ")
_LOWERED = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
_ORDINALS = _names("st, nd, rd, th, er, me, lle")
_YEAR = re.compile(r"\d{3,4}")
_DAY = re.compile(r"\d{1,2}")  # or a month


class Call(NamedTuple):
    """A template as a page calls it: its name, lower-case, and its parameters, rendered on demand.

    get: the text of a parameter, stripped, "" where it is not there. keys: those that are.
    """

    name: str
    keys: tuple[str, ...]
    get: Callable[[str], str]
    lines: bool  # it is spread over several lines, as boxes are

    def values(self) -> list[str]:
        """The positional parameters, in order, up to the first that is not there."""
        found = []
        while (key := str(len(found) + 1)) in self.keys:
            found.append(self.get(key))
        return found

    def options(self) -> dict[str, str]:
        """The parameters that have a name."""
        return {key: self.get(key) for key in self.keys if not key.isdecimal()}


def render(call: Call) -> str:
    """What a template shows in a sentence; a mark, or a HOLE, where that is nothing."""
    name = call.name
    if name in _QUIET or _ICON.fullmatch(name):
        return QUIET
    if name in _APART or _APART_FAMILY.fullmatch(name):
        return APART
    if name in _ASIDE or _ASIDE_FAMILY.fullmatch(name):
        return QUIET if name == "coord" and call.get("display") == "title" else ASIDE
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    if name in _SHOWN or _FOREIGN_FAMILY.fullmatch(name):
        return _shown(call)
    if text := _RENDER[name](call) if name in _RENDER else _of_family(call):
        return text
    return APART if call.lines and name not in _RENDER else HOLE


def _shown(call: Call) -> str:
    key = _SHOWN.get(call.name, "1")
    text = call.get("lt") or call.get(key) or call.get("text")
    foreign = call.name in _FOREIGN or call.name not in _SHOWN
    return f"{text}{FOREIGN * foreign}" if text else HOLE


def _of_family(call: Call) -> str | None:
    """Ships, amounts of money, and MediaWiki's own number format."""
    if prefix := _SHIPS.get(call.name):
        name = call.get("1")
        return f"{prefix} {name}" if name and call.get("3") in ("", "6") else None
    if call.name.startswith("formatnum:") and not call.keys:
        return quantities.number(call.name.partition(":")[2])
    return quantities.money(call.name, call.values(), call.options())


def _convert(call: Call) -> str | None:
    return quantities.convert(call.values(), call.options())


def _fraction(call: Call) -> str | None:
    text = quantities.fraction(call.values())
    return text and f"{FRACTION}{text}"


def _val(call: Call) -> str | None:
    return quantities.val(call.values(), call.options())


def _as_of(call: Call) -> str | None:
    """ "As of May 2011"; day first unless `df=US`."""
    options = call.options()
    if options.get("alt"):
        return options["alt"]
    date = _date(call.values(), options.get("df", "").lower() in ("us", "mdy"))
    if not date:
        return None
    post = options.get("post", "")
    if options.get("bare"):
        return f"{options.get('pre', '')} {date}{post}".strip()
    words = "Since" if options.get("since") else "As of"
    words = words.lower() if options.get("lc") else words
    return " ".join(f"{words} {options.get('pre', '')} {date}{post}".split())


def _date(values: list[str], month_first: bool) -> str | None:
    """A date of year, month and day, of which the last may lack."""
    while values and not values[-1]:
        values = values[:-1]
    if not 1 <= len(values) <= 3 or not _YEAR.fullmatch(values[0]):
        return None
    year, *rest = values
    if not rest:
        return year
    month = rest[0].title()
    if _DAY.fullmatch(rest[0]) and 1 <= int(rest[0]) <= 12:
        month = _MONTHS[int(rest[0]) - 1]
    if month not in _MONTHS:
        return None
    if len(rest) == 1:
        return f"{month} {year}"
    if not _DAY.fullmatch(rest[1]) or not 1 <= int(rest[1]) <= 31:
        return None
    day = int(rest[1])
    return f"{month} {day}, {year}" if month_first else f"{day} {month} {year}"


def _around(word: str) -> Callable[[Call], str | None]:
    """Of a word before one year, or before both of a span: "c. 1450 – c. 1460"."""

    def years(call: Call) -> str | None:
        values = call.values()
        if not 1 <= len(values) <= 2 or not all(values):
            return None
        each = word == "c."
        return f" {'–' if not each else '– c.'} ".join([f"{word} {values[0]}", *values[1:]])

    return years


def _transliterated(call: Call) -> str | None:
    values = call.values()
    return f"{values[-1]}{FOREIGN}" if len(values) in (2, 3) and values[-1] else None


def _sic(call: Call) -> str | None:
    values = call.values()
    return (values[0] if len(values) == 1 else None) if values else QUIET


def _nee(call: Call) -> str:
    return f"née {call.get('1')}".strip()


def _sortname(call: Call) -> str | None:
    return " ".join(call.values()[:2]) if len(call.values()) >= 2 else None


def _flag(call: Call) -> str | None:
    """The country's name; None for a code, whose country is not known here."""
    values = call.values()
    return values[0] if values and not (values[0].isupper() and len(values[0]) < 5) else None


def _ship(call: Call) -> str | None:
    values = call.values()
    if len(values) < 2 or not values[1] or call.get("4") not in ("", "6"):
        return None
    return f"{values[0]} {values[1]}".strip()


def _ship_class(call: Call) -> str | None:
    values = call.values()
    return f"{values[0]}-class {values[1]}" if len(values) == 2 and all(values) else None


def raised(text: str) -> str:
    """A superscript: digits as Unicode has them, the ends of ordinals as they are; or a HOLE."""
    if text.lower() in _ORDINALS:
        return text
    return _moved(text, _RAISED)


def lowered(text: str) -> str:
    """A subscript: digits as Unicode has them; or a HOLE."""
    return _moved(text, _LOWERED)


def _moved(text: str, table: dict[int, int]) -> str:
    return text.translate(table) if text and all(ord(c) in table for c in text) else HOLE


_RENDER: dict[str, Callable[[Call], str | None]] = {
    "convert": _convert,
    "cvt": _convert,
    "frac": _fraction,
    "fraction": _fraction,
    "sfrac": _fraction,
    "val": _val,
    "as of": _as_of,
    "circa": _around("c."),
    "c.": _around("c."),
    "floruit": _around("fl."),
    "fl.": _around("fl."),
    "reign": _around("r."),
    "r.": _around("r."),
    "transl": _transliterated,
    "translit": _transliterated,
    "transliteration": _transliterated,
    "sic": _sic,
    "nee": _nee,
    "née": _nee,
    "sortname": _sortname,
    "flag": _flag,
    "flagcountry": _flag,
    "flagu": _flag,
    "ship": _ship,
    "sclass": _ship_class,
    "sclass-": _ship_class,
    "sup": lambda call: raised(call.get("1")),
    "sub": lambda call: lowered(call.get("1")),
}
