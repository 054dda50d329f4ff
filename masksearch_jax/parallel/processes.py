"""Joining the other processes of a run, where the environment says that there are some.

    JAX_COORDINATOR_ADDRESS   HOST:PORT of process 0, or `auto` on a cluster that JAX knows
    JAX_NUM_PROCESSES         how many processes there are; with HOST:PORT
    JAX_PROCESS_ID            which one this is, from 0; with HOST:PORT

What the environment gets wrong is found before JAX waits for anybody.
"""

from __future__ import annotations

import os
import re

import jax

from masksearch_jax.core.errors import ConfigError, Restart
from masksearch_jax.parallel import sharding
from masksearch_jax.runtime.process import name_process

_ADDRESS, _COUNT, _OWN = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_AUTO = "'auto' (Cloud TPU, GKE, SLURM, Open MPI)"
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\d+)")


def join_processes(heartbeat_seconds: int = 30) -> None:
    """Makes this one of several processes where the environment says so; call before any other use.

    One that was not heard of for `heartbeat_seconds` is taken for dead. Raises ConfigError for an
    environment that cannot be right, such as one that counts processes and has no address: each
    would run alone, in one folder. Raises Restart where the others do not come.
    """
    sharding.set_libtpu_args()
    address = os.environ.get(_ADDRESS, "")
    if not address:
        _check_alone()
    if not address or jax.distributed.is_initialized():
        return
    is_auto = address == "auto"
    place: tuple[str | None, int | None, int | None] = (None, None, None)
    if not is_auto:
        place = (address, *_place_among(address))
    if is_auto:
        del os.environ[_ADDRESS]  # JAX would take it for an address
    try:
        jax.distributed.initialize(*place, heartbeat_timeout_seconds=heartbeat_seconds)
    except jax.errors.JaxRuntimeError as error:
        raise Restart(f"the other processes cannot be joined at {address}: {error}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        if not is_auto:
            raise
        raise ConfigError(
            f"{_ADDRESS} is 'auto', but this machine is on no cluster that JAX knows ({error}): "
            f"give HOST:PORT with {_COUNT} and {_OWN}, or unset it to run alone"
        ) from error
    name_process(jax.process_index(), jax.process_count())


def _check_alone() -> None:
    """Raises ConfigError where one of several processes would not know of the others."""
    for name, alone in ((_COUNT, "1"), (_OWN, "0")):
        if (said := os.environ.get(name, "").strip() or alone) != alone:
            raise ConfigError(
                f"{name} is {said!r}, and {_ADDRESS} is not set: this process would run alone, "
                f"beside others in the same folder; set {_ADDRESS} to HOST:PORT or {_AUTO}, or "
                f"unset {_COUNT} and {_OWN} to run alone"
            )


def _place_among(address: str) -> tuple[int, int]:
    """How many processes there are, and which one this is. Raises ConfigError."""
    match = _HOST_PORT.fullmatch(address)
    if not match or not 1 <= int(match[1]) <= 65535:
        raise ConfigError(
            f"{_ADDRESS} is {address!r}; it must be HOST:PORT, with a port of 1 to 65535 and no "
            f"scheme or path, or {_AUTO}"
        )
    count, own = _number(_COUNT, address), _number(_OWN, address)
    if count < 1:
        raise ConfigError(f"{_COUNT} is {count}; it must be at least 1")
    if not 0 <= own < count:
        raise ConfigError(f"{_OWN} is {own}; of {_COUNT}={count} processes it is 0 to {count - 1}")
    return count, own


def _number(name: str, address: str) -> int:
    text = os.environ.get(name)
    if text is None or not re.fullmatch(r"[+-]?\d{1,9}", text.strip()):
        told = "is not set" if text is None else f"is {text!r}"
        raise ConfigError(
            f"{name} {told}; with {_ADDRESS}={address} it must be a whole number, or {_ADDRESS} "
            f"must be {_AUTO}"
        )
    return int(text)
