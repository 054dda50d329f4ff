"""Numbers and units as Wikipedia's templates write them: `convert`, `val`, `frac`, money.

`convert` shows a quantity and, in brackets, the same in other units. Here it is the quantity as the
article's source gives it, with the unit's symbol: `{{convert|7|to|10|km|mi}}` is "7 to 10 km". What
cannot be read so is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_NUMBER = re.compile(r"([-−+]?)(\d[\d,]*)?(\.\d+)?")
_MOST_DIGITS = 100  # before the point; Python reads no number of many thousands
_MIXED = re.compile(r"([-−]?)(?:(\d+)\+)?(\d+)/(\d+)")
_RANGE_IN_ONE = re.compile(r"([\d.,]+)\s*[-–]\s*([\d.,]+)")
_MULTIPLE = re.compile(r"e(3|6|9|12)(.+)")
_MULTIPLES = {"3": "thousand", "6": "million", "9": "billion", "12": "trillion"}
_AMOUNT = re.compile(
    r"\d[\d,]*(?:\.\d+)?(?:\s?[–-]\s?\d[\d,]*(?:\.\d+)?)?"
    r"(?:\s(?:thousand|million|billion|trillion|lakh|crore))?"
)

_SAME_TEXT = """
km m cm mm nm mi yd ft in nmi ly pc kpc Mpc ha cc kg g mg t lb oz st kt Mt mph m/s ft/s km/s km/h kn
K psi kPa bar atm hPa mbar MPa Pa inHg mmHg hp kW MW GW W PS bhp shp kWh MWh GWh J kJ MJ kcal cal
BTU N kN lbf Hz kHz MHz GHz g/km L/s km² m² cm² mm² km³ m³ cm³ °C °F L mL hL mpg
"""
_SYMBOLS = {symbol: symbol for symbol in _SAME_TEXT.split()} | {
    "um": "μm", "µm": "μm", "μm": "μm", "AU": "au", "foot": "ft", "feet": "ft", "inch": "in",
    "mile": "mi", "miles": "mi", "yard": "yd", "metre": "m", "meter": "m", "kilometre": "km",
    "kilometer": "km", "kilometres": "km", "metres": "m", "meters": "m", "kilometers": "km",
    "centimetre": "cm", "km2": "km²", "m2": "m²", "cm2": "cm²", "mm2": "mm²", "sqkm": "km²",
    "sqm": "m²", "sqmi": "sq mi", "mi2": "sq mi", "sqft": "sq ft", "ft2": "sq ft", "sqyd": "sq yd",
    "sqin": "sq in", "hectare": "ha", "km3": "km³", "m3": "m³", "cm3": "cm³", "l": "L",
    "litre": "L", "liter": "L", "ml": "mL", "cuft": "cu ft", "ft3": "cu ft", "cuyd": "cu yd",
    "cuin": "cu in", "cumi": "cu mi", "USgal": "US gal", "usgal": "US gal", "U.S.gal": "US gal",
    "impgal": "imp gal", "lbs": "lb", "pound": "lb", "ounce": "oz", "kilogram": "kg", "gram": "g",
    "tonne": "t", "tonnes": "t", "metric ton": "t", "MT": "t", "kph": "km/h", "knot": "kn",
    "knots": "kn", "C": "°C", "F": "°F", "C-change": "°C", "F-change": "°F", "Nm": "N⋅m",
    "N.m": "N⋅m", "lbft": "lb⋅ft", "lb.ft": "lb⋅ft", "m3/s": "m³/s", "cuft/s": "cu ft/s",
    "ft3/s": "cu ft/s", "mpgus": "mpg", "mpgUS": "mpg", "mpgimp": "mpg", "L/100 km": "L/100 km",
    "L/100km": "L/100 km", "/km2": "/km²", "/sqkm": "/km²", "PD/km2": "/km²", "PD/sqkm": "/km²",
    "/sqmi": "/sq mi", "PD/sqmi": "/sq mi", "/ha": "/ha", "/acre": "/acre",
}  # fmt: skip
_WORDS = {  # units that are written out: of one, of more
    "acre": ("acre", "acres"),
    "acres": ("acre", "acres"),
    "chain": ("chain", "chains"),
    "ch": ("chain", "chains"),
    "furlong": ("furlong", "furlongs"),
    "league": ("league", "leagues"),
    "fathom": ("fathom", "fathoms"),
    "hand": ("hand", "hands"),
    "hands": ("hand", "hands"),
    "oilbbl": ("barrel", "barrels"),
    "bbl": ("barrel", "barrels"),
    "LT": ("long ton", "long tons"),
    "long ton": ("long ton", "long tons"),
    "ST": ("short ton", "short tons"),
    "short ton": ("short ton", "short tons"),
    "cwt": ("hundredweight", "hundredweight"),
    "dunam": ("dunam", "dunams"),
    "acre.ft": ("acre-foot", "acre-feet"),
    "acre.foot": ("acre-foot", "acre-feet"),
    "acre·ft": ("acre-foot", "acre-feet"),
}
_SMALLER = {  # the unit that may follow one in a quantity of two: 5 ft 6 in
    "mi": ("yd", "ft", "ch", "chain", "furlong"),
    "yd": ("ft", "in"),
    "ft": ("in",),
    "foot": ("in", "inch"),
    "st": ("lb", "lbs"),
    "lb": ("oz",),
    "LT": ("cwt",),
    "long ton": ("cwt",),
}
_BETWEEN = {  # what stands between two values, and how it reads
    "-": "–", "–": "–", "—": "–", "to": " to ", "to(-)": " to ", "to-": " to ",
    "to about": " to about ", "and": " and ", "and(-)": " and ", "and-": " and ", "or": " or ",
    "or(-)": " or ", "or-": " or ", "by": " by ", "by(x)": " by ", "byx": " by ", "x": " × ",
    "×": " × ", "xx": " × ", "*": "×", "+/-": " ± ", "±": " ± ", "+": " + ", ",": ", ",
    ", and": ", and ", ", or": ", or ", "/": "/", "through": " through ",
}  # fmt: skip
_EACH = ("x", "×")  # 5 m × 3 m: the unit is said of each value
_SHOWN_BOTH = ("", "b", "or", "comma", "slash", "br", "br()", "sqbr", "s", "x", "flip")  # of `disp`
_OTHER_TEXT = ("$", "input", "qid")  # parameters that change what the quantity is
_CURRENCIES = {
    "us$": "US$", "usd": "US$", "£": "£", "gbp": "£", "€": "€", "eur": "€", "euro": "€",
    "a$": "A$", "au$": "A$", "aud": "A$", "c$": "C$", "ca$": "C$", "cad": "C$", "nz$": "NZ$",
    "nzd": "NZ$", "₹": "₹", "inr": "₹", "¥": "¥", "jpy": "¥", "cny": "CN¥", "hk$": "HK$",
    "hkd": "HK$", "s$": "S$", "sgd": "S$", "brl": "R$", "r$": "R$", "krw": "₩", "₩": "₩",
    "php": "₱", "₱": "₱", "ils": "₪", "₪": "₪", "chf": "CHF ", "zar": "R",
}  # fmt: skip
_UNIT_OF_VAL = re.compile(r"[A-Za-zμΩ°%]+(?:/[A-Za-z]+)?")


def convert(values: Sequence[str], options: Mapping[str, str]) -> str | None:
    """The quantity that `convert` is given: its positional parameters, and those with a name."""
    shown = options.get("disp", "") in _SHOWN_BOTH and not any(k in options for k in _OTHER_TEXT)
    if not shown or options.get("adj", "") not in ("", "on", "off", "1", "j", "ri0", "ri1", "ri2"):
        return None
    comma = options.get("comma", "") != "off"
    numbers, marks, rest = _values(values, comma)
    if not numbers or not rest:
        return None
    if any(value.casefold() in _BETWEEN for value in rest[1:]):
        return None  # a range with a unit in each of its parts
    unit = rest[0]
    if len(rest) > 2 and not marks and rest[2] in _SMALLER.get(unit, ()):
        small = number(rest[1], comma)
        pieces = [_with_unit(numbers[0], unit), small and _with_unit(small, rest[2])]
        return " ".join(pieces) if all(pieces) else None
    if any(mark in _EACH for mark in marks):
        numbers = [_with_unit(n, unit) or "" for n in numbers]
    elif options.get("adj") in ("on", "1") and unit in _WORDS:
        numbers[-1] = f"{numbers[-1]}-{_WORDS[unit][0]}"
    else:
        numbers[-1] = _with_unit(numbers[-1], unit, len(numbers) > 1) or ""
    if not all(numbers):
        return None
    between = [_BETWEEN[mark] for mark in marks]
    return "".join(a + b for a, b in zip(numbers, [*between, ""], strict=True))


def _values(values: Sequence[str], comma: bool) -> tuple[list[str], list[str], Sequence[str]]:
    """Numbers as text, what stands between them, and the parameters from the unit on.

    No numbers where there is one that cannot be read.
    """
    if values and (both := _RANGE_IN_ONE.fullmatch(values[0])):
        values = [both[1], "-", both[2], *values[1:]]
    numbers: list[str] = []
    marks: list[str] = []
    for at in range(0, len(values), 2):
        value = number(values[at], comma)
        if not value:
            return [], [], ()
        numbers.append(value)
        mark = values[at + 1].casefold() if at + 1 < len(values) else ""
        if mark not in _BETWEEN:
            return numbers, marks, values[at + 1 :]
        marks.append(mark)
    return [], [], ()


def _with_unit(value: str, unit: str, several: bool = False) -> str | None:
    """A number and its unit, "5 million acres"; None for a unit that is not known."""
    if multiple := _MULTIPLE.fullmatch(unit):
        value, unit = f"{value} {_MULTIPLES[multiple[1]]}", multiple[2]
        several = True
    if unit in _WORDS:
        return f"{value} {_WORDS[unit][several or value != '1']}"
    symbol = _SYMBOLS.get(unit)
    if symbol is None:
        return None
    return f"{value}{symbol}" if symbol.startswith("/") else f"{value} {symbol}"


def number(text: str, comma: bool = True) -> str | None:
    """A number as prose has it, with commas between thousands; "1+1/2" is "1 1/2"."""
    text = text.strip()
    if mixed := _MIXED.fullmatch(text):
        whole = f"{mixed[2]} " if mixed[2] else ""
        return f"{_minus(mixed[1])}{whole}{mixed[3]}/{mixed[4]}"
    found = _NUMBER.fullmatch(text)
    if not found or not (found[2] or found[3]):
        return None
    digits = (found[2] or "0").replace(",", "")
    if len(digits) > _MOST_DIGITS:
        return None
    whole = f"{int(digits):,}" if comma and not digits.startswith("0") else digits
    return f"{_minus(found[1])}{whole}{found[3] or ''}"


def _minus(sign: str) -> str:
    return "−" if sign in ("-", "−") and sign else sign


def fraction(values: Sequence[str]) -> str | None:
    """`frac`: of one value 1/value, of two a/b, of three a whole number before it."""
    if not 1 <= len(values) <= 3 or not all(v.isdecimal() for v in values):
        return None
    parts = ["1", *values] if len(values) == 1 else list(values)
    return f"{' '.join(parts[:-2])} {parts[-2]}/{parts[-1]}".strip()


def val(values: Sequence[str], options: Mapping[str, str]) -> str | None:
    """`val` of one number and, at most, its unit."""
    if len(values) != 1 or set(options) - {"u", "ul", "fmt"}:
        return None
    value = number(values[0])
    unit = options.get("u") or options.get("ul", "")
    if not value or not unit:
        return value
    if unit not in _SYMBOLS and not _UNIT_OF_VAL.fullmatch(unit):
        return None
    space = "" if unit == "%" else " "
    return f"{value}{space}{_SYMBOLS.get(unit, unit)}"


def money(name: str, values: Sequence[str], options: Mapping[str, str]) -> str | None:
    """An amount with its currency's sign; None for a template of no currency, or of a year."""
    if name not in _CURRENCIES or len(values) != 1 or set(options) - {"long", "link", "first"}:
        return None
    amount = values[0].replace("\xa0", " ")
    return f"{_CURRENCIES[name]}{amount}" if _AMOUNT.fullmatch(amount) else None
