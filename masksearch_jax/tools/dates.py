"""Arithmetic of dates: differences, dates before and after, days of the week.

Dates are of the Gregorian calendar, years 1 to 9999, as `2024-02-29`, `29 February 2024`,
`February 29, 2024` or a year alone.
"""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Callable
from typing import NamedTuple

from masksearch_jax.core.tools import Unreadable

_LONGEST = 200  # characters of a request
_MOST = 10**6  # of a unit
_FORMATS = ("%Y-%m-%d", "%d %B %Y", "%d %b %Y", "%B %d %Y", "%b %d %Y")
_YEAR = re.compile(r"\d{1,4}")
_UNIT = r"(?P<unit>day|week|month|year)s?"
_BETWEEN = re.compile(rf"(?:{_UNIT}\s+)?between\s+(?P<first>.+?)\s+and\s+(?P<last>.+)")
_FROM = re.compile(rf"(?:{_UNIT}\s+)?(?:from\s+)?(?P<first>.+?)\s+(?:to|until)\s+(?P<last>.+)")
_LESS = re.compile(r"(?P<last>.+?)\s+-\s+(?P<first>.+)")
_MOVED = re.compile(rf"(?P<date>.+?)\s*(?P<sign>[-+])\s*(?P<count>\d[\d,]*)\s*{_UNIT}")
_WEEKDAY = re.compile(r"(?:weekday|day of the week)\s+(?:of\s+)?(?P<date>.+)")
_SIGNS = str.maketrans("−–—", "---", "?")


class _CannotError(Exception):
    """A request that has no answer; the message is for the agent."""


class _Day(NamedTuple):
    """A date; of a year alone its first day."""

    date: datetime.date
    is_year: bool


class Dates:
    """Answers questions of dates, or says why it cannot; no request makes it raise."""

    name = "date"
    offers = "a calendar"
    usage = (
        "put FIRST to LAST, DATE + NUMBER days (or weeks, months, years; or -), or weekday of DATE "
        "between <date> and </date>, where a date is 2024-02-29, 29 February 2024 or a year alone. "
        "The result comes back between <information> and </information>"
    )
    example = "2023-12-25 to 2024-02-29"

    def answer(self, request: str) -> str:
        try:
            return _answer(request)
        except _CannotError as error:
            return Unreadable(error)
        except OverflowError:
            return Unreadable("That is outside of the years 1 to 9999.")


def _answer(request: str) -> str:
    if len(request) > _LONGEST:
        raise _CannotError(f"Too long: {len(request)} characters; at most {_LONGEST}.")
    text = " ".join(request.translate(_SIGNS).casefold().split())
    ways: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
        (_WEEKDAY, _weekday),
        (_BETWEEN, _difference),
        (_FROM, _difference),
        (_MOVED, _moved),
        (_LESS, _difference),
    )
    for pattern, answer in ways:
        if match := pattern.fullmatch(text):
            return answer(match)
    return _told(_day(text))


def _weekday(match: re.Match[str]) -> str:
    found = _day(match["date"])
    if found.is_year:
        raise _CannotError(f"A year has no weekday: {match['date']!r}.")
    return calendar.day_name[found.date.weekday()]


def _difference(match: re.Match[str]) -> str:
    """From the first date to the last; in the unit that is asked for, else in days or years."""
    first, last = _day(match["first"]), _day(match["last"])
    unit = match.groupdict().get("unit")
    if first.is_year or last.is_year:
        if unit not in (None, "year"):
            raise _CannotError(f"Between years there is no number of {unit}s: give whole dates.")
        return _counted(last.date.year - first.date.year, "year")
    days = (last.date - first.date).days
    months = _months(first.date, last.date)
    if unit == "week":
        return _counted(int(days / 7), "week")
    if unit == "month":
        return _counted(months, "month")
    if unit == "year":
        return _counted(int(months / 12), "year")
    return _counted(days, "day")


def _months(first: datetime.date, last: datetime.date) -> int:
    """Whole months from one date to another; below 0 backwards."""
    if last < first:
        return -_months(last, first)
    months = 12 * (last.year - first.year) + last.month - first.month
    return months - (months > 0 and _later(first, months) > last)


def _moved(match: re.Match[str]) -> str:
    """A date so many units later or earlier; the end of a shorter month stands for a later day."""
    start, unit = _day(match["date"]), match["unit"]
    count = int(match["count"].replace(",", ""))
    if count > _MOST:
        raise _CannotError(f"Too many: {match['count']}; at most {_MOST:,}.")
    count = -count if match["sign"] == "-" else count
    if start.is_year and unit != "year":
        raise _CannotError(f"To a year only years are added: {match['date']!r}.")
    if unit in ("day", "week"):
        moved = start.date + datetime.timedelta(days=count * (7 if unit == "week" else 1))
    else:
        moved = _later(start.date, count * (12 if unit == "year" else 1))
    return _told(_Day(moved, start.is_year))


def _later(date: datetime.date, months: int) -> datetime.date:
    year, month = divmod(12 * date.year + date.month - 1 + months, 12)
    if not datetime.MINYEAR <= year <= datetime.MAXYEAR:
        raise OverflowError
    last = calendar.monthrange(year, month + 1)[1]
    return datetime.date(year, month + 1, min(date.day, last))


def _day(text: str) -> _Day:
    """Raises _CannotError for what is no date."""
    text = text.strip()
    if _YEAR.fullmatch(text) and int(text):
        return _Day(datetime.date(int(text), 1, 1), True)
    plain = " ".join(text.replace(",", " ").removeprefix("the ").split())
    plain = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", plain)
    for form in _FORMATS:
        try:
            return _Day(datetime.datetime.strptime(plain, form).date(), False)
        except ValueError:
            continue
    raise _CannotError(
        f"Cannot read the date {text!r}: write 2024-02-29, 29 February 2024 or a year."
    )


def _told(day: _Day) -> str:
    if day.is_year:
        return str(day.date.year)
    return f"{day.date.isoformat()}, {calendar.day_name[day.date.weekday()]}"


def _counted(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'' if abs(count) == 1 else 's'}"
