"""Runs the worked examples and compares what they print with what their page shows.

    python docs/check_examples.py

Exits with 1 and names each example that failed or printed something else.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "worked"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")
# How far a printed number may lie from the page's: processors round otherwise, and where tokens are
# sampled by a model that is trained, a last bit may choose another one.
WITHIN = {"token_by_token": 0.011, "ten_steps": 0.15}
RELATIVE = 0.2  # or so much of the page's number
SECONDS = 600.0  # that an example may take, many times what the longest does
AT_ONCE = 2
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def agree(said: str, shown: str, within: float | None) -> bool:
    """Whether two outputs are the same, or have the same words and numbers near each other."""
    if within is None:
        return said == shown

    def words(text: str) -> list[list[str]]:
        return [_NUMBER.sub("#", line).split() for line in text.splitlines()]

    pairs = zip(_NUMBER.findall(said), _NUMBER.findall(shown), strict=False)
    return words(said) == words(shown) and all(
        abs(float(a) - float(b)) <= max(within, RELATIVE * abs(float(b))) for a, b in pairs
    )


def fault(name: str, said: str, shown: str) -> str:
    """The lines that differ; "" where the outputs agree."""
    if agree(said, shown, WITHIN.get(name)):
        return ""
    names = f"{name}.txt", f"what {name} prints"
    lines = difflib.unified_diff(shown.splitlines(), said.splitlines(), *names, lineterm="", n=0)
    return "\n".join(lines)


def check(name: str) -> str:
    """What is wrong with the example; "" where nothing is."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"examples.worked.{name}"],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"{name} has not ended after {SECONDS:g} s"
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    if done.returncode:
        return f"{name} ended with {done.returncode}:\n{done.stderr}"
    return fault(name, done.stdout, (FOLDER / f"{name}.txt").read_text(encoding="utf-8"))


def main() -> int:
    first = sorted(NAMES, key=lambda name: name not in WITHIN)  # the longest
    with ThreadPoolExecutor(AT_ONCE) as pool:
        faults = [found for found in pool.map(check, first) if found]
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
