"""The way in to every main: one config file, checked overrides, plain messages, exit statuses.

A config file says what it decides; every other key has the default of its schema.
`--config=FILE.py:ARG --config.KEY=VALUE …` starts a run, `--config=NAME:ARG` one by a file of this
package's own `configs/`. `--help` prints each key with its value in the config that is given and
what it means, `--help=rollout` those of one section. `--print-config` prints the whole config, one
`key = value` a line, so that two can be told apart by `diff`; `--check` says of a command whether
its keys and values are right, and reads no model, so that a machine without the run's files can
ask; `--version` prints version and commit.

Exit statuses, for those who start runs again:

    0    done
    1    failed: the same command would fail again (bad data, NaN, a full disk at the end, a defect)
    2    the command is wrong
    42   start the same command again: it was told to stop (SIGTERM, or SIGHUP of a lost terminal)
         and has saved, lost another process, hung, or a bucket was out
    130  interrupted (Ctrl-C)
    134, 137 and the like: ended by a signal; JAX aborts (134) when its coordinator is gone

xpk restarts on 42 and 127 to 255 by itself, not on 1 and 2.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from masksearch_jax.core import idle
from masksearch_jax.core.config import ModelConfig
from masksearch_jax.core.errors import ConfigError, Restart, UserError, nearest
from masksearch_jax.core.schema import Section, to_dataclass
from masksearch_jax.runtime import config_text, installed, overrides
from masksearch_jax.runtime.interrupts import never_lost
from masksearch_jax.runtime.parent import end_with_parent
from masksearch_jax.runtime.path_errors import path_error
from masksearch_jax.runtime.process import (
    RESTART,
    end_alone,
    is_lost_process,
    print_lines,
    process_count,
    this_process,
)
from masksearch_jax.runtime.streams import lasting

T = TypeVar("T", bound=Section)

ReadModel = Callable[[str], ModelConfig]
ReadDefaults = Callable[[str], Mapping[str, Any]]

USAGE = "usage: {name} --config=NAME[:arg]|FILE.py[:arg] [--config.section.key=value ...]"
OPTIONS = (
    "       --help[=SECTION] says what each key means; --print-config prints the whole config;\n"
    "       --check checks keys and values, reads no model and starts nothing;\n"
    "       --version prints version and commit"
)
PRINT_CONFIG = "--print-config"
CHECK = "--check"
VERSION = "--version"
_HELP = re.compile(r"-h|--?help(?:=(.*))?")


def load_config(spec: str) -> Any:
    """The ConfigDict that `get_config` of a file returns.

    spec: `path.py` or `path.py:arg`; `name` or `name:arg` of a file of this package's `configs/`.
    """
    name, _, arg = spec.partition(":")
    path = _config_file(spec, name)
    # So that a config may import configs.common from anywhere: of its own folder, else of ours.
    own, ours = str(path.resolve().parent.parent), str(installed.root())
    if own not in sys.path:
        sys.path.insert(0, own)
    if ours not in sys.path:
        sys.path.append(ours)
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"--config={spec}: {name!r} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        return module.get_config(*([arg] if arg else []))
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"--config={spec}: {kind}{error}") from error


def _config_file(spec: str, name: str) -> Path:
    """The file that `name` is the path of, or the name of one of ours."""
    path, ours = Path(name), installed.root() / "configs"
    if path.is_file():
        return path
    if not name.isidentifier():
        near = nearest(name, map(str, path.parent.glob("*.py")))
        if (ours / path.name).is_file():
            near = f"did you mean --config={spec.replace(name, path.stem, 1)}, of the package?"
        raise ConfigError(f"--config={spec}: there is no file {name!r}; {near}")
    if not (ours / f"{name}.py").is_file():
        near = nearest(name, [p.stem for p in ours.glob("*.py")])
        raise ConfigError(f"--config={spec}: there is no config {name!r} in {ours}; {near}")
    return ours / f"{name}.py"


def parse(
    schema: type[T] | tuple[type[T], ...],
    argv: Sequence[str],
    read_model: ReadModel | None = None,
    read_defaults: ReadDefaults | None = None,
    *,
    is_unread: bool = False,
) -> T:
    """The run described by `argv` (program name first). Raises ConfigError on anything amiss.

    Of several schemas it is the first that has all the config's keys, else the first. read_model:
    the architecture of an HF folder, for configs that name one in place of a model. read_defaults:
    what the folder that `init` names says in place of the schema's defaults. is_unread: that folder
    is not read, so that keys which do nothing by these defaults are let be.
    """
    found, resolved = _resolved(schema, argv, read_model, read_defaults)
    try:
        settings = to_dataclass(found, resolved.values)
    except ConfigError as error:
        if not isinstance(schema, tuple):
            raise
        mains = " or ".join((s.__doc__ or "").split("`")[1] for s in schema)
        raise ConfigError(f"{error}; {Path(argv[0]).stem} takes a config of {mains}") from error
    if not is_unread:
        idle.check_changed(settings, resolved.changed)
    return settings


def _resolved(
    schema: type[T] | tuple[type[T], ...],
    argv: Sequence[str],
    read_model: ReadModel | None,
    read_defaults: ReadDefaults | None,
) -> tuple[type[T], overrides.Resolved]:
    """The schema that fits, and the config file over its defaults with the flags over both."""
    spec, flags = overrides.split_config(argv[1:])
    if spec is None:
        own = Path(argv[0]).stem
        is_there = (installed.root() / "configs" / f"{own}.py").is_file()
        such = f", such as --config={own}" if is_there else ""
        raise ConfigError(f"--config is missing{such}; {USAGE.format(name=_program(argv))}")
    config = load_config(spec)
    if isinstance(schema, tuple):
        known = (s for s in schema if set(config) <= set(typing.get_type_hints(s)))
        schema = next(known, schema[0])
    return schema, overrides.resolve(schema, config, flags, read_model, read_defaults)


def _program(argv: Sequence[str]) -> str:
    return installed.as_started(Path(argv[0]).stem)


def _fail(message: str, status: int) -> typing.NoReturn:
    several = process_count() > 1
    where = f"{this_process()}: " if several else ""
    print(f"error: {where}{' '.join(message.split())}", file=sys.stderr, flush=True)
    if several and status != RESTART:
        # A usual exit would wait for the others, who wait for this one in a collective.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def run(
    fn: Callable[[T], Any],
    schema: type[T] | tuple[type[T], ...],
    argv: Sequence[str] | None = None,
    read_model: ReadModel | None = None,
    *,
    read_defaults: ReadDefaults | None = None,
    resumes: bool = False,
    check: Callable[[T], None] | None = None,
) -> None:
    """Parses the command line into `schema`, calls `fn` with it, turns failures into statuses.

    schema, read_model, read_defaults as in `parse`. check: what `fn` says of a config before it
    reads a file; `--check` says it too. `resumes`: the same command goes on from what
    an interrupted one has saved, which Ctrl-C then says. An int that `fn` returns is the exit
    status. A UserError, an error class of this package or an OSError is printed as one line; any
    other exception is a defect and keeps its traceback. `--help`, `--print-config`, `--check` and
    `--version` do not call `fn`.
    """
    end_with_parent()
    argv = list(sys.argv if argv is None else argv)
    if VERSION in argv[1:]:
        print_lines([installed.version_line()])
        return
    try:
        if asked := next((m for a in argv[1:] if (m := _HELP.fullmatch(a))), None):
            print_lines(_help(schema, argv, asked[1] or "", read_model, read_defaults))
            return
        rest = [a for a in argv if a not in (PRINT_CONFIG, CHECK)]
        if CHECK in argv:
            is_unread = read_defaults is not None
            settings = parse(schema, rest, read_model and _unread, is_unread=is_unread)
            if check and not is_unread:  # else a folder may yet say what is missing
                call(lambda: check(settings))
            return
        settings = parse(schema, rest, read_model, read_defaults)
        if PRINT_CONFIG in argv:
            print_lines(config_text.config_lines(settings))
            return
    except (UserError, OSError) as error:  # an OSError: of a folder or bucket that is read
        status = 2 if isinstance(error, UserError) else 1
        _fail(str(error), RESTART if isinstance(error, Restart) else status)
    call(lambda: fn(settings), resumes=resumes, settings=settings)


def _unread(_: str) -> ModelConfig:
    """An architecture in place of one that is not read: any that breaks no rule."""
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_layers"), 64)
    return ModelConfig(
        family="qwen2",
        **sizes,
        num_heads=64,
        num_kv_heads=1,
        head_dim=64,
        rope_theta=10_000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tie_embeddings=True,
        max_position=1 << 20,
    )


def _help(
    schema: type[T] | tuple[type[T], ...],
    argv: list[str],
    section: str,
    read_model: ReadModel | None,
    read_defaults: ReadDefaults | None,
) -> list[str]:
    """Usage, and each key with its sentence and its value in the config, else its default."""
    schemas = schema if isinstance(schema, tuple) else (schema,)
    rest = [a for a in argv if not _HELP.fullmatch(a) and a not in (PRINT_CONFIG, CHECK)]
    values = None
    if overrides.split_config(rest[1:])[0] is not None:
        found, resolved = _resolved(schema, rest, read_model, read_defaults)
        schemas, values = (found,), resolved.values
    keys = config_text.help_lines(schemas, section, values)
    return [USAGE.format(name=_program(argv)), OPTIONS, "", *keys]


def call(work: Callable[[], Any], *, resumes: bool = False, settings: object = None) -> None:
    """Calls `work` and ends the process as `run` does; `settings`: the config it works by.

    A reader of stderr that goes away ends nothing, nor one of stdout where `resumes`; another
    command writes its result there.
    """
    with lasting("stderr", *(["stdout"] if resumes else [])):
        _call(work, resumes, settings)


def _call(work: Callable[[], Any], resumes: bool, settings: object) -> None:
    try:
        with never_lost():
            status = work()
    except KeyboardInterrupt:
        # Python's own way out would take JAX's client from a thread that still compiles, a
        # segmentation fault, and let libraries that were cut off anywhere have their say.
        more = "; the same command goes on from what is saved" if resumes else ""
        print(f"\ninterrupted{more}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            sys.stdout.flush()
        os._exit(130)
    except Exception as error:
        if is_lost_process(error):
            end_alone(error)
        message = _expected(error, settings)
        if message is None:
            if process_count() == 1:
                raise
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
        status = RESTART if isinstance(error, Restart) else 1
        _fail(message, 2 if isinstance(error, ConfigError) else status)
    if isinstance(status, int) and status:
        sys.exit(status)


def _expected(error: Exception, settings: object) -> str | None:
    """What to tell the user of a failure that is not a defect; None for a defect."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space and start the same command again"
    if isinstance(error, OSError) and (said := path_error(error, settings)):
        return said
    if isinstance(error, ModuleNotFoundError) and (extra := installed.extra_of(error.name or "")):
        return f"{error.name} is not installed; pip install 'masksearch_jax[{extra}]'"
    ours = type(error).__module__.partition(".")[0] in ("masksearch_jax", "__main__")
    if isinstance(error, (UserError, OSError)) or ours:
        return str(error) or type(error).__name__
    return None
