"""A calculator: a parsed grammar of arithmetic, exact, and bounded in all that it takes and gives.

    sum      = product (("+" | "-") product)*
    product  = signed (("*" | "/" | "x") signed)*
    signed   = ("+" | "-")* power
    power    = primary ("^" signed)?
    primary  = (number word? | "(" sum ")") "%"*

A number may have commas by thousands, decimals and an exponent; a word is thousand, million,
billion or trillion. Typographic signs stand for their plain ones.
"""

from __future__ import annotations

import decimal
import re
from fractions import Fraction

from masksearch_jax.core.tools import Unreadable

_LONGEST = 200  # characters of a request
_DEEPEST = 16  # parentheses and powers inside one another
_MOST_BITS = 4096  # of a numerator or a denominator
_MOST_EXPONENT = 400  # of a number as it is written, 1e400
_DIGITS = 12  # significant ones of what no few decimals write, or all before the point
_EXACT_DIGITS = 15  # most of a number with decimals that is written out
_WHOLE_DIGITS = 30  # of the longest whole number that is written out

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,4})?|\.\d+)"
    r"|(?P<word>[^\W\d_]+)|(?P<sign>\*\*|[-+*/^%()]))"
)
_SIGNS = str.maketrans("−–—×·÷∶", "---**//", "$€£¥")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_TIMES = ("x", "times")


class _CannotError(Exception):
    """A request that has no value; the message is for the agent."""


class Calculator:
    """Answers arithmetic with a number, or says why it cannot; no request makes it raise or hang.

    Values are exact fractions; a power that is none, such as a root, is of floating point.
    """

    name = "calculate"
    offers = "a calculator"
    usage = (
        "put numbers with + - * / ^ and parentheses between <calculate> and </calculate>, such as "
        "24.9 million - 173,000. The result comes back between <information> and </information>"
    )
    example = "24.9 million - 173,000"

    def answer(self, request: str) -> str:
        try:
            return _written(_Parser(request).value())
        except _CannotError as error:
            return Unreadable(error)


class _Parser:
    def __init__(self, request: str):
        if len(request) > _LONGEST:
            raise _CannotError(f"Too long: {len(request)} characters; at most {_LONGEST}.")
        self._tokens = _tokens(request.translate(_SIGNS).rstrip(" =?"))
        self._at = self._depth = 0

    def value(self) -> Fraction:
        found = self._sum()
        if self._at < len(self._tokens):
            raise _CannotError(f"Cannot read {self._next()!r} there.")
        return found

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        """The next token, if it is one of these; "" where it is not, or at the end."""
        token = self._next()
        if token not in wanted:
            return ""
        self._at += 1
        return token

    def _sum(self) -> Fraction:
        found = self._product()
        while sign := self._take("+", "-"):
            other = self._product()
            found = _bounded(found + other if sign == "+" else found - other)
        return found

    def _product(self) -> Fraction:
        found = self._signed()
        while sign := self._take("*", "/", *_TIMES):
            other = self._signed()
            if sign == "/" and not other:
                raise _CannotError("Division by zero.")
            found = _bounded(found / other if sign == "/" else found * other)
        return found

    def _signed(self) -> Fraction:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        found = self._power()
        return -found if negative else found

    def _power(self) -> Fraction:
        base = self._primary()
        if not self._take("^", "**"):
            return base
        self._deeper()
        exponent = self._signed()
        self._depth -= 1
        return _power(base, exponent)

    def _primary(self) -> Fraction:
        if self._take("("):
            self._deeper()
            found = self._sum()
            self._depth -= 1
            if not self._take(")"):
                raise _CannotError("A parenthesis is not closed.")
        else:
            found = self._number()
        while self._take("%"):
            found /= 100
        return found

    def _number(self) -> Fraction:
        token = self._next()
        if not token:
            raise _CannotError("A number is missing at the end.")
        if not (token[0].isdigit() or token[0] == "."):
            raise _CannotError(f"A number is missing before {token!r}.")
        self._at += 1
        _, _, exponent = token.lower().partition("e")
        if abs(int(exponent or 0)) > _MOST_EXPONENT:
            raise _CannotError("The numbers are too large.")
        found = Fraction(token.replace(",", ""))
        while scale := self._take(*_SCALES):
            found = _bounded(found * _SCALES[scale])
        return found

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _CannotError("Too many parentheses or powers inside one another.")


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        word = match and match["word"]
        if word and word.lower() not in (*_SCALES, *_TIMES):
            raise _CannotError(
                f"Cannot read {word!r}: write numbers with + - * / ^ and parentheses."
            )
        if not match:
            raise _CannotError(f"Cannot read {text[at:].strip()[:1]!r}.")
        found.append(match[0].strip().lower())
        at = match.end()
    if not found:
        raise _CannotError("There is nothing to calculate.")
    return found


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if not base and exponent < 0:
        raise _CannotError("Division by zero.")
    if exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
        if bits * abs(exponent.numerator) > _MOST_BITS:
            raise _CannotError("The numbers are too large.")
        # Of 0, 1 and -1, whose bits are no measure, the exponent does not matter but for its sign.
        times = exponent.numerator if bits else exponent.numerator % 2 or 2 * bool(exponent)
        return _bounded(base**times)
    if base < 0:
        raise _CannotError("A root of a negative number is no real number.")
    try:
        return _bounded(Fraction(float(base) ** float(exponent)))
    except OverflowError as error:
        raise _CannotError("The numbers are too large.") from error
    except ZeroDivisionError as error:  # of a base that floating point rounds to 0
        raise _CannotError("The numbers are too small.") from error


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise _CannotError("The numbers are too large.")
    return value


def _written(value: Fraction) -> str:
    """A whole number with commas by thousands; others exactly, or rounded to twelve digits.

    What is below 10^30 has all digits before the point.
    """
    whole = abs(value.numerator) // value.denominator
    if value.denominator == 1 and whole < 10**_WHOLE_DIGITS:
        return f"{value.numerator:,}"
    try:
        found = _divided(value, _EXACT_DIGITS, decimal.Inexact)
    except decimal.Inexact:
        digits = len(str(whole)) if whole < 10**_WHOLE_DIGITS else 0
        found = _divided(value, max(_DIGITS, digits))
    size = found.adjusted()
    return f"{found:,f}" if -7 < size < _WHOLE_DIGITS else f"{found:e}"


def _divided(
    value: Fraction, digits: int, *traps: type[decimal.DecimalException]
) -> decimal.Decimal:
    """The value in so many significant digits. Raises those of `traps`."""
    with decimal.localcontext(decimal.Context(prec=digits, traps=list(traps))):
        found = decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)
        return found.normalize()
