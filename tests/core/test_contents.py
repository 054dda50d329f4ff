"""Passages as one text: a title in quotes, and contents without a title."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksearch_jax.core import contents

LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), max_size=12)


@pytest.mark.parametrize(
    ("whole", "title", "text"),
    [
        ('"Ember"\nA river.', "Ember", "A river."),
        ("Ember\nA river.", "Ember", "A river."),
        ('""Ash" (Lind song)"\n"Ash" is a song.', '"Ash" (Lind song)', '"Ash" is a song.'),
        ('"The Bridge "Old Jo""\nIt is old.', 'The Bridge "Old Jo"', "It is old."),
        ('"Ash" (song)\nIt is old.', '"Ash" (song)', "It is old."),
        ('"\nIt is old.', '"', "It is old."),
        ("E.T.\nA film.\nOf 1982.", "E.T.", "A film.\nOf 1982."),
        ("The Ember is a river.", "", "The Ember is a river."),
        ('"Ash" is a song by "Lind"', "", '"Ash" is a song by "Lind"'),
        ("It rises near Old Harrow and flows east.\nIt is long.", "", None),
        ("恩伯河是瓦尔德里亚北部的一条河流，全长84公里。\n它很美。", "", None),
        ("x" * 300 + "\nIt is long.", "", None),
        ("", "", ""),
    ],
)
def test_contents_are_split_into_title_and_text(whole, title, text):
    assert contents.split(whole) == (title, whole if text is None else text)


@given(LINE, st.text(max_size=40))
def test_what_is_joined_is_split_again(title, text):
    assert contents.split(contents.join(title, text)) == (title, text)
