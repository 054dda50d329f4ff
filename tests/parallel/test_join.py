"""Joining other processes: what the environment gets wrong is one line, before anybody waits."""

import subprocess
import sys

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.parallel.processes import join_processes

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
GOOD = ("localhost:1234", "2", "1")


def environment(monkeypatch, *values: str | None) -> None:
    for name, value in zip(NAMES, values, strict=True):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_a_process_alone_joins_nobody(monkeypatch):
    environment(monkeypatch, None, None, None)
    join_processes()
    environment(monkeypatch, "", None, None)
    join_processes()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("host", "2", "0"), r"JAX_COORDINATOR_ADDRESS is 'host'; it must be HOST:PORT.*'auto'"),
        (("http://host:1234", "2", "0"), "is 'http://host:1234'; it must be HOST:PORT"),
        (("host:99999", "2", "0"), "is 'host:99999'; .* a port of 1 to 65535"),
        (("host:0", "2", "0"), "is 'host:0'; .* a port of 1 to 65535"),
        (("host:port", "2", "0"), "is 'host:port'; it must be HOST:PORT"),
        (("host:1234/path", "2", "0"), "it must be HOST:PORT"),
        (("::1:1234", "2", "0"), "it must be HOST:PORT"),
        (("Auto", "2", "0"), "is 'Auto'; it must be HOST:PORT.*'auto'"),
        (("host:1234", "2", None), "JAX_PROCESS_ID is not set; with .* it must be a whole number"),
        (("host:1234", None, "0"), "JAX_NUM_PROCESSES is not set"),
        (("host:1234", "two", "0"), "JAX_NUM_PROCESSES is 'two'; .* it must be a whole number"),
        (("host:1234", "2", ""), "JAX_PROCESS_ID is ''; with"),
        (("host:1234", "2", "2"), "JAX_PROCESS_ID is 2; of JAX_NUM_PROCESSES=2 .* it is 0 to 1"),
        (("host:1234", "2", "-1"), "JAX_PROCESS_ID is -1; of JAX_NUM_PROCESSES=2"),
        (("host:1234", "0", "0"), "JAX_NUM_PROCESSES is 0; it must be at least 1"),
        (("[::1]:0", "1", "0"), "a port of 1 to 65535"),
    ],
)
def test_an_environment_that_cannot_be_right_is_named(monkeypatch, values, said):
    environment(monkeypatch, *values)
    with pytest.raises(ConfigError, match=said) as raised:
        join_processes()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((None, "2", "1"), "JAX_NUM_PROCESSES is '2', and JAX_COORDINATOR_ADDRESS is not set: "),
        (("", "two", None), "JAX_NUM_PROCESSES is 'two', and JAX_COORDINATOR_ADDRESS is not set"),
        ((None, None, "1"), "JAX_PROCESS_ID is '1', and .* HOST:PORT or 'auto' .* to run alone"),
    ],
)
def test_one_of_several_without_an_address_does_not_run_alone(monkeypatch, values, said):
    environment(monkeypatch, *values)
    with pytest.raises(ConfigError, match=said) as raised:
        join_processes()
    assert "\n" not in str(raised.value)


def test_one_process_of_one_is_alone(monkeypatch):
    environment(monkeypatch, None, "1", "0")
    join_processes()


@pytest.mark.parametrize("address", ["localhost:1", "10.0.0.1:65535", "[::1]:8476", "tpu-0.sub:80"])
def test_addresses_of_all_forms_are_taken(monkeypatch, address):
    joined = []
    environment(monkeypatch, address, "3", "2")
    monkeypatch.setattr("jax.distributed.initialize", lambda *place, **_: joined.append(place))
    join_processes()
    assert joined == [(address, 3, 2)]


def test_auto_off_a_cluster_is_said_at_once(repository):
    """With the real JAX, which looks for a cluster; a process of its own, since it joins once."""
    code = "from masksearch_jax.parallel.processes import join_processes; join_processes()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env={"PATH": "", "PYTHONPATH": str(repository), "JAX_COORDINATOR_ADDRESS": "auto"},
        capture_output=True,
        text=True,
        timeout=60,  # a start of Python and JAX, and no wait for anybody
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "JAX_COORDINATOR_ADDRESS is 'auto', but this machine is on no cluster" in last
    assert "unset it to run alone" in last
