"""Chinese characters as words."""

import pytest

from masksearch_jax.core import chinese, scoring


@pytest.mark.parametrize(
    ("part", "text", "stands"),
    [
        ("Liri", "on the LIRI.", True),
        ("Liri", "on the Liris, the Liri", True),  # the second
        ("Liri", "Liris", False),
        ("25", "125 or 25th", False),
        ("25", "_25", False),
        ("1943年", "於1943年有", True),
        ("1943", "於1943年有", True),
        ("943", "於1943年有", False),
        ("利里", "意大利利里河", True),
        ("A股", "BA股市", False),
        ("(x)", "(X)", True),
        ("", "", True),
        ("x", "", False),
    ],
)
def test_whole_words(part, text, stands):
    assert chinese.is_within(part, text) is stands


def test_signs_of_chinese_are_left_out():
    assert scoring.normalise("約翰‧史密斯•李·〜（3）", is_chinese=True) == "約翰史密斯李3"
    assert scoring.normalise("x•y") == "x•y"  # SQuAD's form knows none of them


def test_each_character_is_a_word():
    assert chinese.spaced("索拉 has 25人").split() == ["索", "拉", "has", "25", "人"]
