"""Span candidates in English by regular expressions: dates, numbers, names, quoted titles."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator

from masksearch_jax.core.types import Span
from masksearch_jax.ramp import lexicon
from masksearch_jax.ramp.cut_names import is_cut
from masksearch_jax.ramp.lexicon import MONTHS

_ERA = r"(?:B\.C\.E\.|B\.C\.|A\.D\.|C\.E\.|BCE?|AD|CE)"
_YEAR = r"(?:1\d|20)\d\d"
_DATE = (
    rf"(?:\d{{1,2}}(?:st|nd|rd|th)? (?:{MONTHS})(?:,? \d{{1,4}} {_ERA}|,? \d{{3,4}}(?!\d|,\d))?"
    rf"|(?:{MONTHS}) \d{{1,2}}(?:st|nd|rd|th)?(?:, \d{{4}}(?!\d))?"
    rf"|(?:{MONTHS}),? (?:of )?\d{{4}}|\d{{1,4}} {_ERA}|AD \d{{1,4}}|{_YEAR}s"
    rf"|\d{{1,2}}(?:st|nd|rd|th)[ -]century(?: {_ERA})?"
    rf"|{_YEAR}[–-](?:{_YEAR}|\d\d)(?![\d–-])|{_YEAR}(?![\d,.:]\d|%|[–-]\d|['’´]s|{{unit}}))(?<=[.\w])(?!\w)"
)
_UNIT = (
    r"(?:hundred|thousand|million|billion|trillion|percent|per cent|percentage points"
    r"|degrees(?: (?:north|south|east|west|Celsius|Fahrenheit))?"
    r"|(?:square|cubic) (?:km|kilomet(?:re|er)s|miles|met(?:re|er)s|feet|inches|yards)"
    r"|nautical miles|light[- ]years|kilomet(?:re|er)s?|micromet(?:re|er)s|nanomet(?:re|er)s"
    r"|millimet(?:re|er)s|centimet(?:re|er)s|met(?:re|er)s?|miles?|feet|foot|inch(?:es)?|yards"
    r"|acres|hectares|tonnes|tons|pounds|ounces|kilograms?|milligrams|grams|lit(?:re|er)s|gallons"
    r"|barrels|watts|volts|horsepower|bits|bytes|megabytes|gigabytes"
    r"|dollars?|euros|francs|marks|rubles|roubles|yen|yuan|rupees|kronor|kroner|guilders|pesos|lire"
    r"|km²|km2|km/h|km|kg|mm|cm|nm|mph|m²|m|ft|hp|lb|GHz|MHz|kHz|Hz|kW|MW|GW|MB|GB|TB"
    r"|years|days|hours|minutes|seconds|weeks|months|light years|°[CF]?)(?!\w)"
)
_SPELLED = "one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|fifty|half a|a hundred"
_SPELLED_UNIT = (
    r"(?:million|billion|thousand|percent|per cent|kilomet(?:re|er)s?|met(?:re|er)s?|miles?|feet"
    r"|inches|acres|hectares|tonnes|tons|pounds|kilograms|dollars?|seconds|light[- ]years"
    r"|square miles)\b"
)
_MONEY = r"(?:US|A|C|HK|NZ|CA|AU|S|R)?[$€£¥₹]"
_SCALE = rf"(?:%|(?:[ -]| ?(?=°)){_UNIT}(?: {_UNIT})?"
_NUMBER = (
    rf"(?:{_MONEY}|[+−-])?\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?{_SCALE})?"
    rf"|(?:{_MONEY}|[+−-])?\d+(?:\.\d+)?{_SCALE})?"
)
# No part of another number, of a code, or the number of a page.
_NO_DIGIT_BEFORE = r"(?<![\w.:/$£€¥₹])(?<!\d,)(?<!\bp\. )(?<!pp\. )(?<![\dA-Za-z][–−-])"
_NO_DIGIT_AFTER = r"(?!\w|[,.:/–-]\d|[-./][^\W\d]|['’´]s)"
_DOMAIN = r"(?<![\w.])\.[a-z]{2,4}\b(?!\.\w)"
_QUOTED = r"(?<![^\s(])[\"“](?P<quoted>[^\"“”]{3,50})[\"”](?![^\s.,;:)!?])"
_LINK = (
    r"(?:of the|of|de la|de los|de las|de|del|della|di|da|dos|do|van der|van den|van|von der|von"
    r"|bin|ibn|al|el|la|le|du|des|es|y|und|for|de’|de')"
)
_LINKED = re.compile(rf"{_LINK} (?=\S)")
_FOREIGN_LINK = re.compile(
    r"(?:de|del|della|di|da|dos|do|van|von|bin|ibn|al|el|la|le|du|des|y|und)\b"
)
_EPITHET = (
    r"the (?:Great|Younger|Elder|Wise|Bold|Conqueror|Confessor|Magnificent|Terrible|Fair|Good|Bald"
    r"|Simple|Pious|Jackal|Impaler|Baptist|Apostle|Navigator|Lionheart)"
)
# Words that end a name with an owner in it: King's College, Ford's Theatre.
_OWNED = (
    "Hospital|College|School|Cathedral|Church|Theatre|Theater|Men|Boys|Day|Company|Union|Party"
    "|University|Club|Island|Bay|Park|House|Hall|Square|Cross|Court|Palace|Castle|Bridge|Gate|Army"
)
# Ordinary words that open a sentence as the first word of a name: South West Trains.
_OPENINGS = re.compile(
    "(?:South|North|East|West|New|Great|Old|Upper|Lower|Royal|National|International|Foreign"
    r"|Prime|Supreme|Central|Saint)\Z"
)
# Words before a number that is not a part of a name: In 218, About 300.
_NOT_NAMES = """
In On By At Of To About Over Some The With From Since Until After Before Only Nearly Almost Around
Its All And Between Another For During As Under These Those Just
"""
_NO_NAME = "".join(rf"(?<!\b{w} )" for w in _NOT_NAMES.split())
NAME = "NAME"  # the type of names until `typed`
_TYPES = {
    "date": "DATE",
    "number": "NUMBER",
    "spelled": "NUMBER",
    "quoted": "TERM",
    "domain": "TERM",
}
_TOKEN = re.compile(r"[^\W_]+")
_LONE = re.compile(r"(?:[A-Z]{3,}|[A-Z]+[a-z]+[A-Z]\w*|[A-Z]\w*\d\w*)\Z")  # NASA, YouTube, B52
_PLACE_CUE = re.compile(
    r"\b(?:in|at|from|near|to|into|across|throughout|borders?|border with|lies|capital|city|town"
    r"|reach|village|between|around|outside|via|and in|left|leave|cities of|city of|town of|seat in"
    r"|touches|island of|coast of|north of|south of|east of|west of|off)(?: the)?,? $",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z](?:ly|less|ness|ing|ed|tion|ous|ive|able)\Z")  # Fortunately
_MEANING = re.compile(r"\b(?:name|named|word|after|from)\b[^.\"“”]*[^\W\d], \Z")
_NO_TITLE = re.compile(r"[{}=<>|\\]|[?!].|\b(?:That|It|I|He|She|We|You)[’'](?:s|m|re|ll|ve|d)\b")
_OF = re.compile(r"\bof(?: the)? $")
_PERSON_CUE = re.compile(
    rf"\b(?:by|Sir|Lord|Lady|Dr\.?|Mr\.?|Mrs\.?|Saint|Pope|(?:{lexicon.PEOPLE})(?: called)?),? $",
    re.IGNORECASE,
)
_DOES = (  # what people do
    "was born|died|wrote|said|married|painted|composed|discovered|invented|argued|published|became"
    "|had|directed|designed|taught|studied|described|proposed|announced|received|refused|returned|went"
    "|made|led|won|found|founded|gave|told|took|built|sang|played|met|noticed|measured|worked|put"
)
_PERSON_AFTER = re.compile(rf"\s*(?:\((?:born|\d{{4}}[–-])|, (?:who|whose)\b|(?:{_DOES})\b|’s|'s)")
_TITLED = re.compile(
    r"(?:Sir|Lord|Lady|King|Queen|Prince|Princess|Pope|Emperor|Saint|Earl|Duke|Dr)\b"
)
_PERSON_NAME = re.compile(rf"(?:{'|'.join(sorted(lexicon.GIVEN_NAMES))}|[A-Z]\.)(?!\w)")
_INITIALS = re.compile(r"(?:\w\. ?)+\w")
_FOREIGN = re.compile(" (?:de|da|van|von|di|del|bin|ibn) ")
_ROMAN = re.compile(r" (?:[IVX]+|Jr\.?|Sr\.?)\Z")
_NUMBERED = re.compile(r" \d{1,4}\Z")


@functools.cache
def _pattern() -> re.Pattern[str]:
    """One expression for all candidates; its groups say what was found."""
    upper = "".join(c for c in map(chr, range(0x41, 0x2000)) if c.isupper())
    word = (
        rf"(?:(?<= )(?:al|el|d)[-’'])?"
        rf"(?!(?:{MONTHS}),? (?:of )?\d|(?:AD|BC) \d)[{upper}]\w*(?:[’'ʻ‘](?!s\b)\w+|[-–](?:\w+))*"
    )
    initials = (
        rf"(?:(?:[{upper}]\. ?)+(?![{upper}]\.){word}|(?:[{upper}]\. )*[{upper}]\.(?= {_LINK} ))"
    )
    part = rf"(?:{initials}|(?:[{upper}]\.){{2,}}|(?:St|Mt|Ft|Dr)\.? {word}|{word})"
    owner = rf"(?:{part}(?: {part})*[’']s? (?=(?:[{upper}]\w+ ){{0,2}}(?:{_OWNED})\b))?"
    plain = rf"{part}(?: {part}| (?:{_LINK}) {part}| {_EPITHET}\b|/{part})*"
    number = (
        rf"(?: {_NO_NAME}(?!{_YEAR}\b)\d{{1,4}}(?![\d,.%°]\d|[\w%°]| ?(?:{_UNIT})| [a-z]+s\b"
        rf"| (?:{MONTHS}|{_ERA})\b))?"
    )
    name = rf"(?<![\w’']){owner}{plain}{number}"
    date = _DATE.replace("{unit}", rf"[ -]{_UNIT}")
    number_starts, date_starts = r"(?=[\d$€£¥₹+−-]|[A-Z]{1,2}[$€£¥₹])", r"(?=[\dAJFMSOND])"
    return re.compile(
        # The look-aheads skip most characters at once.
        rf"(?![a-z ,])(?:{_QUOTED}|(?P<domain>{_DOMAIN})"
        rf"|(?P<date>{date_starts}(?<![\w.,:$€£+/-]){date})"
        rf"|(?P<number>{number_starts}{_NO_DIGIT_BEFORE}(?:{_NUMBER}){_NO_DIGIT_AFTER})"
        rf"|(?P<name>{name}))"
        rf"|\b(?P<spelled>(?:{_SPELLED}) {_SPELLED_UNIT}(?: {_SPELLED_UNIT})?)"
    )


def candidates(
    paragraph: str, ordinary: Collection[str] = lexicon.ORDINARY
) -> Iterator[tuple[Span, str]]:
    """Spans in text order, each with why it is refused, or with an empty text.

    ordinary: words in small letters that open a sentence without being a part of a name.
    """
    for match in _pattern().finditer(paragraph):
        group = match.lastgroup
        start, end = match.span(group)
        if group != "name":
            text = paragraph[start:end].rstrip(" ,;" if group == "date" else " ,.;")
            words = group == "quoted" and not _is_quoted_name(paragraph, start, text)
            span = Span(start, start + len(text), text, _TYPES[group])
            yield span, "quoted_words" if words else ""
            continue
        end = start + _length_of_name(paragraph[start:end])
        for piece in _pieces(paragraph, start, end, ordinary):
            yield _named(paragraph, *piece, ordinary)


def _is_quoted_name(paragraph: str, start: int, text: str) -> bool:
    """True for a title, and for what a word means: "sun" in (from Greek helios, "sun")."""
    before = paragraph[max(0, start - 50) : start - 1]
    if not text[:1].isupper():
        called = before.endswith(("called ", "named ")) and " " in text
        return called or bool(_MEANING.search(before))
    parts = text.split()
    large = sum(p[:1].isupper() for p in parts)
    if parts[-1] in ("is", "was", "are", "were", "of", "the", "and"):
        return False
    if len(parts) > 1 and not any(p[:1].isupper() and len(p) > 2 for p in parts):  # C implies E
        return False
    return not _NO_TITLE.search(text) and (len(parts) < 4 or 2 * large >= len(parts))


def _named(paragraph: str, start: int, end: int, ordinary: Collection[str]) -> tuple[Span, str]:
    whole = Span(start, end, paragraph[start:end], NAME)
    if is_sentence_start(paragraph, start):
        start = _after_opening(paragraph, start, end, ordinary)
        first = whole.text.partition(" ")[0].lower()
        # Most passages begin within a sentence, some within a name.
        if start < 0 or (whole.start == 0 < start and first not in lexicon.ORDINARY):
            return whole, "sentence_start"
    text = paragraph[start:end]
    if " " not in text and ordinary is not lexicon.ORDINARY and _is_ordinary(text, ordinary):
        return whole, "ordinary_word"
    if is_cut(paragraph, start, end, ordinary):
        return whole, "cut_name"
    return Span(start, end, text, NAME), ""


def _is_ordinary(word: str, ordinary: Collection[str]) -> bool:
    """True for a word that is also written small, and for Slip-on, of two such words."""
    word = word.lower()
    return word in ordinary or ("-" in word and all(part in ordinary for part in word.split("-")))


def typed(paragraph: str, span: Span, ordinary: Collection[str] = lexicon.ORDINARY) -> Span:
    """A name with its likely type, from its words and its neighbours; other spans as they are."""
    if span.type != NAME:
        return span
    kind = _name_type(paragraph, span.start, span.end, ordinary)
    first, _, rest = span.text.partition(" ")
    if kind == "PERSON" and rest and lexicon.DEMONYM.match(first):
        if _PERSON_NAME.match(rest):  # "the Scot William Paterson"
            return Span(span.end - len(rest), span.end, rest, kind)
        kind = "TERM"  # "the Russian Empire"
    return Span(span.start, span.end, span.text, kind)


def _length_of_name(text: str) -> int:
    """Its length without a next sentence taken for a surname: "F. It" is F, "J. Smith" all."""
    for dot in re.finditer(r"\. ?", text) if "." in text else ():
        following = _TOKEN.match(text, dot.end())
        if following and len(following[0]) > 1 and following[0].lower() in lexicon.ORDINARY:
            return dot.start()
    return len(text.rstrip())


def _pieces(
    paragraph: str, start: int, end: int, ordinary: Collection[str]
) -> list[tuple[int, int]]:
    """A name cut where "of" or "for" only joins two: "Ann Lee of Sun Labs", "Rome for Paris".

    Not where it begins with a word that is no name: "World Fellowship of Buddhists".
    """
    text = paragraph[start:end]
    if " of " not in text and " for " not in text:
        return [(start, end)]
    for link in re.finditer(r" (of the|of|for) ", text):
        left = text[: link.start()]
        last = left.rpartition(" ")[2]
        head = lexicon.ORG.search(last) or lexicon.PLACE.search(last) or lexicon.TERM.search(last)
        one = " " not in left and link[1] != "for"
        first = left.partition(" ")[0]
        one = one or (first.lower() in ordinary and first not in lexicon.GIVEN_NAMES)
        one = one or (" of " in left and bool(lexicon.ORG.match(left)))  # Church of X of Y
        if not (head or one or _TITLED.match(last)):
            return [
                (start, start + link.start()),
                *_pieces(paragraph, start + link.end(), end, ordinary),
            ]
    return [(start, end)]


def _after_opening(paragraph: str, start: int, end: int, ordinary: Collection[str]) -> int:
    """Where the name inside a sentence's opening starts, -1 where there is none.

    "In France" → "France", "Critics of Marx" → "Marx"; "Leonardo da Vinci" stays whole.
    """
    text = paragraph[start:end]
    first, _, rest = text.partition(" ")
    bare = first.rstrip(".,").partition("’")[0].partition("'")[0]
    plain = bare.lower() in ordinary
    if text in lexicon.PLACES or _LONE.match(bare):
        return start
    if rest[:1].isupper() and (bare in lexicon.GIVEN_NAMES or _OPENINGS.match(bare)):
        return start
    linked = _LINKED.match(rest)
    if linked and not _FOREIGN_LINK.match(rest) and not lexicon.is_head(bare) and bare.istitle():
        if not plain and bare in lexicon.GIVEN_NAMES:
            return start
        start = end - len(rest) + linked.end()
    elif (plain and not _FOREIGN_LINK.fullmatch(bare.lower())) or lexicon.DEMONYM.match(bare):
        start = end - len(rest)
    elif not rest and (ordinary is lexicon.ORDINARY or _WORD.search(bare)):
        return -1  # a list of words is too short to tell a name from any word
    else:
        return start
    if start >= end:
        return -1
    following = paragraph[start:end]
    again = following.partition(" ")[0].lower() in lexicon.ORDINARY
    return _after_opening(paragraph, start, end, ordinary) if again else start


def is_sentence_start(paragraph: str, start: int) -> bool:
    before = paragraph[:start].rstrip(" \"“”'‘()")
    return not before or (before[-1] in ".!?:;\n" and not before.endswith(("St.", "Dr.", "Mt.")))


def _name_type(paragraph: str, start: int, end: int, ordinary: Collection[str]) -> str:
    text, before = paragraph[start:end], paragraph[max(0, start - 24) : start]
    after = paragraph[end : end + 20]
    first, _, rest = text.partition(" ")
    if text in lexicon.PLACES or "/" in text:
        return "PLACE"
    if _NUMBERED.search(text):
        return "TERM"
    if _TITLED.match(text) and rest:
        return "PERSON"
    if first in lexicon.GIVEN_NAMES and (rest or _PERSON_AFTER.match(after)):
        return "PLACE" if rest and lexicon.PLACE.search(rest) else "PERSON"
    for kind in ("TERM", "ORG", "PLACE"):
        if getattr(lexicon, kind).search(text):
            return kind
    if _PERSON_CUE.search(before) or _INITIALS.match(text) or _ROMAN.search(text):
        return "PERSON"
    if _LONE.match(text):
        return "ORG" if len(text) > 2 else "TERM"
    return _by_neighbours(text, before, after, ordinary)


def _by_neighbours(text: str, before: str, after: str, ordinary: Collection[str]) -> str:
    """The type that the words around a name give it; TERM where nothing tells."""
    if _PLACE_CUE.search(before) or (_OF.search(before) and " " not in text):
        return "PLACE"
    if _PERSON_AFTER.match(after):
        return "PERSON"
    foreign = _FOREIGN.search(text)
    plain = text.lower().split()[0] in ordinary  # "Middle Ages", "Disease Control"
    return "PERSON" if foreign or (text.count(" ") in (1, 2) and not plain) else "TERM"
