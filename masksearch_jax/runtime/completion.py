"""Completion for bash and zsh, as a script made of the schemas and of the package's configs.

Offered are mains, configs with their arguments, keys, and the choices of keys.

    masksearch --completion bash >~/.local/share/bash-completion/completions/masksearch

Everything is in the script: a press of Tab starts no Python. After an update of the package the
script is made anew.
"""

from __future__ import annotations

import ast
import importlib
import typing
from collections.abc import Sequence
from pathlib import Path

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import Key, Section, describe_keys
from masksearch_jax.runtime import cli, installed

SHELLS = ("bash", "zsh")
OPTIONS = ("--config=", "--help", "--help=", "--print-config", "--check", "--version")


def run_call(path: Path) -> ast.Call | None:
    """The call of `cli.run(function, schema)` in a module; None: it is no main."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.run":
            return node
    return None


def main_names() -> list[str]:
    """The modules at the root of the package that can be run."""
    return sorted(p.stem for p in installed.PACKAGE.glob("*.py") if run_call(p) is not None)


def schemas(main: str) -> list[type[Section]]:
    """The dataclasses that a main parses its config into; most have one. Imports the main."""
    call = run_call(installed.PACKAGE / f"{main}.py")
    assert call is not None, f"{main} is no main"
    given = call.args[1]
    names = given.elts if isinstance(given, ast.Tuple) else [given]
    module = importlib.import_module(f"masksearch_jax.{main}")
    return [getattr(module, ast.unparse(name)) for name in names]


def choices(key: Key) -> tuple[str, ...]:
    """The values of a key that has only a few."""
    kind = key.kind
    if typing.get_origin(kind) is typing.Literal:
        return tuple(map(str, typing.get_args(kind)))
    return ("False", "True") if kind is bool else ()


def arguments(config: str) -> Sequence[str]:
    """The words that may follow the colon of `--config=CONFIG:`, of a config of the package."""
    try:
        cli.load_config(f"{config}:?")
    except ConfigError as error:
        return getattr(error.__cause__, "choices", ())
    return ()  # it takes any


def script(shell: str) -> str:
    """The script for one of SHELLS."""
    words: dict[str, list[str]] = {}
    values: dict[str, dict[str, tuple[str, ...]]] = {}
    for main in main_names():
        keys = [key for schema in schemas(main) for key in describe_keys(schema)]
        plain = [key for key in keys if key.section is None]
        words[main] = [*OPTIONS, *sorted({f"--config.{key.name}=" for key in plain})]
        values[main] = {f"--config.{k.name}": choices(k) for k in plain if choices(k)}
        if sections := sorted({k.name for k in keys if k.section}):
            values[main]["--help"] = tuple(sections)
    configs = sorted(p.stem for p in (installed.root() / "configs").glob("*.py"))
    configs.remove("common")
    options = " -o nospace" if shell == "zsh" else ""  # it has no way to say so of a key alone
    before = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return before + _SCRIPT.format(
        options=options,
        mains=" ".join(main.replace("_", "-") for main in words),
        configs=" ".join(configs),
        arguments=_cases({config: " ".join(arguments(config)) for config in configs}),
        words=_cases({main.replace("_", "-"): " ".join(w) for main, w in words.items()}),
        values=_cases(_by_key(values)),
    )


def _by_key(values: dict[str, dict[str, tuple[str, ...]]]) -> dict[str, str]:
    """`main key` → its choices."""
    return {
        f"{main.replace('_', '-')} {key}": " ".join(found)
        for main, keys in values.items()
        for key, found in keys.items()
    }


def _cases(found: dict[str, str]) -> str:
    """The arms of a `case`, those of equal words joined."""
    arms: dict[str, list[str]] = {}
    for name, words in found.items():
        arms.setdefault(words, []).append(f'"{name}"')
    return "\n".join(f"    {'|'.join(names)}) echo '{words}' ;;" for words, names in arms.items())


# bash cuts the line at "=" and ":", as COMP_WORDBREAKS says: a key, "=" and a value are three
# words, and only the last is to be given. zsh does not cut. What is typed is read from the line.
_SCRIPT = """\
# Completion of `masksearch`, made by `masksearch --completion`.
_masksearch_words() {{
  case "$1" in
{words}
  esac
}}

_masksearch_values() {{
  case "$1 $2" in
    *" --config") echo '{configs}' ;;
{values}
  esac
}}

_masksearch_arguments() {{
  case "$1" in
{arguments}
  esac
}}

_masksearch() {{
  local line="${{COMP_LINE:0:$COMP_POINT}}" typed main
  typed="${{line##*[[:space:]]}}"
  read -r _ main _ <<<"$line "
  main="${{main//_/-}}"
  COMPREPLY=()
  if [[ "$line" =~ ^[^[:space:]]+[[:space:]]+[^[:space:]]*$ ]]; then
    COMPREPLY=($(compgen -W "{mains} --completion --help --version" -- "$typed"))
  elif [[ "$typed" == --config=*:* ]]; then
    local config="${{typed%%:*}}" argument="${{typed#*:}}" given=""
    [[ "$argument" == *,* ]] && given="${{argument%,*}},"
    config="${{config#--config=}}"
    local name="${{config##*/}}"
    local words="$(_masksearch_arguments "${{name%.py}}")"
    COMPREPLY=($(compgen -P "$given" -W "$words" -- "${{argument##*,}}"))
    [[ "${{COMP_WORDBREAKS-}}" == *:* ]] || COMPREPLY=("${{COMPREPLY[@]/#/$config:}}")
    [[ "${{COMP_WORDBREAKS-}}" == *[=:]* ]] || COMPREPLY=("${{COMPREPLY[@]/#/--config=}}")
  elif [[ "$typed" == *=* ]]; then
    COMPREPLY=($(compgen -W "$(_masksearch_values "$main" "${{typed%%=*}}")" -- "${{typed#*=}}"))
    [[ ${{#COMPREPLY[@]}} -gt 0 ]] || COMPREPLY=($(compgen -f -- "${{typed#*=}}"))
    [[ "${{COMP_WORDBREAKS-}}" == *=* ]] || COMPREPLY=("${{COMPREPLY[@]/#/${{typed%%=*}}=}}")
  else
    COMPREPLY=($(compgen -W "$(_masksearch_words "$main")" -- "$typed"))
    [[ "${{COMPREPLY[0]:-}}" == *= ]] && compopt -o nospace 2>/dev/null
  fi
  return 0
}}
complete{options} -F _masksearch masksearch
"""
