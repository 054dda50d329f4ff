"""What the documents show: blocks of code, and commands, read by a shell that starts nothing."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MODULES = sorted(
    path
    for folder in ("masksearch_jax", "configs", "examples", "examples/worked", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
)
PROGRAMS = [
    "masksearch",
    "python",
    "python3",
    "bash",
    "pip",
    "gcloud",
    "xpk",
    "sky",
    "kubectl",
    "cp",
    "source",
]
_OF_A_DOCSTRING = re.compile(rf" {{4}}(?:\w+=\S+ )?(?:{'|'.join(PROGRAMS)}) ")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Block(NamedTuple):
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    return [
        Block(*m) for m in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    argv: list[str]
    printed: str = ""  # what the document shows as its output
    is_whole: bool = True  # else the text names it, and may leave out what it needs


def shell(text: str, folder: Path) -> list[list[str]]:
    """The commands of a bash script, run with stand-ins for every program: nothing is started.

    The programs of a pipe write at once: each holds the file while it writes its words.
    """
    log = folder / "commands"
    stubs = "".join(
        f"{name}() {{ {{ flock 9; printf '%s\\0' {name} \"$@\" $'\\n'; }} 9>>'{log}' >&9; }}\n"
        for name in PROGRAMS
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", stubs + text],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=folder,
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    said = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return [call.split("\0")[:-1] for call in said.split("\n\0") if call]


def commands(path: Path, folder: Path) -> list[Command]:
    """Those in the blocks of a document."""
    found = []
    for language, text in blocks(path.read_text(encoding="utf-8")):
        if language == "bash":
            found += [Command(argv) for argv in shell(text, folder)]
        elif language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                typed = re.match(r"(?:.*\\\n)*.*\n", part)[0]
                (argv,) = shell(typed, folder)
                found.append(Command(argv, part[len(typed) :]))
    return found


def named_commands(path: Path, folder: Path) -> list[Command]:
    """Those of Python in the sentences of a document."""
    text = without_blocks(path.read_text(encoding="utf-8"))
    found = re.findall(r"`(python -m [\w.]+[^`]*)`", text)
    return [
        Command(argv, is_whole=False)
        for line in found
        for argv in shell(" ".join(line.split()), folder)
    ]


def docstring_commands(path: Path, folder: Path) -> list[Command]:
    """Those of a module's docstring, without [what may be left out] and words at some distance.

    A line that begins with ... adds to the last command that stands whole.
    """
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found: list[Command] = []
    for line in re.sub(r"\\\n\s*|\[[^\]\n]*\]", "", said).splitlines():
        words = re.split(r"\s{2,}", line.strip())[0]
        if _OF_A_DOCSTRING.match(line):
            found += [Command(argv) for argv in shell(words, folder)]
            whole = found[-1].argv
        elif line.startswith("    ... ") and found:
            (argv,) = shell(words.replace("...", "python", 1), folder)
            found.append(Command([*whole, *argv[1:]]))
    return found
