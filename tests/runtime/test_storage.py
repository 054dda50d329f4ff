"""A run's files in a bucket: paths stay whole, curves grow, what cannot be there is said."""

from __future__ import annotations

import json
import os
from typing import ClassVar

import fsspec
import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem
from orbax.checkpoint._src.path import gcs_utils

from masksearch_jax import export_hf
from masksearch_jax.core.config import CheckpointConfig, MeshConfig
from masksearch_jax.core.files import is_bucket, write_json, writing
from masksearch_jax.models import hf
from masksearch_jax.models.load import InitError, initial
from masksearch_jax.parallel import sharding
from masksearch_jax.runtime import row_log, storage
from masksearch_jax.runtime.metric_writer import MetricWriter, read_metrics
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2, random_model
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.checkpoint_files import read_model


class Bucket(MemoryFileSystem):
    """fsspec's file system in memory under the names of a bucket; objects cannot be appended to."""

    protocol = ("gcs", "gs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("gs://"))

    def _open(self, path: str, mode: str = "rb", **kwargs: object):
        assert "a" not in mode, "objects of a bucket cannot grow"
        return super()._open(path, mode, **kwargs)


@pytest.fixture
def bucket(monkeypatch) -> str:
    """A bucket in memory, with etils' own paths in front of it (not TensorFlow's)."""
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: Bucket())
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: name)  # what Google says of it
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    assert isinstance(Bucket(), fsspec.AbstractFileSystem)
    return "gs://a-bucket"


def test_a_path_in_a_bucket_stays_one(tmp_path) -> None:
    for text in ("gs://a-bucket/runs/x", epath.Path("gs://a-bucket/runs/x")):
        assert str(storage.path(text) / "checkpoints") == "gs://a-bucket/runs/x/checkpoints"
    assert is_bucket(storage.path("gs://a-bucket"))
    assert not is_bucket(storage.path(tmp_path))


def test_curves_in_a_bucket_are_those_on_disk(bucket: str, tmp_path) -> None:
    for folder in (f"{bucket}/run", str(tmp_path / "run")):
        writer = MetricWriter(folder)
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1 / step})
        MetricWriter(folder, 2).write(3, {"loss": 0.5})
        rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.5}]
        found = read_metrics(folder)
        assert [{k: v for k, v in row.items() if k != "wall_time"} for row in found] == rows
    assert sorted(Bucket.store) == ["/a-bucket/run/metrics.jsonl"]
    assert read_metrics(f"{bucket}/other") == []


def test_a_file_in_a_bucket_is_replaced_at_once(bucket: str) -> None:
    path = storage.path(bucket) / "run" / "eval.json"
    for value in (1, 2):
        write_json(path, {"f1": value})
        assert json.loads(path.read_text()) == {"f1": value}
    assert sorted(Bucket.store) == ["/a-bucket/run/eval.json"]


def test_a_stream_into_a_bucket_is_whole_or_not_there(bucket: str) -> None:
    path = storage.path(bucket) / "run" / "trajectories.jsonl"

    def write(text: str, error: type[BaseException] | None = None) -> None:
        with writing(path) as file:
            file.write(text)
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        write("cut off", KeyboardInterrupt)
    assert sorted(Bucket.store) == []
    write("old")
    with pytest.raises(ValueError):
        write("cut off", ValueError)
    assert path.read_text() == "old"
    assert sorted(Bucket.store) == ["/a-bucket/run/trajectories.jsonl"]


def test_rows_in_a_bucket_are_written_together(bucket: str, monkeypatch) -> None:
    """Each object is written whole: once a minute, and at the end."""
    path = storage.path(bucket) / "run" / "rows.jsonl"
    now = 0.0
    monkeypatch.setattr(row_log.time, "monotonic", lambda: now)
    with row_log.RowLog(path, lambda row: row["n"]) as log:
        log.add({"n": 0})
        assert not path.exists()
        now = 61.0
        log.add({"n": 1})
        log.add({"n": 2})
        assert len(path.read_text().splitlines()) == 2
    assert len(path.read_text().splitlines()) == 3
    path.write_text(path.read_text() + '{"n": 3')
    assert len(row_log.RowLog(path, lambda row: row["n"])) == 3
    assert path.read_text() == '{"n": 0}\n{"n": 1}\n{"n": 2}\n'


def test_weights_in_hf_form_are_not_read_from_a_bucket(bucket: str, tmp_path) -> None:
    hf.save(random_model(TINY_QWEN2), tmp_path / "model")
    where = storage.path(bucket) / "model"
    for file in (tmp_path / "model").iterdir():
        (where / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InitError, match=r"an HF folder in a bucket: give a local path.*gcsfuse"):
        initial(str(where), TINY_QWEN2, FLOAT32, sharding.make_mesh(MeshConfig(-1, 1, 1)), 0)


def test_weights_in_hf_form_are_not_written_to_a_bucket(tmp_path) -> None:
    with pytest.raises(export_hf.ExportError, match="gs://a-bucket/hf is no local folder"):
        export_hf.export(random_model(TINY_QWEN2), "gs://a-bucket/hf", tmp_path)


def test_a_bucket_without_checkpoints_says_so(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint folder gs://a-bucket/absent"):
        read_model(f"{bucket}/absent")
    with Checkpointer(
        f"{bucket}/run", CheckpointConfig(every=1, keep=1), TINY_QWEN2
    ) as checkpointer:
        assert str(checkpointer.folder) == "gs://a-bucket/run"
        assert checkpointer.latest_step() is None


def test_a_local_file_s_time_has_fractions_of_a_second(tmp_path):
    file = storage.path(tmp_path) / "file"
    file.write_text("x")
    os.utime(file, (1.25, 1.75))
    assert storage.modified(file) == 1.75
