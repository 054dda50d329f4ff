"""Checkpoints: resume is bitwise, a torn or foreign one is never taken for whole."""

import dataclasses
import math
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import restore
from masksearch_jax.core.config import CheckpointConfig, OptimConfig, RopeScaling
from masksearch_jax.core.errors import Restart
from masksearch_jax.testing.models import TINY_QWEN2
from masksearch_jax.training import checkpoint_files
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.checkpoint_files import CheckpointError, load_params
from masksearch_jax.training.train_state import (
    TrainState,
    init_state,
    make_optimizer,
    make_train_step,
)

CONFIG = CheckpointConfig(every=2, keep=2)
MODEL = dataclasses.replace(
    TINY_QWEN2, family="llama", rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192)
)
OPTIM = OptimConfig(0.1, "cosine", 2, 0.1, 0.9, 0.95, 1e-8, 0.1, 1.0, 1)


def make_state(seed: int = 0, width: int = 6) -> TrainState:
    key = jax.random.key(seed)
    params = {"kernel": jax.random.normal(key, (4, width)), "bias": jnp.zeros(width)}
    return init_state(params, make_optimizer(OPTIM, 8))


def loss_fn(params, batch):
    error = ((batch @ params["kernel"] + params["bias"][None]) ** 2).sum(axis=-1)
    return error.sum(), jnp.float32(error.size), {}


def train(folder, start: int, stop: int) -> list[float]:
    """Losses of updates start..stop-1 from the checkpoint at start; data follow the position."""
    state, losses = make_state(), []
    step = make_train_step(loss_fn, make_optimizer(OPTIM, 8))
    with Checkpointer(folder, CONFIG, MODEL) as checkpointer:
        if start:
            state, extra = checkpointer.restore(state)
            assert extra == {"position": start, "stage": ["ramp_k1"]}
        for position in range(int(state.step), stop):
            batch = np.random.default_rng(position).normal(size=(3, 4)).astype(np.float32)
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            if checkpointer.is_due(position + 1):
                extra = {"position": position + 1, "stage": ["ramp_k1"]}
                checkpointer.save(position + 1, state, extra)
    return losses


def assert_equal(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_resume_is_bitwise(tmp_path):
    whole = train(tmp_path / "whole", 0, 8)
    first = train(tmp_path / "cut", 0, 5)  # the last save is at 4
    second = train(tmp_path / "cut", 4, 8)
    assert first[:4] + second == whole
    states = []
    for name in ("whole", "cut"):
        with Checkpointer(tmp_path / name, CONFIG, MODEL) as checkpointer:
            states.append(checkpointer.restore(make_state(1))[0])
    assert_equal(*states)


def test_the_newest_steps_are_kept_and_any_kept_one_restores(tmp_path):
    states = {step: make_state(step) for step in (1, 2, 3)}
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        assert checkpointer.latest_step() is None
        for step, state in states.items():
            checkpointer.save(step, state, {"step": step})
        checkpointer.save(3, states[1], {})  # the same step again changes nothing
        assert checkpointer.latest_step() == 3
        assert_equal(checkpointer.restore(make_state())[0], states[3])
        abstract = jax.eval_shape(make_state)
        state, extra = checkpointer.restore(abstract, step=2)
        assert_equal(state, states[2])
        assert extra == {"step": 2}
        with pytest.raises(FileNotFoundError, match=r"does not hold step 1; it holds .*\[2, 3\]"):
            checkpointer.restore(make_state(), step=1)


def test_later_steps_are_dropped_and_what_none_comes_before_is_kept(tmp_path):
    with Checkpointer(tmp_path, dataclasses.replace(CONFIG, keep=9), MODEL) as checkpointer:
        assert checkpointer.drop_after(3) == 0  # nothing was saved yet: the start
        for step in (4, 6, 8):
            checkpointer.save(step, make_state(step), {})
        assert checkpointer.drop_after(3) is None
        assert checkpointer.latest_step() == 8
        assert checkpointer.drop_after(7) == 6
        assert checkpointer.latest_step() == 6
        assert checkpointer.drop_after(0) == 0
        assert checkpointer.latest_step() is None


class Slow(dict):
    """Takes its time to become JSON."""

    def items(self):
        time.sleep(0.3)
        return super().items()


def test_what_changes_after_a_save_is_not_in_it(tmp_path):
    extra = Slow(known={"first": [1, 2]})
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        checkpointer.save(1, make_state(), extra)
        extra["known"]["first"][0] = 7
        extra["known"] |= {"second": [3, 4]}
        checkpointer.wait()
        assert checkpointer.restore(make_state())[1] == {"known": {"first": [1, 2]}}


def test_weights_alone_can_be_read(tmp_path):
    state = make_state(5)
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        checkpointer.save(1, state, {})
    like = jax.eval_shape(lambda: make_state().params)
    assert_equal(load_params(tmp_path, like, MODEL), state.params)
    low = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), like)
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
    assert_equal(load_params(tmp_path, low, MODEL), expected)


def test_nothing_to_restore_says_where(tmp_path):
    with (
        Checkpointer(tmp_path / "empty", CONFIG, MODEL) as checkpointer,
        pytest.raises(FileNotFoundError, match=r"empty does not hold a whole .*; it holds none$"),
    ):
        checkpointer.restore(make_state())
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"none; did you mean .*run/checkpoints\?"):
        load_params(tmp_path / "run", {}, MODEL)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint folder .*absent"):
        load_params(tmp_path / "absent", {}, MODEL)
    assert not (tmp_path / "absent").exists()


def test_another_models_checkpoint_is_refused_by_field(tmp_path):
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        checkpointer.save(1, make_state(), {})
    other = dataclasses.replace(MODEL, num_layers=3, rope_scaling=None)
    with (
        Checkpointer(tmp_path, CONFIG, other) as checkpointer,
        pytest.raises(CheckpointError, match=r"num_layers: 2 stored, 3 asked for") as error,
    ):
        checkpointer.restore(make_state())
    assert "rope_scaling" in str(error.value)
    assert "vocab_size" not in str(error.value)


def test_other_shapes_are_refused_by_name(tmp_path):
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        checkpointer.save(1, make_state(), {})
        with pytest.raises(CheckpointError, match=r"kernel: \[4, 6\] stored, \[4, 7\] asked for"):
            checkpointer.restore(make_state(width=7))
        state = make_state()
        extended = dataclasses.replace(state, params=state.params | {"more": jnp.ones(1)})
        with pytest.raises(CheckpointError, match=r"more: None stored, \[1\] asked for"):
            checkpointer.restore(extended)


def on(shape: tuple[int, int], state: TrainState) -> TrainState:
    """The state on a mesh of this shape."""
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    spec = {1: PartitionSpec("fsdp"), 2: PartitionSpec("data", "fsdp")}
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, spec.get(x.ndim, PartitionSpec()))),
        state,
    )


def test_a_state_moves_to_another_mesh(tmp_path):
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, has {jax.device_count()}")

    state = make_state(3, width=8)
    like = on((4, 2), make_state(0, width=8))
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        checkpointer.save(1, on((2, 4), state), {})
        restored, _ = checkpointer.restore(like)
    assert_equal(restored, state)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert x.sharding == y.sharding


@pytest.mark.parametrize("within", ["save", "wait_until_finished", "close"])
def test_ctrl_c_within_orbax_waits_for_it(tmp_path, capfd, monkeypatch, within):
    """Cut off in the middle, orbax would leave threads and event loops half made, and log it."""
    state = make_state(2)
    checkpointer = Checkpointer(tmp_path, CONFIG, MODEL)
    real = getattr(ocp.CheckpointManager, within)

    def interrupted(self, *args, **kwargs):
        monkeypatch.setattr(ocp.CheckpointManager, within, real)
        signal.raise_signal(signal.SIGINT)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, within, interrupted)

    def save():
        with checkpointer:
            checkpointer.save(1, state, {"position": 3})
            checkpointer.wait()

    with pytest.raises(KeyboardInterrupt):
        save()
    assert capfd.readouterr() == ("", "")
    with Checkpointer(tmp_path, CONFIG, MODEL) as again:
        restored, extra = again.restore(make_state(0))
    assert_equal(restored, state)
    assert extra == {"position": 3}


def test_arrays_lie_in_chunks_that_other_meshes_read_in_part(tmp_path, monkeypatch):
    """Of the largest array a device may hold all: its chunks are small all the same."""
    monkeypatch.setattr(checkpoint_files, "CHUNK", 2**12)
    state = make_state(2, width=4096)
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        checkpointer.save(1, state, {})
        restored, _ = checkpointer.restore(on((2, 4), make_state(0, width=4096)))
    assert_equal(restored, state)
    for item in ("params", "optimizer"):
        tree = ocp.PyTreeCheckpointHandler().metadata(tmp_path / "1" / item).tree
        sizes = [math.prod(x.storage.chunk_shape) * x.dtype.itemsize for x in tree.values()]
        assert 2**11 <= max(sizes) <= 2**12


@pytest.mark.slow
def test_a_restore_stays_within_its_bound():
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    found = restore.measure(300, repeats=1, meshes=("1x2x4",))
    assert {row["job"]: row["of_bound"] <= 1 for row in found["rows"]} == {
        "whole": True,
        "parameters": True,
    }, found


# A callback of tensorstore's may come when orbax has closed its event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_write_is_told_and_leaves_the_last_good_one(tmp_path, capsys):
    good = make_state(1)
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        checkpointer.save(1, good, {"good": True})
        checkpointer.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # every larger write fails
        try:
            checkpointer.save(2, make_state(2), {})
            checkpointer.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        message = r"step 2 could not be written.* step 1, untouched"
        assert re.search(message, str(checkpointer.failed), re.DOTALL)
        assert re.search(r"warning: " + message, capsys.readouterr().err, re.DOTALL)
        assert checkpointer.latest_step() == 1
        checkpointer.save(3, make_state(3), {})  # the disk has room again
        checkpointer.wait()
        assert checkpointer.failed is None
        assert checkpointer.latest_step() == 3
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
        assert checkpointer.latest_step() == 3
        state, extra = checkpointer.restore(make_state(), step=1)
        assert extra == {"good": True}
        assert_equal(state, good)


@pytest.mark.parametrize(
    ("text", "restarts"), [("UNAVAILABLE: 503", True), ("PERMISSION_DENIED: 403", False)]
)
def test_what_a_bucket_did_not_take_in_passing_starts_a_run_again(
    tmp_path, monkeypatch, text, restarts
):
    """TensorStore raises a ValueError; no bucket is here to raise one."""
    with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:

        def save(*args, **kwargs):
            raise ValueError(text)

        monkeypatch.setattr(checkpointer._manager, "save", save)
        checkpointer.save(1, make_state(1), {})
        assert isinstance(checkpointer.failed, CheckpointError)
        assert isinstance(checkpointer.failed, Restart) == restarts


def test_a_full_disk_is_seen_before_writing_and_the_run_goes_on(small_disk):
    def state(step: int, size: int) -> TrainState:
        kernel = jax.random.normal(jax.random.key(step), (size, 400))  # cannot be compressed
        return TrainState(jnp.int32(step), {"kernel": kernel}, ())

    with Checkpointer(small_disk, CONFIG, MODEL) as checkpointer:
        checkpointer.save(1, state(1, 400), {})
        checkpointer.save(2, state(2, 400), {})
        message = r"step 2 .* needs 640,0\d\d bytes, [\d,]+ are free there; .* step 1, untouched"
        assert re.search(message, str(checkpointer.failed))
        assert not list(small_disk.glob("2*"))
        assert_equal(checkpointer.restore(state(0, 400))[0], state(1, 400))
        checkpointer.save(3, state(3, 40), {})
        checkpointer.wait()
        assert checkpointer.failed is None
    with Checkpointer(small_disk, CONFIG, MODEL) as checkpointer:
        assert checkpointer.latest_step() == 3


@pytest.mark.parametrize("folder", ["/proc/no", "file/checkpoints"])
def test_a_place_that_cannot_be_written_is_told_at_the_start(tmp_path, folder):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / folder)
    with pytest.raises(CheckpointError, match=rf"cannot be written to {folder} .*the right to"):
        Checkpointer(tmp_path / "unused", dataclasses.replace(CONFIG, folder=folder), MODEL)
    assert not (tmp_path / "unused").exists()


@pytest.fixture
def of_format(tmp_path):
    """Writes step 1 as a version of another format would have; its folder."""

    def written(number: int):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_files, "FORMAT", number)
            with Checkpointer(tmp_path, CONFIG, MODEL) as checkpointer:
                checkpointer.save(1, make_state(), {})
        return tmp_path

    return written


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (1, "a newer format, {}; this version of masksearch_jax reads format {}: use the one that"),
        (-1, "an older format, {}; .* reads format {}: .* start another run .* by config.init"),
    ],
)
def test_a_run_goes_on_from_its_own_format_alone(of_format, step, said):
    number = checkpoint_files.FORMAT + step
    folder = of_format(number)
    message = f"step 1 is of {said.format(number, checkpoint_files.FORMAT)}"
    with (
        Checkpointer(folder, CONFIG, MODEL) as checkpointer,
        pytest.raises(CheckpointError, match=message),
    ):
        checkpointer.restore(make_state())


def test_weights_are_read_as_long_as_they_lie_alike(of_format):
    params = make_state().params
    folder = of_format(checkpoint_files.WEIGHTS_FORMAT)
    assert_equal(checkpoint_files.load_params(folder, params, MODEL), params)


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_retention_keeps_the_newest_every_nth_and_the_best(tmp_path, mode, sign):
    """A value that is not finite is never the best, nor does it hide the best."""
    config = CheckpointConfig(1, keep=2, keep_every=4, best_metric="loss", best_mode=mode)
    losses = [5.0, 4.0, 1.0, 3.0, math.nan, 6.0, 7.0, -math.inf, 9.0, math.nan, 9.0, 9.0]

    def save(first: int, last: int) -> None:  # the best is known after a restart too
        with Checkpointer(tmp_path, config, MODEL) as checkpointer:
            for step in range(first, last + 1):
                checkpointer.save(step, make_state(step), {}, {"loss": sign * losses[step - 1]})

    save(1, 6)
    save(7, 12)
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [3, 4, 8, 11, 12]
    like = jax.eval_shape(lambda: make_state().params)
    assert_equal(load_params(tmp_path / "3", like, MODEL), make_state(3).params)
    with (
        Checkpointer(tmp_path, config, MODEL) as checkpointer,
        pytest.raises(
            CheckpointError, match=r"best_metric is 'loss', which .* did you mean losses"
        ),
    ):
        checkpointer.save(13, make_state(13), {}, {"losses": 1.0})


def test_a_step_that_is_given_its_metrics_later_may_be_the_best(tmp_path):
    config = CheckpointConfig(1, keep=1, best_metric="loss", best_mode="min")
    with Checkpointer(tmp_path, config, MODEL) as checkpointer:
        checkpointer.save(1, make_state(1), {}, {"loss": 2.0})
        checkpointer.save(2, make_state(2), {}, None)
    with Checkpointer(tmp_path, config, MODEL) as checkpointer:
        checkpointer.add_metrics(2, {"loss": 1.0, "lr": 3.0})
        checkpointer.save(3, make_state(3), {}, {"loss": 4.0})
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [2, 3]


WRITER = """
    import sys
    import jax.numpy as jnp
    from masksearch_jax.core.config import CheckpointConfig
    from masksearch_jax.testing.models import TINY_QWEN2
    from masksearch_jax.training.checkpoint import Checkpointer
    from masksearch_jax.training.train_state import TrainState

    config = CheckpointConfig(every=2, keep=2)
    with Checkpointer(sys.argv[1], config, TINY_QWEN2) as checkpointer:
        for step in range(1, 1000):
            params = {f"w{i}": jnp.full((256, 256), float(step)) for i in range(8)}
            checkpointer.save(step, TrainState(jnp.int32(step), params, ()), {"step": step})
            print(step, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.03])
def test_sigkill_while_saving_leaves_a_whole_checkpoint(tmp_path, repository, delay):
    script = textwrap.dedent(WRITER)
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository,
    )
    while process.stdout.readline().strip() != "3":
        assert process.poll() is None
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    like = TrainState(jnp.int32(0), {f"w{i}": jnp.zeros((256, 256)) for i in range(8)}, ())
    with Checkpointer(folder, CONFIG, TINY_QWEN2) as checkpointer:
        step = checkpointer.latest_step()
        assert step >= 2  # 3 was on its way
        state, extra = checkpointer.restore(like)
        assert extra == {"step": step}
        assert int(state.step) == step
        for value in state.params.values():
            np.testing.assert_array_equal(value, float(step))
        checkpointer.save(step + 1, like, {})
        assert checkpointer.latest_step() == step + 1
