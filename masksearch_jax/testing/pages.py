"""Reads back what a report holds."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any

_PIECE = re.compile(r'<script type="application/gzip" id="data-([\w-]+)">([^<]*)</script>')


def data_of(page: str) -> dict[str, Any]:
    """The pieces of data in the HTML of a report, by name."""
    return {
        match[1]: json.loads(gzip.decompress(base64.b64decode(match[2])))
        for match in _PIECE.finditer(page)
    }
