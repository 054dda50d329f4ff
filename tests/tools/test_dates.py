"""Arithmetic of dates: exact values, and a clear text for whatever has none."""

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksearch_jax.core.tools import Unreadable
from masksearch_jax.tools.dates import Dates

answer = Dates().answer


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("2023-12-25 to 2024-02-29", "66 days"),
        ("from 25 December 2023 to 29 February 2024", "66 days"),
        ("between December 25, 2023 and Feb 29, 2024", "66 days"),
        ("2024-02-29 - 2023-12-25", "66 days"),
        ("2024-02-29 to 2023-12-25", "-66 days"),
        ("2024-02-28 until 2024-02-29", "1 day"),
        ("weeks from 2024-01-01 to 2024-01-20", "2 weeks"),
        ("months between 2024-01-31 and 2024-02-29", "1 month"),
        ("months between 2024-01-15 and 2024-03-14", "1 month"),
        ("years from 14 March 1879 to 18 April 1955", "76 years"),
        ("years from 18 April 1955 to 14 March 1879", "-76 years"),
        ("years from 20 April 1879 to 18 April 1955", "75 years"),
        ("1875 to 1886", "11 years"),
        ("1886 - 1875", "11 years"),
        ("1886 to 1875", "-11 years"),
        ("years between 1999 and 2000", "1 year"),
        ("1875 + 11 years", "1886"),
        ("2024-01-31 + 1 month", "2024-02-29, Thursday"),
        ("2023-01-31 + 1 month", "2023-02-28, Tuesday"),
        ("29 February 2024 + 1 year", "2025-02-28, Friday"),
        ("2024-03-01 - 1 day", "2024-02-29, Thursday"),
        ("2024-03-01 − 2 weeks", "2024-02-16, Friday"),
        ("March 1, 2024 + 1,000 days", "2026-11-26, Thursday"),
        ("2024-12-15 - 13 months", "2023-11-15, Wednesday"),
        ("weekday of 20 July 1969", "Sunday"),
        ("day of the week of 1969-07-20?", "Sunday"),
        ("the 3rd May 1999", "1999-05-03, Monday"),
        ("1776", "1776"),
    ],
)
def test_values_by_hand(request_, said):
    assert answer(request_) == said
    assert not isinstance(answer(request_), Unreadable)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ("", "Cannot read the date"),
        ("yesterday", "Cannot read the date 'yesterday'"),
        ("2023-02-29 to 2024-01-01", "Cannot read the date '2023-02-29'"),
        ("2024-01-01 + 0000000001000005 days", "Too many"),
        ("2024-01-01 + 99999999 days", "Too many"),
        ("9999-12-31 + 1 day", "outside of the years"),
        ("0001-01-01 - 1 month", "outside of the years"),
        ("2024-01-01 + 999999 years", "outside of the years"),
        ("weekday of 1999", "no weekday"),
        ("1999 + 3 days", "only years are added"),
        ("days from 1875 to 1886", "give whole dates"),
        ("x" * 201, "Too long"),
    ],
)
def test_what_cannot_be_answered_says_why(request_, why):
    said = answer(request_)
    assert isinstance(said, Unreadable)
    assert why in said


dates = st.dates(datetime.date(1000, 1, 1), datetime.date(3000, 1, 1))


@given(dates, dates)
def test_a_difference_leads_from_one_date_to_the_other(first, last):
    days = (last - first).days
    told = answer(f"{first} to {last}")
    assert int(told.split()[0].replace(",", "")) == days
    sign = "+" if days >= 0 else "-"
    assert answer(f"{first} {sign} {abs(days)} days").startswith(last.isoformat())


@given(dates, dates)
def test_months_are_the_most_that_do_not_pass_the_date(first, last):
    first, last = sorted((first, last))
    months = int(answer(f"months from {first} to {last}").split()[0].replace(",", ""))
    assert answer(f"{first} + {months} months")[:10] <= last.isoformat()
    assert answer(f"{first} + {months + 1} months")[:10] > last.isoformat()


PIECES = [*"0123456789-+, /", " to ", " and ", "between ", "from ", " days", " months", " May "]
PIECES += ["weekday of ", "é"]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_no_text_makes_it_raise(text):
    assert answer(text)
