"""Errors that the user can put right, and the sentence that names what is nearest to a typo."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right; `run` prints its message without a traceback."""


class ConfigError(UserError):
    """A config file, key or value that no run can be made of."""


class Restart(UserError):
    """Nothing that the same command, started again, would not mend; `run` exits with 42."""


def check_given(section: object, path: str = "config", /, **keys: str) -> None:
    """Raises ConfigError for the first of the keys, each with what it must name, that is empty."""
    for key, what in keys.items():
        if not getattr(section, key).strip():
            raise ConfigError(f"{path}.{key} is empty; it must name {what}")


def nearest(word: str, choices: Iterable[str], prefix: str = "") -> str:
    """A sentence with the choices most like `word`, or all undotted ones when none is.

    A choice whose last dotted part equals that of `word` counts as alike; of a word without a dot
    no choice with two.
    """
    choices = sorted(choices)
    ratio = {c: difflib.SequenceMatcher(None, word, c).ratio() for c in choices}
    best = max(ratio.values(), default=0.0)
    close = [c for c in choices if ratio[c] >= max(0.6, best - 0.1)]
    leaf = word.rpartition(".")[2]
    same = [c for c in choices if c.rpartition(".")[2] == leaf]
    if "." not in word:  # one of a section of a section is hardly meant
        same = [c for c in same if c.count(".") < 2]
        close = [c for c in close if c.count(".") < 2]
    ranked = sorted(same or close, key=lambda c: -ratio[c])[:3]
    if ranked:
        return f"did you mean {' or '.join(prefix + c for c in ranked)}?"
    tops = [c for c in choices if "." not in c] or choices
    return f"choices: {', '.join(prefix + c for c in tops) or 'none'}"
