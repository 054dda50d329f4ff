"""FanOutQA's accuracy (arXiv 2402.14116): which parts of a structured answer a text names."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ftfy

_THOUSANDS = re.compile(r"(?:\d+,)+\d+(?:\.\d+)?")
_SIGNS = re.compile(r"[,.?!:;]")

Lemmatizer = Callable[[str], str]  # a text to its words' lemmas, a space between them


class Accuracy(NamedTuple):
    """loose: share of the parts that the text names. strict: 1 where it names all."""

    loose: float
    strict: float


def accuracy(reference: str, text: str, lemmatize: Lemmatizer = str) -> Accuracy:
    """Of a text against an answer as JSON, after `answer_in_text` of the authors' package.

    A part is an element of a list, a key or a value of an object; true and false are yes and no.
    What is missing within a nested part is taken off the whole one by one, as theirs does, so that
    a part of many counts below 0. Without a lemmatizer words must be in the form of the answer;
    theirs is spaCy's en_core_web_sm.
    """
    wanted = json.loads(reference)
    score, missing = _share(wanted, normalise(text, lemmatize), lemmatize)
    return Accuracy(score, float(not missing))


def normalise(text: str, lemmatize: Lemmatizer = str) -> str:
    """Lower case, mended encoding, numbers without separators, lemmas, without `,.?!:;`."""
    plain = ftfy.fix_text(text.lower())
    plain = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), plain)
    return re.sub(r"\s+", " ", _SIGNS.sub("", lemmatize(plain)))


def _share(wanted: Any, text: str, lemmatize: Lemmatizer) -> tuple[float, int]:
    """Share of the parts in a normalised text, and how many single texts it lacks."""
    if isinstance(wanted, list | dict):
        parts = wanted
        if isinstance(wanted, dict):
            parts = list(itertools.chain(wanted.keys(), wanted.values()))
        missing = sum(_share(part, text, lemmatize)[1] for part in parts)
        return (len(parts) - missing) / max(len(parts), 1), missing
    if isinstance(wanted, bool):
        wanted = "yes" if wanted else "no"
    normal = re.escape(normalise(str(wanted), lemmatize))
    is_there = re.search(rf"\b{normal}\b", text) is not None
    return float(is_there), int(not is_there)
