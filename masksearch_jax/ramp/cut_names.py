"""Parts of longer names, titles and formulas, which make no good masks: their borders tell."""

from __future__ import annotations

import re
from collections.abc import Collection

from masksearch_jax.ramp import lexicon

_AND_MORE = re.compile(" and [A-Z]")
_FOR_MORE = re.compile(" for the [A-Z]")
_CUT_BEFORE = re.compile(  # .NET, 29th Infantry Group, Hugo "Hurley" Reyes, de Havilland
    r"(?:[-.´&]|& (?:the )?|\d(?:st|nd|rd|th) |[A-Z]\w+ [\"“][^\"“”]{2,15}[\"”] "
    r"|[A-Z]\w+ (?:e|y|et|und|och) |\b(?:de|von|van|di|da|del|della|du|le|la) )\Z"
)
_CUT_AFTER = re.compile(  # GTK+, MP4/1, Aut(G), Château des ducs
    r"[-–+#/(£$€¥±]| &|\.,|\Z| (?:des|du|de|der|della|van|von) "
)
_CUT_END = re.compile(
    r"(?:\b(?:Nos?|Vol|Op|Art|Fig|Ch|Pt|Hon|Rev|Prof|Capt|Gen|Col|Lt|Gov|Sen|Messrs)"
    r"|[-–](?:style|based|speaking|only|like|born|type|era|level|wide|made|led|owned|shaped))\Z"
)
_LAW = re.compile(r"\b(?:Act|Bill|Treaty|Convention)\Z")
_LAW_OF = re.compile(r"[A-Z]\w+ (?:to|on|in|for|with)(?: the)? \Z")
_LAW_ON = re.compile(
    r"\b(?:Convention|Treaty|Act|Committee|Commission|Conference|Council|Declaration|Agreement"
    r"|Office|Department|Ministry|Minister|Institute|Center|Centre) (?:on|for|against)(?: the)? \Z"
)
_MORE_OF_TITLE = re.compile(r"[’']?: |[’'](?!s)| (?:the|a|an|of|in|on|to|and|for|with) ")
# One of these stands before every last part of a name: to look is quicker than to search.
_TELLING = (
    *("-", ".", "´", "&", "& ", "the ", "st ", "nd ", "rd ", "th ", '" ', "” ", "e ", "y ", "et "),
    *("och ", "n ", "i ", "a ", "l ", "u ", "and ", "to ", "for ", "with ", "against ", "s "),
)
_OWNER = ("'s ", "’s ")
_QUOTE = ('"', "“", "”")
_AND_HEAD = re.compile(r" and [A-Z]\w+ ([A-Z]\w+)")
_JOINED = re.compile(r"(?<![.!?] )\b([A-Z][a-z]+) and \Z")


def is_cut(paragraph: str, start: int, end: int, ordinary: Collection[str]) -> bool:
    """True for a part of a longer name: anti-X, X & Y, the second half of Rules and Orders."""
    text, before = paragraph[start:end], paragraph[max(0, start - 24) : start]
    after = paragraph[end : end + 24]
    if _CUT_AFTER.match(after) or _CUT_END.search(text[-9:]) or _is_in_title(before, after):
        return True
    first, _, rest = text.partition(" ")
    plain = bool(rest) and first.lower() in ordinary
    if rest and after.startswith((" and", " for")):
        if " of " in text and _FOR_MORE.match(after):  # Secretary of State for the Colonies
            return True
        if _AND_MORE.match(after) and (plain or _has_head(text, after)):  # International X and Y
            return True
    return before.endswith(_TELLING) and _is_end(text, before, plain, ordinary)


def _is_end(text: str, before: str, plain: bool, ordinary: Collection[str]) -> bool:
    """True for the last part of a name; `plain`: its first word is no name."""
    if _CUT_BEFORE.search(before) or _LAW_ON.search(before):
        return True
    if _LAW.search(text) and _LAW_OF.search(before):  # Access to the Countryside Act
        return True
    if plain and before.endswith(_OWNER):  # World's Biggest Bookstore
        return True
    joined = _JOINED.search(before)  # Oceanographic and Atmospheric Administration
    headed = plain and lexicon.is_head(text.rpartition(" ")[2])
    return bool(joined) and (headed or joined[1].lower() in ordinary)


def _has_head(text: str, after: str) -> bool:
    """True where what it is comes only after "and": Bonnaroo Music and Arts Festival."""
    more = _AND_HEAD.match(after)
    return bool(more) and lexicon.is_head(more[1]) and not lexicon.is_head(text.rpartition(" ")[2])


def _is_in_title(before: str, after: str) -> bool:
    """True for the first or the last words of what stands in quotation marks."""
    if before.endswith(_QUOTE):
        return bool(_MORE_OF_TITLE.match(after))
    return after.startswith(_QUOTE)
