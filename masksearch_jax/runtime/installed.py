"""Where the files beside the package lie, in a checkout and in a distribution; version and commit.

A checkout has `configs/` and `launch/` beside the package. A wheel has what `setup.py` puts into
`masksearch_jax/shipped`: the configs, the scripts of `launch/` that need no checkout, and the
commit.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from masksearch_jax import __version__

PACKAGE = Path(__file__).resolve().parents[1]


def root() -> Path:
    """The folder that holds `configs/` and `launch/`."""
    shipped = PACKAGE / "shipped"
    return shipped if shipped.is_dir() else PACKAGE.parent


@functools.cache
def commit() -> str:
    """The git commit of the checkout or of the wheel; "" for none.

    A checkout's has `-dirty` where files differ.
    """
    kept = root() / "commit.txt"
    if kept.is_file():
        return kept.read_text(encoding="utf-8").strip()
    if not (root() / ".git").exists():
        return ""
    command = ["git", "-C", str(root()), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def version_line() -> str:
    """Version and commit, as `--version` prints them."""
    return f"masksearch_jax {__version__}, commit {commit() or 'unknown'}"


def as_started(main: str) -> str:
    """How a main is called: by the command `masksearch` in a process that it started."""
    if [Path(word).stem for word in sys.orig_argv[1:2]] == ["masksearch"]:
        return f"masksearch {main.replace('_', '-')}"
    return f"python -m masksearch_jax.{main}"


def extra_of(module: str) -> str:
    """The extra of the installed distribution that brings a module's package; "" for none."""
    try:
        lines = metadata.requires("masksearch_jax") or []
    except metadata.PackageNotFoundError:
        return ""
    found = (re.match(r"([\w.-]+).*extra == \W(\w+)", line) for line in lines)
    names = {m[1].lower().replace("-", "_"): m[2] for m in reversed(list(found)) if m}
    return names.get(module.partition(".")[0].lower(), "")
