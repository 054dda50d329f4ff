"""Runs that survive: signals, hangs, bad updates, and where the time went."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from masksearch_jax.core.config import OptimConfig, SurvivalConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.runtime import goodput, process, watchdog
from masksearch_jax.runtime.process import RESTART, is_lost_process
from masksearch_jax.training.checkpoint_files import CheckpointError, CheckpointOutageError
from masksearch_jax.training.guard import Guard, GuardError, guarded
from masksearch_jax.training.supervisor import Preempted, Preemption, Survival
from masksearch_jax.training.train_state import init_state, make_optimizer, make_train_step

CONFIG = SurvivalConfig()

# ---- preemption


def test_sigterm_is_a_question_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.is_reached()
        preemption.raise_if_stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.is_reached()
        with pytest.raises(Preempted, match="told to stop"):
            preemption.raise_if_stopped()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_lost_terminal_is_as_sigterm_unless_nohup_has_it_ignored():
    kept = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert preemption.is_reached()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not preemption.is_reached()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, kept)


@pytest.mark.parametrize(
    "failed",
    [
        None,
        CheckpointError("step 7 could not be written: full"),
        CheckpointOutageError("step 7 could not be written: 503"),
    ],
)
def test_a_run_that_is_told_to_stop_says_so_only_where_its_last_step_is_on_disk(tmp_path, failed):
    """Else the same command would not go on from there."""

    class Written:
        def __init__(self):
            self.failed = None

        def wait(self):
            self.failed = failed

    survival = Survival(CONFIG, tmp_path)
    with survival.preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(type(failed) if failed else Preempted) as told:
            survival.stop(Written())
    assert not failed or told.value is failed


def test_a_file_is_no_cache_of_compiled_programs(tmp_path):
    file = tmp_path / "file"
    file.write_text("some text")
    said = f"config.survival.compile_cache is '{file}', a file where a folder is needed"
    with pytest.raises(ConfigError, match=re.escape(said)):
        Survival(dataclasses.replace(CONFIG, compile_cache=str(file)), tmp_path / "run")
    before = jax.config.jax_compilation_cache_dir
    try:
        Survival(dataclasses.replace(CONFIG, compile_cache=str(tmp_path / "new")), tmp_path / "run")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)]
    seen = []

    def run():
        with Survival(CONFIG, tmp_path):
            seen.extend(signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == before


def test_a_lost_process_is_told_from_a_failure():
    lost = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    wrapped = ValueError("could not save")
    wrapped.__cause__ = lost
    assert not is_lost_process(lost)  # alone there is nobody to lose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_process", (0, 2))
        assert is_lost_process(lost)
        assert is_lost_process(wrapped)
        assert not is_lost_process(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
        assert not is_lost_process(ValueError("Connection closed"))
        assert is_lost_process(ValueError("INTERNAL: Gloo context: Connection closed by peer"))
        during = RuntimeError("could not close")
        during.__context__ = lost
        assert is_lost_process(during)
        assert not is_lost_process(None)


# ---- exit statuses

SCRIPT = """
import sys
from masksearch_jax.core.errors import ConfigError, Restart, UserError
from masksearch_jax.runtime import cli
from masksearch_jax.runtime.process import name_process
def work():
    {work}
{before}
cli.call(work)
"""


@pytest.mark.parametrize(
    ("before", "work", "status", "message"),
    [
        ("", "raise Restart('told to stop')", 42, r"error: told to stop"),
        ("", "raise UserError('no')", 1, r"error: no"),
        ("", "raise ConfigError('no key')", 2, r"error: no key"),
        (
            "name_process(1, 2)",
            "raise UserError('disk')",
            1,
            r"error: process 1 of 2 on \S+: disk",
        ),
        (
            "name_process(1, 2)",
            "1 / 0",
            1,
            r"error: process 1 of 2 on \S+: ZeroDivisionError: division by zero",
        ),
        (
            "name_process(0, 2)\nclass JaxRuntimeError(RuntimeError): pass",
            "raise JaxRuntimeError('Gloo context initialization failed')",
            42,
            r"error: process 0 of 2 on \S+: lost another process: Gloo context .* failed",
        ),
    ],
)
def test_exit_statuses_and_who_says_so(before, work, status, message):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before, work=work)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert re.fullmatch(message, done.stderr.splitlines()[-1])


# ---- the watchdog

HANG = """
import dataclasses, sys, threading, pathlib
from masksearch_jax.core.config import OptimConfig, SurvivalConfig
from masksearch_jax.runtime.watchdog import Watchdog

def find():
    threading.Event().wait()  # the search hangs

config = SurvivalConfig(startup_seconds=float(sys.argv[2]), step_factor=2.0, step_seconds=0.3)
with Watchdog(config, pathlib.Path(sys.argv[1])) as dog:
    for _ in range(int(sys.argv[3])):
        dog.beat("step")
    find()
"""


@pytest.mark.parametrize(("startup", "steps", "limit"), [(60, 3, 0.3), (0.4, 0, 0.4)])
def test_a_hang_is_named_by_file_and_line_and_ends_the_process(tmp_path, startup, steps, limit):
    script = tmp_path / "run.py"
    script.write_text(HANG)
    line = HANG.splitlines().index("    threading.Event().wait()  # the search hangs") + 1
    command = [sys.executable, script, tmp_path, str(startup), str(steps)]
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert done.returncode == RESTART
    where = r"stuck in wait \(.*threading\.py:\d+\), below find \(.*run\.py:" + str(line) + r"\)"
    first = done.stderr.splitlines()[0]
    assert re.match(r"error: process 0 of 1 on \S+: no progress for [\d.]+ s \(limit ", first)
    assert f"(limit {limit} s)" in first
    assert re.search(where, first)
    for text in (done.stderr, (tmp_path / "hang-0.txt").read_text()):
        assert f'run.py", line {line} in find' in text
        assert "runtime/watchdog.py" in text  # all threads


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return 5000.0 + self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(goodput, "time", fake)
    monkeypatch.setattr(watchdog, "time", fake)
    return fake


def test_the_limit_is_a_multiple_of_the_slowest_kinds_median(clock, tmp_path):
    config = dataclasses.replace(CONFIG, startup_seconds=900.0, step_factor=5.0, step_seconds=30.0)
    dog = watchdog.Watchdog(config, tmp_path)

    def beat(kind: str, seconds: float) -> float:
        clock.now += seconds
        dog.beat(kind)
        return dog._limit

    assert beat("step", 300.0) == 900.0  # compiled; nothing is usual yet
    assert beat("tick", 1.0) == 900.0
    assert beat("step", 10.0) == 50.0
    assert beat("tick", 1.0) == 50.0
    assert beat("step", 100.0) == 275.0  # the median of 10 and 100
    assert beat("step", 2.0) == 50.0
    with dog.patient():
        assert dog._limit == 900.0
        clock.now += 500.0
        assert beat("tick", 400.0) == 900.0  # and is in no median
        with dog.patient():
            assert beat("tick", 1.0) == 900.0
        assert beat("tick", 1.0) == 900.0
    assert dog._limit == 50.0
    with pytest.raises(KeyError), dog.patient():
        raise KeyError
    assert dog._limit == 50.0
    assert beat("step", 2.0) == 30.0  # the median is 6, but no limit is below this


# ---- goodput


def session(folder, clock, start: int, stop: int) -> goodput.Goodput:
    """3 s to begin, then steps of 1 s of data and 4.5 s of update; saved after each second step."""
    ledger = goodput.Goodput(folder)
    clock.now += 3.0
    ledger.start(start)
    ledger.enter("update")
    for step in range(start + 1, stop + 1):
        with ledger.phase("data"):
            clock.now += 1.0
        clock.now += 4.5
        ledger.step(step)
        if step % 2 == 0:
            with ledger.phase("save"):
                clock.now += 0.5
            ledger.save(step)
    return ledger


def test_buckets_add_up_over_sessions_and_lost_work_is_told(clock, tmp_path):
    session(tmp_path, clock, 0, 3).move(1.0, "compile")  # killed in step 4
    clock.now += 2.0
    os.utime(tmp_path / goodput.FILE_NAME, (clock.time(), clock.time()))
    clock.now += 10.0  # nobody ran
    session(tmp_path, clock, 2, 4).end(4)
    found = goodput.summarise(tmp_path)
    assert found == {
        "init": 6.0,
        "compile": 0.0,  # moved after the last line: what is not written is not known
        "restore": 0.0,
        "data": 5.0,
        "sample": 0.0,
        "update": 18.0,  # 4 steps of 4.5 s; what the first session did of step 3 is lost
        "save": 1.0,
        "lost": 4.5 + 2.0,
        "down": 10.0,
        "wall": 46.5,
        "goodput": 18.0 / 46.5,
        "sessions": 2.0,
    }
    parts = (*goodput.BUCKETS, "lost", "down")
    assert sum(found[k] for k in parts) == found["wall"]
    assert goodput.sentence(found) == (
        "goodput 38.7% of 46 s in 2 sessions: update 38.7%, down 21.5%, lost 14.0%, init 12.9%, "
        "data 10.8%, save 2.2%"
    )


def test_compiling_is_taken_out_of_the_phase_that_it_happened_in(clock, tmp_path):
    ledger = goodput.Goodput(tmp_path)
    ledger.enter("update")
    clock.now += 10.0
    ledger.move(7.0, "compile")
    ledger.move(60.0, "compile")  # no phase gives more than it has
    clock.now += 1.0
    ledger.enter("save")
    assert ledger.seconds["compile"] == 10.0
    assert ledger.seconds["update"] == 1.0


def test_a_torn_line_hides_no_other(clock, tmp_path):
    assert goodput.summarise(tmp_path) == {}
    session(tmp_path, clock, 0, 2)
    path = tmp_path / goodput.FILE_NAME
    with path.open("a") as file:
        file.write('{"event": "st')
    os.utime(path, (clock.time(), clock.time()))
    session(tmp_path, clock, 2, 2)
    events = [row["event"] for row in goodput.read(tmp_path)]
    assert events == ["start", "step", "step", "save", "start"]
    assert goodput.summarise(tmp_path)["lost"] == 0.0


def test_steps_are_accounted_and_traced_on_demand(tmp_path):
    config = dataclasses.replace(CONFIG, profile_steps=(2,))
    double = jax.jit(lambda x: x * 2)
    with Survival(config, tmp_path) as guardian:
        for step in guardian.steps(0, 4, "update"):
            double(jnp.ones(step + 1)).block_until_ready()
            if step == 2:
                os.kill(os.getpid(), signal.SIGUSR1)  # the next one
    traced = {p.name for p in (tmp_path / "profile").iterdir() if list(p.rglob("*.xplane.pb"))}
    assert traced == {"step_2", "step_4"}
    last = json.loads((tmp_path / goodput.FILE_NAME).read_text().splitlines()[-1])
    assert (last["event"], last["step"]) == ("end", 4)
    assert last["seconds"]["compile"] > 0


# ---- the guard


def loss_fn(params, batch):
    return (params["w"] * batch).sum() * 2, jnp.float32(2), {}


ADAM = OptimConfig(1e-3, "constant", 0, 1.0, 0.9, 0.999, 1e-8, 0.0, 0.0, 1)


def run_guarded(values, **settings):
    """States and metrics of an update per value; the loss is w · value with w near 1."""
    config = dataclasses.replace(CONFIG, **settings)
    tx = guarded(make_optimizer(ADAM, 100), config)
    state = init_state({"w": jnp.ones(()), "zero": jnp.float32(-0.0)}, tx)
    step = make_train_step(loss_fn, tx)
    states, metrics = [jax.device_get(state)], []
    for value in values:
        state, out = step(state, np.float32(value))
        states.append(jax.device_get(state))
        metrics.append({k: float(v) for k, v in out.items()})
    return states, metrics


def bits(tree) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_not_a_bit(bad):
    states, metrics = run_guarded([1.0, bad, bad, 1.0])
    whole, _ = run_guarded([1.0, 1.0])
    assert bits(states[1].params) != bits(states[0].params)
    for after in (2, 3):
        assert bits(states[after].params) == bits(states[1].params)
        assert bits(states[after].opt_state.inner) == bits(states[1].opt_state.inner)
    assert bits(states[4].params) == bits(whole[2].params)  # as if they had never been
    assert [int(s.step) for s in states] == [0, 1, 2, 3, 4]
    assert [m["skipped"] for m in metrics] == [0, 1, 2, 2]
    assert [m["skipped_in_a_row"] for m in metrics] == [0, 1, 2, 0]


def test_a_spike_is_left_out_once_the_window_is_full():
    usual = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0]
    settings = {"spike_sigma": 4.0, "spike_window": 4}
    _, metrics = run_guarded([1.0, 9.0, 1.0, 1.0], **settings)
    assert metrics[-1]["skipped"] == 0  # too early to tell
    states, metrics = run_guarded([*usual, 9.0, 1.0], **settings)
    assert [m["skipped"] for m in metrics] == [0] * 6 + [1, 1]
    assert bits(states[7].params) == bits(states[6].params)
    assert bits(states[8].params) != bits(states[6].params)
    _, metrics = run_guarded([*usual, 9.0, 1.0])
    assert metrics[-1]["skipped"] == 0  # off


def test_a_row_of_bad_updates_that_ended_before_anybody_looked_stops_the_run(capsys):
    states, metrics = run_guarded([1.0, np.nan, np.nan, 1.0, np.nan, 1.0, 1.0])
    skips = dataclasses.replace(CONFIG, guard="skip", max_skips=2)
    with pytest.raises(GuardError, match="steps 1 to 4: 2 updates"):
        Guard(skips, states[0].opt_state, 0).check_figures(4, metrics[3])
    going_on = Guard(skips, states[4].opt_state, 4)  # the row is one of before
    going_on.check_figures(7, metrics[6])
    assert "steps 5 to 7: 1 updates" in capsys.readouterr().err


def test_the_guard_names_the_steps_and_stops_or_goes_on(capsys):
    states, metrics = run_guarded([1.0, np.nan, 1.0, np.nan, np.nan])
    with pytest.raises(GuardError, match=r"steps 1 to 3: 1 updates had .*\(loss .*, gradient norm"):
        Guard(CONFIG, states[0].opt_state, 0).check_figures(3, metrics[2])
    with pytest.raises(GuardError, match=r"step 2: 1 updates .*loss nan.*; not finite: .*loss"):
        Guard(CONFIG, states[1].opt_state, 1).check_figures(2, metrics[1])
    skips = dataclasses.replace(CONFIG, guard="skip", max_skips=2)
    guard = Guard(skips, states[0].opt_state, 0)
    guard.check_figures(1, metrics[0])
    assert capsys.readouterr().err == ""
    guard.check_figures(3, metrics[2])
    assert "warning: steps 2 to 3: 1 updates" in capsys.readouterr().err
    with pytest.raises(GuardError, match="steps 4 to 5: 2 updates"):
        guard.check_figures(5, metrics[4])
    Guard(CONFIG, states[3].opt_state, 3).check_figures(3, metrics[2])  # those before it are known
