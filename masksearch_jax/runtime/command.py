"""The command `masksearch`: its first argument names the main that it runs, as `python -m` does."""

from __future__ import annotations

import ast
import os
import runpy
import sys

from masksearch_jax.core.errors import nearest
from masksearch_jax.runtime import completion, installed
from masksearch_jax.runtime.process import print_lines

USAGE = "usage: masksearch MAIN --config=NAME[:arg] [--config.section.key=value ...]"
OPTIONS = (
    "       MAIN --help says what a main's keys mean; --version prints version and commit;\n"
    "       --completion bash|zsh prints a script that completes mains, configs, keys and choices"
)


def mains() -> dict[str, str]:
    """What each main does: the first line of its docstring, by its name on the command line."""
    found = {}
    for path in sorted(installed.PACKAGE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.stem != "__init__":
            said = ast.get_docstring(tree) or ""
            found[path.stem.replace("_", "-")] = said.partition("\n")[0].partition(": `")[0]
    return found


def _help() -> str:
    known, folder = mains(), installed.root()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {said}" for name, said in known.items()]
    places = [f"configs: {folder / 'configs'}", f"scripts: {folder / 'launch'}"]
    return "\n".join([USAGE, OPTIONS, "", *lines, "", *places])


def main() -> None:
    """Runs the main that the first argument names, in this process, as `python -m` would.

    The working folder is searched for modules first, so that a config may name a function there.
    Exits with 2 where the name is no main's.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "-help", "--help"):
        print_lines([_help()])
    elif name == "--version":
        print_lines([installed.version_line()])
    elif name == "--completion":
        if rest not in ([shell] for shell in completion.SHELLS):
            said = f"masksearch --completion {' '.join(rest)}".rstrip()
            choices = " or ".join(completion.SHELLS)
            print(f"error: {said}: it must name one shell, {choices}", file=sys.stderr)
            sys.exit(2)
        print_lines(completion.script(rest[0]).splitlines())
    elif name.replace("_", "-") in mains():
        sys.argv[1:] = rest
        sys.path.insert(0, os.getcwd())
        module = f"masksearch_jax.{name.replace('-', '_')}"
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        near = nearest(name, mains())
        print(f"error: masksearch {name}: there is no main {name!r}; {near}", file=sys.stderr)
        sys.exit(2)
