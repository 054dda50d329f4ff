"""The calculator: exact values, a clear text for whatever has none, and never an exception."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksearch_jax.core.tools import Unreadable
from masksearch_jax.tools.calculator import Calculator

answer = Calculator().answer


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("24.9 million - 173,000", "24,727,000"),
        ("1,234,567 + 1", "1,234,568"),
        ("0.1 + 0.2", "0.3"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("2 ^ 3 ^ 2", "512"),
        ("-2 ^ 2", "-4"),
        ("10 - 4 - 3", "3"),
        ("100 / 8 / 5", "2.5"),
        ("2 ** -2", "0.25"),
        ("- - 3", "3"),
        ("15% * 80", "12"),
        ("1 / 3", "0.333333333333"),
        ("2 ^ 0.5", "1.41421356237"),
        ("8 ^ (1/3)", "2"),
        ("3 × 4 − 2", "10"),
        ("6 ÷ 4 =", "1.5"),
        ("2 x 3", "6"),
        ("(-1) ^ 1000000001", "-1"),
        ("0 ^ 0", "1"),
        ("1.5 billion / 3 thousand", "500,000"),
        ("2 ^ 100", "1.26765060023e+30"),
        ("10 ^ 29", f"{10**29:,}"),
        ("1e-9 / 2", "5e-10"),
        ("1e3 + .5", "1,000.5"),
        ("10 / 1e30", "1e-29"),
        ("12345678901234.5 * 2", "24,691,357,802,469"),
        ("1,234,567,890,123.45 + 0.05", "1,234,567,890,123.5"),
        ("999,999,999,999.75 + 0.1", "999,999,999,999.85"),
        ("1e15 + 1/3", "1,000,000,000,000,000"),
        ("12,345,678,901,234,567 + 1/3", "12,345,678,901,234,567"),
    ],
)
def test_values_are_exact_and_written_as_prose_writes_them(request_, said):
    assert answer(request_) == said
    assert not isinstance(answer(request_), Unreadable)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ("", "nothing to calculate"),
        ("twelve plus three", "'twelve'"),
        ("5 apples", "'apples'"),
        ("7 / 0", "Division by zero"),
        ("0 ^ -1", "Division by zero"),
        ("1e-400 ^ -0.5", "too small"),
        ("1 / (2 - 2)", "Division by zero"),
        ("9 ^ 9 ^ 9 ^ 9", "too large"),
        ("2 ^ 1e300", "too large"),
        ("1e999", "too large"),
        ("1e9999999999", "too large"),
        ("2 ^ 99999.5", "too large"),
        ("(-8) ^ 0.5", "root of a negative"),
        ("1 +", "missing at the end"),
        ("* 3", "missing before '*'"),
        ("2 3", "Cannot read '3' there"),
        ("(1 + 2", "not closed"),
        ("1 + 2)", "Cannot read ')' there"),
        ("1,23 + 4", "Cannot read ','"),
        ("__import__('os').system('x')", "Cannot read '_'"),
        ("(" * 99 + "1" + ")" * 99, "Too many parentheses"),
        ("9" * 201, "Too long"),
        ("3 & 4", "Cannot read '&'"),
    ],
)
def test_what_has_no_value_is_answered_with_the_reason(request_, why):
    said = answer(request_)
    assert isinstance(said, Unreadable)
    assert why in said


PIECES = [*"0123456789.,+-*/^%()e x=", " million", "\n", "é", "^9"]


@settings(max_examples=300, deadline=2000)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_no_text_makes_it_raise_or_hang(text):
    said = answer(text)
    assert said
    assert len(said) < 200


numbers = st.integers(-(10**9), 10**9)


@given(numbers, numbers, numbers.filter(bool), st.integers(0, 12))
def test_it_agrees_with_fractions(a, b, c, n):
    value = Fraction(a) + Fraction(b, c) ** n - 7
    text = f"({a}) + (({b}) / ({c})) ^ {n} - 7"
    said = answer(text).replace(",", "")
    assert math.isclose(float(said), value, rel_tol=1e-11, abs_tol=1e-300)
    if value.denominator == 1 and abs(value) < 10**30:
        assert said == str(value.numerator)
