"""HF folders piece by piece: what is read, what is held, and what an interruption leaves."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import hf_io
from configs import common
from masksearch_jax.core.config import CheckpointConfig, MeshConfig, ModelConfig
from masksearch_jax.core.files import BeingWrittenError
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models import hf, hf_files, layout
from masksearch_jax.models.hf_card import Card, model_card
from masksearch_jax.models.hf_config import HfError, to_hf_config
from masksearch_jax.parallel import sharding
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2, random_model
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.checkpoint_files import StoredParams
from masksearch_jax.training.train_state import TrainState
from tests.models.hf_folders import FAMILIES, SHARD, SPLIT, interrupted

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    """Name, dtype and bytes of every tensor of a folder, as safetensors reads them."""
    found = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
    return {f"{name} {array.dtype}": array.tobytes() for name, array in found.items()}


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Bytes of every slice that is read from a file from now on."""
    found: list[int] = []
    read = hf_files.read

    def counted(tensor, index, transposed, out):
        found.append(out.nbytes)
        read(tensor, index, transposed, out)

    monkeypatch.setattr(hf_files, "read", counted)
    return found


# ---- import


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_a_mesh_takes_its_slices_and_each_once(shape, tmp_path: Path, reads) -> None:
    model = random_model(dataclasses.replace(SPLIT, num_layers=3))
    hf.save(model, tmp_path / "model", max_shard_bytes=SHARD)
    mesh = sharding.make_mesh(MeshConfig(*shape[:2], min(shape[2], 2)))
    found = hf.load(tmp_path / "model", FLOAT32, mesh)
    jax.tree.map(np.testing.assert_array_equal, found, model)
    places = layout.parameter_shardings(mesh, model)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, at: x.sharding == at, found, places)))
    assert sum(reads) == sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    halves = max(leaf.nbytes for leaf in jax.tree.leaves(model)) // (shape[1] * shape[2])
    assert max(reads) <= halves


def test_what_is_larger_than_any_tensor_goes_through_the_host_by_layers(
    tmp_path: Path, reads
) -> None:
    model = random_model(dataclasses.replace(TINY_QWEN2, num_layers=8))
    hf.save(model, tmp_path / "model")
    found = hf.load(tmp_path / "model", FLOAT32)
    jax.tree.map(np.testing.assert_array_equal, found, model)
    largest = max(math.prod(t.hf) for t in hf.tensors(model).values()) * 4
    assert model.blocks.up[...].nbytes > largest
    assert max(reads) == largest


def test_a_slice_of_a_half_precision_file_is_cast(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(700, 300)).astype(jnp.bfloat16)
    save_file({"w": values}, tmp_path / "f.safetensors")
    stored = hf_files.Stored(tmp_path / "f.safetensors", "w", (700, 300), "BF16")
    index = (slice(10, 290), slice(None))
    for transposed, expected in ((True, values.T[10:290]), (False, values[10:290])):
        out = np.empty(expected.shape, np.float32)
        hf_files.read(stored, index, transposed, out)
        np.testing.assert_array_equal(out, expected.astype(np.float32))


@pytest.mark.parametrize("name", sorted(common.MODELS))
def test_the_table_has_the_tensors_that_transformers_has_at_true_size(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = to_dataclass(ModelConfig, common.model(name))
    raw = to_hf_config(config, "bfloat16")
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
        )
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    if config.tie_embeddings:  # the same tensor under a second name, which is not stored
        assert expected.pop("lm_head.weight") == expected["model.embed_tokens.weight"]
    assert {k: t.hf for k, t in hf.tensors(hf.abstract(config, FLOAT32)).items()} == expected


# ---- export


def test_an_export_interrupted_at_every_parameter_goes_on_and_is_the_same(tmp_path: Path) -> None:
    model = random_model(SPLIT)
    hf.save(model, tmp_path / "at_once", max_shard_bytes=SHARD)
    partial, known = tmp_path / ".model.partial", {}
    for name in dict.fromkeys(t.row.ours for t in hf.tensors(model).values()):
        with pytest.raises(KeyboardInterrupt):
            interrupted(model, tmp_path / "model", name, KeyboardInterrupt())
        assert not (tmp_path / "model").exists()
        whole = {f.name: f.stat().st_mtime_ns for f in partial.glob("*.safetensors")}
        assert whole.items() >= known.items()  # none written again
        known = whole
    assert len(known) >= 3
    hf.save(model, tmp_path / "model", made_from="run 1", max_shard_bytes=SHARD)
    written = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "model").glob("*.safetensors")}
    assert written.items() > known.items()
    assert sorted(os.listdir(tmp_path)) == ["at_once", "model"]
    for file in (tmp_path / "at_once").iterdir():
        assert file.read_bytes() == (tmp_path / "model" / file.name).read_bytes()
    assert sorted(os.listdir(tmp_path / "model")) == sorted(os.listdir(tmp_path / "at_once"))


@pytest.mark.parametrize(("before", "after"), [(SHARD, 5e9), (5e9, SHARD), (SHARD, 2 * SHARD)])
def test_an_export_is_repeated_with_shards_of_another_size(
    before: float, after: float, tmp_path: Path
) -> None:
    """And with fewer files beside them: what was left is none of the folder's."""
    model = random_model(SPLIT)

    def stop(folder: Path) -> dict:
        (folder / ".model.safetensors.0.partial").write_text("left by a kill")
        (folder / "cut").mkdir()
        raise KeyboardInterrupt

    def save(folder: Path, size: float, **more) -> dict:
        return hf.save(model, folder, made_from="run 1", max_shard_bytes=size, **more)

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "model", before, card="Read me", beside={"run.json": {}}, check=stop)
    assert len(os.listdir(tmp_path / ".model.partial")) > 5
    assert save(tmp_path / "model", after) == save(tmp_path / "at_once", after)
    found = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("model", "at_once")
    ]
    assert found[0] == found[1]


def test_weights_of_another_source_are_not_mixed_in(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(random_model(SPLIT), tmp_path / "model", "blocks.down", KeyboardInterrupt())
    other = random_model(SPLIT, seed=1)
    hf.save(other, tmp_path / "model", made_from="run 2", max_shard_bytes=SHARD)
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "model", FLOAT32), other)


@pytest.mark.parametrize("damage", ["cut", "other header"])
def test_a_shard_that_is_not_whole_is_written_again(damage: str, tmp_path: Path) -> None:
    model = random_model(SPLIT)
    with pytest.raises(KeyboardInterrupt):
        interrupted(model, tmp_path / "model", "blocks.down", KeyboardInterrupt())
    shard = sorted((tmp_path / ".model.partial").glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] if damage == "cut" else data[:9] + b"X" + data[10:])
    hf.save(model, tmp_path / "model", made_from="run 1", max_shard_bytes=SHARD)
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "model", FLOAT32), model)


KILLED = """
import os, signal, sys
import tests.conftest
from masksearch_jax.testing.models import random_model
from tests.models.hf_folders import SPLIT, interrupted

class Kill(BaseException):
    def __init__(self): os.kill(os.getpid(), signal.SIGKILL)

class Late:
    def __eq__(self, name): return name == "blocks.up" and Kill()

interrupted(random_model(SPLIT), sys.argv[1], Late(), KeyboardInterrupt())
"""


@pytest.mark.slow
def test_an_export_killed_while_it_writes_a_shard_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, timeout=240, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    partial = tmp_path / ".model.partial"
    half = [f.name for f in partial.glob("*.partial")]
    assert len(half) == 1
    whole = {f.name: f.stat().st_mtime_ns for f in partial.glob("*.safetensors")}
    assert len(whole) >= 2
    assert half[0].split(".")[1] + ".safetensors" not in whole
    model = random_model(SPLIT)
    hf.save(model, tmp_path / "model", made_from="run 1", max_shard_bytes=SHARD)
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "model", FLOAT32), model)
    written = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "model").iterdir()}
    assert written.items() > whole.items()
    assert not [name for name in written if "partial" in name or name.startswith(".")]


def test_a_write_that_fails_keeps_whole_shards_for_the_next(
    tmp_path: Path,
    file_size_limit,
) -> None:
    model = random_model(SPLIT)
    sizes = [s.size for s in hf_files.shards(shapes(model), np.dtype("float32"), SHARD)]
    largest = sizes.index(max(sizes))
    file_size_limit(max(sizes) - 1)
    with pytest.raises(OSError, match=rf"model-{largest + 1:05d}-of-.*safetensors"):
        hf.save(model, tmp_path / "model", made_from="run 1", max_shard_bytes=SHARD)
    file_size_limit(None)
    assert len([*(tmp_path / ".model.partial").glob("*.safetensors*")]) == largest
    hf.save(model, tmp_path / "model", made_from="run 1", max_shard_bytes=SHARD)
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "model", FLOAT32), model)


def shapes(model) -> dict[str, tuple[int, ...]]:
    return {name: t.hf for name, t in hf.tensors(model).items()}


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path: Path) -> None:
    vast = hf.abstract(dataclasses.replace(TINY_QWEN2, vocab_size=10**12), FLOAT32)
    with pytest.raises(HfError, match=r"need 128,000,0.* bytes more, but the disk of .* has .* fr"):
        hf.save(vast, tmp_path / "model", read=lambda name: pytest.fail(name))
    assert os.listdir(tmp_path) == []


def test_two_exports_to_one_folder_do_not_meet(tmp_path: Path) -> None:
    model = random_model(SPLIT)

    def read(name: str) -> jax.Array:
        hf.save(model, tmp_path / "model", made_from="second")

    with pytest.raises(BeingWrittenError, match="is being written by another process"):
        hf.save(model, tmp_path / "model", read=read, made_from="first")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_read_by_parameter_in_the_dtype_that_it_is_stored_in(
    dtype: str, tmp_path: Path
) -> None:
    compute = dataclasses.replace(FLOAT32, param_dtype=dtype)
    model = random_model(SPLIT, compute=compute)
    with Checkpointer(tmp_path, CheckpointConfig(every=1, keep=2), SPLIT) as checkpointer:
        for step in (1, 2):
            scaled = jax.tree.map(lambda leaf, by=step: leaf * by, model)
            checkpointer.save(step, TrainState(jnp.int32(step), scaled, ()), {})
    mesh = sharding.make_mesh(MeshConfig(1, -1, 1))
    like = hf.abstract(SPLIT, FLOAT32)
    places = layout.parameter_shardings(mesh, like)
    placed = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), like, places
    )
    sources = set()
    for step in (1, 2):
        with StoredParams(tmp_path, placed, SPLIT, step) as stored:
            found = stored.read("blocks.up")
            sources.add(stored.made_from)
            assert (stored.step, stored.dtype) == (step, dtype)
        assert tuple(found.sharding.spec) == (None, ("fsdp", "context"), "tensor")
        assert len(found.addressable_shards) == 8
        expected = model.blocks.up[...].astype(jnp.float32) * step
        np.testing.assert_array_equal(found, expected)
    assert len(sources) == 2


def test_the_card_says_what_is_known_and_asks_for_the_licence() -> None:
    card = Card(base_model="Qwen/Qwen2.5-7B", training="RAMP: SFT", dataset="a dump", license="")
    text = model_card(card, FAMILIES["qwen3"], "agent", 4000, 12345, "bfloat16")
    front = text.split("---\n")[1]
    assert 'base_model: "Qwen/Qwen2.5-7B"\n' in front
    assert "license:" not in front
    assert "| licence | to be filled in by whoever publishes it" in text
    assert "| updates | 4,000 |" in text
    assert "qwen3, 12,345 parameters, 2 layers of 32, bfloat16" in text
    assert 'from_pretrained("agent", dtype="auto")' in text
    bare = model_card(Card(license="apache-2.0"), TINY_QWEN2, "agent", None, 1, "float32")
    assert 'license: "apache-2.0"\n' in bare
    assert "| updates | not recorded |" in bare
    assert "base_model:" not in bare
    for said in ("A search agent: ", "## Its words", "search-agent"):  # nothing says it is one
        assert said in text
        assert said not in bare


# ---- several processes, memory

TOGETHER = """
import json, sys
process, port, given, out = sys.argv[1:]
import tests.conftest, jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.models import hf, hf_files
from masksearch_jax.parallel import sharding
from masksearch_jax.testing.models import FLOAT32
from tests.models.hf_folders import SHARD
found, read = [], hf_files.read
hf_files.read = lambda *a: found.append(a[-1].nbytes) or read(*a)
model = hf.load(given, FLOAT32, sharding.make_mesh(MeshConfig(1, 2, 2)))
held = {(n, str(s.index)): s.data.nbytes for n, x in enumerate(jax.tree.leaves(model))
        for s in x.addressable_shards}
print(json.dumps([sum(found), sum(held.values()), hf.save(model, out, max_shard_bytes=SHARD)]))
"""


@pytest.mark.slow
def test_processes_read_what_they_hold_and_the_first_writes(tmp_path: Path) -> None:
    model = random_model(SPLIT)
    counts = hf.save(model, tmp_path / "given", max_shard_bytes=SHARD)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    given, pipe = str(tmp_path / "given"), subprocess.PIPE
    commands = [
        [sys.executable, "-c", TOGETHER, str(p), port, given, str(tmp_path / f"out{p}")]
        for p in range(2)
    ]
    started = [subprocess.Popen(c, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) for c in commands]
    try:
        ends = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode for p in started] == [0, 0], ends[0][1][-2000:] + ends[1][1][-2000:]
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    for out, _ in ends:
        read, held, written = json.loads(out.splitlines()[-1])
        assert read == held < 0.6 * whole
        assert written == counts
    assert contents(tmp_path / "out0") == contents(tmp_path / "given")
    assert sorted(os.listdir(tmp_path)) == ["given", "out0"]


def test_a_peak_of_memory_is_not_the_parents() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    ballast = bytearray(b"1") * 300_000_000
    command = [sys.executable, "-c", "from benchmarks import memory; print(memory.peak())"]
    peak = int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    assert 2**20 < peak < len(ballast)


@pytest.mark.slow
def test_memory_stays_within_its_bounds() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    found = hf_io.measure(300, repeats=1, sides=("ours",))
    assert found["sizes"]["shards"] >= 3
    assert {row["job"]: row["of_bound"] <= 1 for row in found["rows"]} == {
        "import": True,
        "export": True,
    }, found


def test_a_folder_that_is_not_a_models_is_left_alone(tmp_path: Path) -> None:
    shutil.copy(__file__, tmp_path / "mine.py")
    with pytest.raises(HfError, match="is no HF model folder"):
        hf.save(random_model(TINY_QWEN2), tmp_path, made_from="run 1")
    assert os.listdir(tmp_path) == ["mine.py"]
