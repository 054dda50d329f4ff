"""Ids of the atlas's paragraphs: that of the passage, "#" and the wording's number ("city:1#2").

Ids of other corpora may hold "#" too, and are those of passages of their own.
"""

from __future__ import annotations


def paragraph_id(passage_id: str, number: int) -> str:
    return f"{passage_id}#{number}"


def passage_id(paragraph_id: str) -> str:
    """The id of the passage that a paragraph of the atlas is of; "" for an id of another form."""
    name, _, number = paragraph_id.rpartition("#")
    return name if number.isdecimal() else ""
