"""What TensorBoard and Weights & Biases are given, read back by their own readers."""

import json
import struct
from collections.abc import Iterator

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.watch_config import LogConfig
from masksearch_jax.runtime import metric_services
from masksearch_jax.runtime.metric_writer import MetricWriter, read_metrics


def test_services_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"config\.log\.to has 'tensorbord'; .*tensorboard\?"):
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
