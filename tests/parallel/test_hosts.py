"""Which rows of a batch each process has, by where the devices of its parts lie."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from masksearch_jax.core.config import MeshConfig
from masksearch_jax.parallel import hosts, sharding


def mesh_on(processes: list[int], shape: tuple[int, int, int]) -> SimpleNamespace:
    """A mesh whose devices, in order, lie on these processes."""
    devices = np.empty(math.prod(shape), object)
    devices[:] = [SimpleNamespace(process_index=process) for process in processes]
    shape = (*shape[:2], 1, shape[2])
    sizes = dict(zip(sharding.AXES, shape, strict=True))
    return SimpleNamespace(devices=devices.reshape(shape), shape=sizes, empty=False)


@pytest.mark.parametrize(
    ("processes", "shape", "peers", "shares", "shards"),
    [
        ([0, 0, 1, 1], (2, 2, 1), ([0], [1]), (0, 1), 4),
        ([0, 0, 1, 1], (1, 4, 1), ([0], [1]), (0, 1), 4),
        ([0, 1, 2, 3], (1, 2, 2), ([0, 1], [0, 1], [2, 3], [2, 3]), (0, 0, 1, 1), 4),
        ([0, 1, 2, 3], (1, 1, 4), 4 * ([0, 1, 2, 3],), (0, 0, 0, 0), 4),
        # A slice's devices by its wiring: one process has every other part.
        ([0, 1, 0, 1], (1, 4, 1), ([0], [1]), (0, 1), 4),
        # `tensor` goes over all hosts, which so have all parts.
        ([0, 1, 0, 1, 0, 1, 0, 1], (2, 2, 2), ([0, 1], [0, 1]), (0, 0), 4),
        ([0, 1, 2, 3, 4, 5], (1, 2, 3), ([0, 1, 2],) * 3 + ([3, 4, 5],) * 3, (0, 0, 0, 1, 1, 1), 6),
    ],
)
def test_processes_with_the_same_parts_share_their_rows(
    processes, shape, peers, shares, shards, monkeypatch
):
    mesh = mesh_on(processes, shape)
    for process, (among, share) in enumerate(zip(peers, shares, strict=True)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert hosts.peers(mesh) == among
        assert hosts.share(mesh) == (share, len(set(shares)))
        assert hosts.before(mesh) == [other for other, its in enumerate(shares) if its < share]
    assert hosts.shards(mesh) == shards


def test_parts_that_are_shared_only_in_part_are_refused():
    with pytest.raises(sharding.MeshError, match=r"lie on 3 processes as .*1: \(0, 1\)"):
        hosts.share(mesh_on([0, 0, 1, 1, 2, 2], (1, 2, 3)))


def test_a_process_alone_has_all_rows():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    batch = {"ids": np.arange(12, dtype=np.int32).reshape(4, 3)}
    assert hosts.share(mesh) == (0, 1)
    assert hosts.exchange(mesh, batch) is batch
    placed = hosts.shard_batch(mesh, batch)["ids"]
    assert placed.addressable_shards[0].data.shape == (1, 3)
    np.testing.assert_array_equal(hosts.local_rows(placed), batch["ids"])
    np.testing.assert_array_equal(hosts.own_rows(mesh, placed), batch["ids"])
    assert hosts.shards(None) == 1


EXCHANGE = """
import json, sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
process = int(sys.argv[1])
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, process)
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.core.errors import ConfigError, Restart
from masksearch_jax.parallel import hosts, sharding

fields = {"ids": np.int32, "loss_mask": np.bool_, "advantages": np.float32}
lengths = ((3, 0, 1), (0, 0, 9))[process]
own = [
    {
        "ids": 100 * process + 10 * i + np.arange(n),
        "loss_mask": np.arange(n) % 2 == process,
        "advantages": np.full(n, process - 0.5),
    }
    for i, n in enumerate(lengths)
]
for tensor in (2, 1):
    found = hosts.exchange_sequences(sharding.make_mesh(MeshConfig(-1, 1, tensor)), own, fields)
    print("FOUND", json.dumps([{k: x.tolist() for k, x in one.items()} for one in found]))

def raising(error):
    raise error

told = [hosts.gather(process), hosts.from_first(lambda: [process])]
for error in (ConfigError("bad"), KeyError("defect"), Restart("again")):
    try:
        hosts.from_first(lambda: raising(error))
    except Exception as raised:
        told.append([type(raised).__name__, str(raised)])
print("TOLD", json.dumps(told))
"""


@pytest.mark.slow
def test_processes_that_share_a_part_have_each_other_s_sequences(repository) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", EXCHANGE]
    how = {"cwd": repository, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, str(process), port], **how) for process in range(2)]
    printed = [process.communicate(timeout=120)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    (first, first_own), (second, second_own) = (
        [json.loads(line.removeprefix("FOUND ")) for line in lines if line.startswith("FOUND ")]
        for lines in printed
    )
    assert [one["ids"] for one in first] == [
        *([0, 1, 2], [], [20]),  # process 0's
        *([], [], [*range(120, 129)]),
    ]
    assert first[0]["loss_mask"] == [True, False, True]
    assert first[5]["loss_mask"] == [i % 2 == 1 for i in range(9)]
    assert first[0]["advantages"] == [-0.5] * 3
    assert first == second == first_own + second_own
    told = [json.loads(lines[-1].removeprefix("TOLD ")) for lines in printed]
    assert told[0][:2] == told[1][:2] == [[0, 1], [0]]
    assert told[0][2:] == [["ConfigError", "bad"], ["KeyError", "'defect'"], ["Restart", "again"]]
    assert told[1][2:] == [
        ["ConfigError", "of process 0: bad"],
        ["UserError", "of process 0: 'defect'"],
        ["Restart", "of process 0: again"],
    ]


def test_means_are_over_the_values_of_all_processes(monkeypatch):
    """Whatever number of them each has; a name without any has no mean."""
    assert hosts.means({"a": [1.0, 4.0], "b": []}) == {"a": 2.5}
    other = json.dumps({"c": [0.5, 1], "a": [7.0, 1], "b": [0.0, 0]})
    monkeypatch.setattr(hosts, "gather_texts", lambda text: [text, other])
    assert hosts.means({"a": [1.0, 4.0], "b": []}) == {"a": 4.0, "c": 0.5}
