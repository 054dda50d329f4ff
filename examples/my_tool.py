"""A tool of your own, which an agent calls as it calls search: lengths in other units.

    python -m masksearch_jax.train_dapo --config=configs/qa_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=Qwen2.5-1.5B-Instruct --config.tools=calculate,examples.my_tool:Lengths

A tool is a class without arguments: its tag, what the instructions say of it, a request that it can
answer, and `answer`, which several threads may call at once. It may raise where it cannot answer,
as when a service of its own is down: no policy is blamed for that.
"""

from __future__ import annotations

import re

from masksearch_jax.core.tools import Unreadable

METRES = {"m": 1.0, "km": 1000.0, "mile": 1609.344, "miles": 1609.344, "feet": 0.3048}
_REQUEST = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s+(\w+)\s+in\s+(\w+)\s*")


class Lengths:
    name = "convert"
    offers = "a converter of lengths"
    usage = (
        "put an amount, its unit and the wanted one between <convert> and </convert>, such as "
        "26.2 miles in km"
    )
    example = "26.2 miles in km"

    def answer(self, request: str) -> str:
        match = _REQUEST.fullmatch(request)
        if not match or match[2] not in METRES or match[3] not in METRES:
            return Unreadable(f"Write it as 26.2 miles in km; units: {', '.join(METRES)}.")
        return f"{float(match[1]) * METRES[match[2]] / METRES[match[3]]:.4g} {match[3]}"
