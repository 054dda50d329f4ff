"""What TensorBoard and Weights & Biases are given, read back by their own readers."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.watch_config import LogConfig
from masksearch_jax.runtime import metric_services
from masksearch_jax.runtime.metric_writer import MetricWriter, read_metrics
from tests.runtime import own_loggers

OWN = "tests.runtime.own_loggers"


def test_services_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"config\.log\.to has 'tensorbord', .*tensorboard\?"):
        metric_services.check_log(LogConfig(("jsonl", "tensorbord")))
    with pytest.raises(ConfigError, match=r"config\.log\.to is wandb; it must have jsonl"):
        metric_services.check_log(LogConfig(("wandb",)))


def test_a_service_that_is_not_installed_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(metric_services.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs wandb: pip install 'masksearch_jax\[wandb\]'"):
        MetricWriter(tmp_path, 0, LogConfig(("jsonl", "wandb")))
    assert not list(tmp_path.iterdir())


def test_other_processes_write_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with MetricWriter(tmp_path / "run", 0, LogConfig(("jsonl", "tensorboard", "wandb"))) as writer:
        writer.write(1, {"loss": 0.5})
    assert not list(tmp_path.iterdir())


# ---- loggers of users


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "examples.my_loger:Csv",
            r"there is no module 'examples.my_loger'; did you mean my_logger",
        ),
        ("examples.my_logger:CSV", r"module 'examples.my_logger' has no 'CSV'; choices: Csv$"),
        ("examples.my_logger", r"not jsonl, tensorboard, wandb or package.module:Class"),
        (f"{OWN}:FACTS", r"config\.log\.to is '.*', which is dict, not a class"),
        (f"{OWN}:NoClose", r"config\.log\.to has '.*NoClose', which has no method close\(\)"),
        (f"{OWN}:WantsStep", r"cannot be called as write\(self, row\).*write\(self, step, row\)"),
        (f"{OWN}:WantsMore", r"cannot be called as WantsMore\(folder, rows\)"),
    ],
)
def test_what_is_no_logger_is_refused_with_the_reason(name, said):
    with pytest.raises(ConfigError, match=said):
        metric_services.check_log(LogConfig(("jsonl", name)))


def test_a_logger_that_cannot_be_made_ends_the_run_before_it_begins(tmp_path):
    log = LogConfig(("jsonl", f"{OWN}:Unmade"))
    said = r"logger '.*:Unmade' of config\.log\.to cannot be made: PermissionError: no key for run$"
    with pytest.raises(ConfigError, match=said):
        MetricWriter(tmp_path / "run", 0, log)


def test_what_a_logger_raises_is_told_and_ends_no_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(own_loggers, "taken", [])
    with MetricWriter(tmp_path, 0, LogConfig(("jsonl", f"{OWN}:Unsteady"))) as writer:
        for step in range(1, 9):
            writer.write(step, {"loss": 0.5})
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows] == [(step, 0.5) for step in range(1, 9)]
    assert own_loggers.taken == [rows[2], rows[5]]
    begin = f"  warning: the logger '{OWN}:Unsteady' of config.log.to"
    assert capsys.readouterr().err.splitlines() == [
        f"{begin} did not take step 1: OSError: no route to host",
        f"{begin} did not take 2 steps; it takes step 3",
        f"{begin} did not take step 4: OSError: no route to host",
        f"{begin} did not take 2 steps; it takes step 6",
        f"{begin} did not take step 7: OSError: no route to host",
        f"{begin} did not take the last 2 steps",
        f"{begin} did not close: OSError: still no route",
    ]


def log_records(data: bytes, header: int = 7, block: int = 32768) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, as Weights & Biases writes it offline."""
    at, record = header, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # padding
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


@pytest.mark.slow  # starts the service of Weights & Biases
def test_weights_and_biases_has_the_rows_offline(monkeypatch, tmp_path):
    import wandb
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    log = LogConfig(("jsonl", "wandb"))
    with MetricWriter(tmp_path, 0, log) as writer:
        writer.write(1, {"loss": 0.5, "note": "x", "bad": float("nan")})
        writer.write(2, {"loss": 0.25})
    wandb.teardown()  # its service ends with the process; a run is resumed by another one
    name = (tmp_path / "wandb" / "run_id").read_text()
    with MetricWriter(tmp_path, 2, log) as writer:
        writer.write(3, {"loss": 0.125})
    wandb.teardown()
    assert (tmp_path / "wandb" / "run_id").read_text() == name
    found, ids = [], set()
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            items = {x.key or ".".join(x.nested_key): x for x in record.history.item}
            if "loss" in items:
                wanted = ("step", "loss", "note", "bad")
                found.append({k: json.loads(items[k].value_json) for k in wanted if k in items})
    assert found == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
        {"step": 3, "loss": 0.125},
    ]
    assert ids == {name}
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


# What becomes of a run's rows, in a process of its own: wandb keeps what it found at its start.
WRITES = """
import sys
from pathlib import Path

import psutil

from masksearch_jax.core.watch_config import LogConfig
from masksearch_jax.runtime import cli
from masksearch_jax.runtime.metric_writer import MetricWriter

folder, does = Path(sys.argv[1]), sys.argv[2]

def work():
    with MetricWriter(folder, 0, LogConfig(("jsonl", "wandb"))) as writer:
        writer.write(1, {"loss": 0.5})
        if does == "kill":
            services = psutil.Process().children(recursive=True)
            for service in services:
                service.kill()
            psutil.wait_procs(services)
        writer.write(2, {"loss": 0.25})
        writer.write(3, {"loss": 0.125})
    print("saved", flush=True)

cli.call(work)
"""


def rows_written(tmp_path, does: str, **environment: str) -> subprocess.CompletedProcess:
    (tmp_path / "run.py").write_text(WRITES)
    told = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    home = {"HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}  # no key in a .netrc
    return subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "run"), does],
        env=told | home | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow  # starts the service of Weights & Biases
@pytest.mark.parametrize("does", ["kill", "outage"])
def test_a_loss_of_weights_and_biases_is_told_and_ends_no_run(does, tmp_path):
    dead = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    dead["WANDB_INIT_TIMEOUT"] = "2"
    given = {"WANDB_MODE": "offline"} if does == "kill" else dead
    done = rows_written(tmp_path, does, **given)
    assert (done.returncode, done.stdout.splitlines()[:1]) == (0, ["saved"]), done.stderr
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3]
    begin = "  warning: Weights & Biases "
    told = [x.removeprefix(begin) for x in done.stderr.splitlines() if x.startswith(begin)]
    if does == "outage":
        (said,) = told
        assert said.startswith("lacks the steps of this start: CommError: ")
    else:
        first, last, closed = told
        assert first.startswith("did not take step 2: ")
        assert last == "did not take the last 2 steps"
        assert closed.startswith("did not close: ")


@pytest.mark.slow  # imports Weights & Biases
def test_an_api_key_that_nobody_gave_is_told_at_the_start(tmp_path):
    done = rows_written(tmp_path, "write")
    assert (done.returncode, done.stdout) == (2, "")
    said = "error: config.log.to has 'wandb', which does not start: No API key configured."
    assert done.stderr.splitlines()[-1].startswith(said)
    assert "WANDB_MODE=offline" in done.stderr.splitlines()[-1]
