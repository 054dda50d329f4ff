"""A run's files in a bucket: paths stay whole, curves grow, what cannot be there is said."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem
from orbax.checkpoint._src.path import gcs_utils

from masksearch_jax import export_hf
from masksearch_jax.core.bucket import StorageError, StorageOutageError, asking
from masksearch_jax.core.config import CheckpointConfig, MeshConfig
from masksearch_jax.core.files import is_bucket, write_json, write_lines, writing
from masksearch_jax.models import hf
from masksearch_jax.models.load import InitError, initial
from masksearch_jax.parallel import sharding
from masksearch_jax.rl.rollout_log import RolloutLog
from masksearch_jax.rl.update import Trained
from masksearch_jax.runtime import cli, goodput, row_log, storage
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


class Folder:
    """TensorFlow's own file system, with a local folder in the place of `gs://`."""

    def __init__(self, root: Path):
        self._root = root
        self.error: Exception | None = None  # raised by all that is asked

    def __getattr__(self, name: str):
        real = getattr(importlib.import_module("tensorflow").io.gfile, name)

        def call(path: object, *args: object, **kwargs: object):
            if self.error:
                raise self.error
            path, *args = (self._inside(x) for x in (path, *args))
            if name == "GFile" and "w" in args[0]:  # a bucket has no folders to make
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            found = real(path, *args, **kwargs)
            is_paths = name == "glob"
            return [x.replace(f"{self._root}/", "gs://") for x in found] if is_paths else found

        return call

    def _inside(self, value: object):
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        return text.replace("gs://", f"{self._root}/") if isinstance(text, str) else text


@pytest.fixture(params=["fsspec", "tensorflow"])
def bucket(request, monkeypatch, tmp_path) -> str:
    """A bucket in memory by fsspec, or a folder by TensorFlow: etils has both ways to one."""
    if request.param == "tensorflow":
        request.getfixturevalue("folder")
        return "gs://a-bucket"
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: Bucket())
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: name)  # what Google says of it
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    assert isinstance(Bucket(), fsspec.AbstractFileSystem)
    return "gs://a-bucket"


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Folder:
    """What TensorFlow asks in the place of all buckets."""
    found = Folder(tmp_path / "buckets")
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: True)
    monkeypatch.setattr(gpath, "_is_zonal_gcs_bucket", lambda name: False)  # what Google says of it
    monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: name)
    monkeypatch.setattr(backend._TfBackend, "gfile", property(lambda self: found))
    return found


def objects(bucket: str) -> list[str]:
    """All that is in a bucket, by its name there."""
    place = storage.path(bucket)
    if not place.exists():
        return []
    found = (f"{folder}/{name}" for folder, _, names in place.walk() for name in names)
    return sorted(path.partition("/a-bucket/")[2] for path in found)


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
    assert objects(bucket) == ["run/metrics.jsonl"]
    assert read_metrics(f"{bucket}/other") == []


def test_a_file_in_a_bucket_is_replaced_at_once(bucket: str) -> None:
    path = storage.path(bucket) / "run" / "eval.json"
    for value in (1, 2):
        write_json(path, {"f1": value})
        assert json.loads(path.read_text()) == {"f1": value}
    assert objects(bucket) == ["run/eval.json"]


def test_a_file_of_nothing_in_a_bucket_is_there(bucket: str) -> None:
    place = storage.path(bucket) / "run"
    assert write_lines(place / "lost.jsonl", ()) == 0
    with writing(place / "none", "wb"):
        pass
    assert [(place / name).read_bytes() for name in ("lost.jsonl", "none")] == [b"", b""]
    assert objects(bucket) == ["run/lost.jsonl", "run/none"]


def test_a_stream_into_a_bucket_is_whole_or_not_there(bucket: str) -> None:
    path = storage.path(bucket) / "run" / "trajectories.jsonl"

    def write(text: str, error: type[BaseException] | None = None) -> None:
        with writing(path) as file:
            file.write(text)
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        write("cut off", KeyboardInterrupt)
    assert objects(bucket) == []
    write("old")
    with pytest.raises(ValueError):
        write("cut off", ValueError)
    assert path.read_text() == "old"
    assert objects(bucket) == ["run/trajectories.jsonl"]


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


def error_of(kind: str, text: str) -> Exception:
    return getattr(importlib.import_module("tensorflow").errors, kind)(None, None, text)


def outage() -> Exception:
    return error_of(
        "UnavailableError", "Error executing an HTTP request:\n\tHTTP response code 503"
    )


ASKED = {
    "exists": lambda path: path.exists(),
    "is_dir": lambda path: path.is_dir(),
    "stat": lambda path: path.stat(),
    "iterdir": lambda path: list(path.iterdir()),
    "glob": lambda path: list(path.glob("*")),
    "walk": lambda path: list(path.walk()),
    "mkdir": lambda path: path.mkdir(),
    "rmdir": lambda path: path.rmdir(),
    "rmtree": lambda path: path.rmtree(),
    "unlink": lambda path: path.unlink(missing_ok=True),
    "rename": lambda path: path.rename(path.parent / "other"),
    "replace": lambda path: path.replace(path.parent / "other"),
    "copy": lambda path: path.copy(path.parent / "other"),
    "read": lambda path: path.read_text(),
    "write": lambda path: path.write_text("x"),
    "append": lambda path: storage.append(path, "x"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_whatever_is_asked_of_a_bucket_that_is_out_one_class_says_so(folder, asked: str) -> None:
    path = storage.path("gs://a-bucket") / "run" / "x"
    folder.error = outage()
    with pytest.raises(StorageOutageError) as told:
        ASKED[asked](path)
    said = "Error executing an HTTP request: HTTP response code 503 (Unavailable)"
    assert str(told.value) == f"gs://a-bucket/run/x: {said}"


@pytest.mark.parametrize(
    ("kind", "text", "status"),
    [
        ("AbortedError", "All 10 retry attempts failed. The last failure: 503", 42),
        ("DeadlineExceededError", "too late", 42),
        ("FailedPreconditionError", "libcurl code 6 meaning 'Could not resolve hostname'", 42),
        ("FailedPreconditionError", "HTTP response code 412", 1),
        ("PermissionDeniedError", "HTTP response code 403", 1),
        ("NotFoundError", "The specified bucket does not exist.", 1),
    ],
)
def test_a_bucket_s_error_ends_a_run_with_one_line(folder, capsys, kind, text, status) -> None:
    folder.error = error_of(kind, text)
    with pytest.raises(SystemExit) as ended:
        cli.call(lambda: write_json("gs://a-bucket/run.json", {}))
    assert ended.value.code == status
    address = r"gs://a-bucket/\.run\.json\.[0-9a-f]{8}\.partial"
    said = rf"error: {address}: {re.escape(text)} \({kind.removesuffix('Error')}\)\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_tensorstore_s_errors_about_a_bucket_are_of_that_class_too() -> None:
    for text, kind in {
        "UNAVAILABLE: CURL error": StorageOutageError,
        "DEADLINE_EXCEEDED: late": StorageOutageError,
        "PERMISSION_DENIED: no right": StorageError,
    }.items():
        with pytest.raises(StorageError) as told, asking("gs://a-bucket/x"):
            raise ValueError(text)
        assert type(told.value) is kind
        assert str(told.value) == f"gs://a-bucket/x: {text} ({text.partition(':')[0]})"
    with pytest.raises(ValueError, match=r"^2 is no step$"), asking("gs://a-bucket/x"):
        raise ValueError("2 is no step")


def test_curves_that_a_bucket_does_not_take_are_written_later(folder, capsys) -> None:
    with MetricWriter("gs://a-bucket/run") as writer:
        writer.write(1, {"loss": 1.0})
        folder.error = outage()
        writer.write(2, {"loss": 2.0})
        folder.error = None
        writer.write(3, {"loss": 3.0})
        assert [row["step"] for row in read_metrics("gs://a-bucket/run")] == [1, 2, 3]
        folder.error = outage()
        writer.write(4, {"loss": 4.0})
        folder.error = None
    assert [row["step"] for row in read_metrics("gs://a-bucket/run")] == [1, 2, 3, 4]
    said = "gs://a-bucket/run/metrics.jsonl: Error executing an HTTP request: HTTP response code"
    warnings = [f"  warning: step {n} is not written yet: {said} 503 (Unavailable)" for n in (2, 4)]
    assert capsys.readouterr().err.splitlines() == warnings


def test_a_run_goes_on_without_the_account_that_a_bucket_does_not_take(folder) -> None:
    clock = goodput.Goodput("gs://a-bucket/run")
    clock.start(0)
    folder.error = outage()
    clock.save(1)
    clock.touch()
    folder.error = None
    clock.end(2)
    assert [row["event"] for row in goodput.read("gs://a-bucket/run")] == ["start", "end"]


def test_rollouts_that_a_bucket_does_not_take_end_no_run(folder, capsys) -> None:
    log = RolloutLog("gs://a-bucket/run", 1.0, 0, str)
    folder.error = outage()
    log.write(1, 0, [], [], Trained(np.zeros((0, 2), np.float32), []))
    said = r"  warning: gs://a-bucket/run/rollouts/\.1\.jsonl\.gz\.[0-9a-f]{8}\.partial: .*"
    assert re.fullmatch(said + r"503 \(Unavailable\)\n", capsys.readouterr().err)


def test_rows_that_a_bucket_does_not_take_are_written_later(folder, monkeypatch, capsys) -> None:
    now = 0.0
    monkeypatch.setattr(row_log.time, "monotonic", lambda: now)
    path = storage.path("gs://a-bucket") / "rows.jsonl"
    with row_log.RowLog(path, lambda row: row["n"]) as log:
        now, folder.error = 61.0, outage()
        log.add({"n": 0})
        assert "rows are not written yet: gs://a-bucket/rows.jsonl" in capsys.readouterr().err
        log.add({"n": 1})
        with pytest.raises(StorageOutageError):
            log.write()
        folder.error = None
    assert path.read_text() == '{"n": 0}\n{"n": 1}\n'


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
