"""The way in to every main: one config file, checked overrides, plain messages, exit statuses.

Exit statuses, for those who start runs again:

    0    done
    1    failed: the same command would fail again (bad data, NaN, a full disk at the end, a defect)
    2    the command is wrong
    42   start the same command again: it was told to stop (SIGTERM) and has saved, lost another
         process, or hung
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from masksearch_jax.core.errors import ConfigError, Restart, UserError, nearest
from masksearch_jax.core.schema import flat_keys, to_dataclass
from masksearch_jax.runtime.interrupts import never_lost
from masksearch_jax.runtime.process import (
    RESTART,
    end_alone,
    is_lost_process,
    process_count,
    this_process,
)

T = TypeVar("T")

USAGE = "usage: python -m {name} --config=configs/NAME.py[:arg] [--config.section.key=value ...]"
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def load_config(spec: str) -> Any:
    """The ConfigDict that `get_config` of a file returns; `spec` is `path.py` or `path.py:arg`."""
    name, _, arg = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        near = nearest(name, map(str, path.parent.glob("*.py")))
        raise ConfigError(f"--config={spec}: there is no file {name!r}; {near}")
    root = str(path.resolve().parent.parent)
    if root not in sys.path:  # so that a config may import configs.common from anywhere
        sys.path.insert(0, root)
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        return module.get_config(*([arg] if arg else []))
    except Exception as error:
        raise ConfigError(f"--config={spec}: {type(error).__name__}: {error}") from error


def parse(schema: type[T] | tuple[type[T], ...], argv: Sequence[str]) -> T:
    """The run described by `argv` (program name first). Raises ConfigError on anything amiss.

    Of several schemas it is the first that has all the config's keys, else the first.
    """
    spec, rest = _split_config(argv)
    if spec is None:
        raise ConfigError(f"--config is missing; {USAGE.format(name=_program(argv))}")
    config = load_config(spec)
    if isinstance(schema, tuple):
        known = (s for s in schema if set(config) <= set(typing.get_type_hints(s)))
        schema = next(known, schema[0])
    rest = [_checked_flag(schema, arg) for arg in rest]
    return to_dataclass(schema, _with_overrides(config, [argv[0], *rest]))


def _split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of the last `--config`, and the arguments without it."""
    spec, rest, args = None, [], iter(argv[1:])
    for arg in args:
        if arg in ("--config", "-config"):
            spec = next(args, None)
        elif re.match(r"--?config=", arg):
            spec = arg.partition("=")[2]
        else:
            rest.append(arg)
    return spec, rest


def _checked_flag(schema: type, arg: str) -> str:
    """The argument, with `a,b` spelled as a tuple for a key that is one.

    Raises ConfigError on a flag that is no key of the schema.
    """
    match = _OVERRIDE.match(arg)
    if not match and not arg.startswith("--"):
        return arg  # the value of the flag before it
    flag, equals, value = arg.partition("=")
    keys = flat_keys(schema)
    key = match[1] if match else flag.lstrip("-")
    if not match or key not in keys:
        raise ConfigError(f"{flag} is not a flag; {nearest(key, keys, prefix='--config.')}")
    if equals and typing.get_origin(keys[key]) is tuple and value[:1] not in ("(", "["):
        return f"{flag}={tuple(v.strip() for v in value.split(',') if v.strip())!r}"
    return arg


def _with_overrides(config: Any, argv: list[str]) -> Any:
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        extra = values(argv)[1:]
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(str(error)) from error
    if extra:
        raise ConfigError(f"unexpected argument {extra[0]!r}; {USAGE.format(name=_program(argv))}")
    return values.config


def _program(argv: Sequence[str]) -> str:
    return f"masksearch_jax.{Path(argv[0]).stem}"


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
    *,
    resumes: bool = False,
) -> None:
    """Parses the command line into `schema`, calls `fn` with it, turns failures into statuses.

    Of several schemas it is the one that fits the config. `resumes`: the same command goes on from
    what an interrupted one has saved, which Ctrl-C then says. An int that `fn` returns is the exit
    status. A UserError, an error class of this package or an OSError is printed as one line; any
    other exception is a defect and keeps its traceback.
    """
    argv = list(sys.argv if argv is None else argv)
    if any(a in ("--help", "-h", "-help") for a in argv[1:]):
        schemas = schema if isinstance(schema, tuple) else (schema,)
        names = dict.fromkeys(k for s in schemas for k in flat_keys(s))
        keys = "\n".join(f"  --config.{k}" for k in names)
        try:
            print(f"{USAGE.format(name=_program(argv))}\n\nkeys:\n{keys}", flush=True)
        except BrokenPipeError:  # `--help | head`: at exit, Python would try to write again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        settings = parse(schema, argv)
    except ConfigError as error:
        _fail(str(error), 2)
    call(lambda: fn(settings), resumes=resumes)


def call(work: Callable[[], Any], *, resumes: bool = False) -> None:
    """Calls `work` and ends the process as `run` does."""
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
        message = _expected(error)
        if message is None:
            if process_count() == 1:
                raise
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
        status = RESTART if isinstance(error, Restart) else 1
        _fail(message, 2 if isinstance(error, ConfigError) else status)
    if isinstance(status, int) and status:
        sys.exit(status)


def _expected(error: Exception) -> str | None:
    """What to tell the user of a failure that is not a defect; None for a defect."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space and start the same command again"
    ours = type(error).__module__.partition(".")[0] in ("masksearch_jax", "__main__")
    if isinstance(error, (UserError, OSError)) or ours:
        return str(error) or type(error).__name__
    return None
