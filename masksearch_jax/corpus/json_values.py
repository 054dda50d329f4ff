"""JSON values of a text, streamed: objects one after another, and the items of arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20  # characters read at once; more while one value needs more
_BETWEEN = re.compile(r"[\s,]*")
_ARRAY = re.compile(r"\s*\[\s*[{\]]")
_SPREAD = re.compile(r"\s*\{\s*\n")


def is_array(head: str) -> bool:
    """True where a text begins as an array of objects does."""
    return bool(_ARRAY.match(head))


def is_spread(head: str) -> bool:
    """True where a text begins with an object that is spread over lines."""
    return bool(_SPREAD.match(head))


def values(file: TextIO) -> Iterator[Any]:
    """The values of a text one after another, in order; of an array its items.

    Memory: one chunk, or the largest value. Raises ValueError where the text breaks off or is no
    JSON, naming how many values came before; what reading the file raises.
    """
    decode = json.JSONDecoder().raw_decode
    held, size = file.read(_CHUNK), _CHUNK
    position = count = 0
    in_array = False
    while True:
        position = _BETWEEN.match(held, position).end()
        if held[position : position + 1] == ("]" if in_array else "["):
            in_array = not in_array
            position += 1
            continue
        try:
            value, position = decode(held, position)
        except (ValueError, RecursionError) as error:
            more = file.read(size)
            if more:
                held, position, size = held[position:] + more, 0, 2 * size
                continue
            if position == len(held) and not in_array:
                return
            message = "it breaks off" if position == len(held) else f"not JSON: {error}"
            raise ValueError(f"after {count} values: {message}") from None
        size = _CHUNK
        count += 1
        yield value
