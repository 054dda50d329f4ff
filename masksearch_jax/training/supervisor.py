"""What keeps a training run alive and accountable: one object around its loop.

It turns SIGTERM into a save on all processes, watches for hangs, accounts for time, traces steps on
demand, and tells a lost process (start again) from a failure.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeAlias

import jax
from jax.experimental import multihost_utils

from masksearch_jax.core.bucket import StorageError
from masksearch_jax.core.config import SurvivalConfig
from masksearch_jax.core.errors import ConfigError, Restart, UserError
from masksearch_jax.parallel import hosts
from masksearch_jax.parallel.processes import join_processes
from masksearch_jax.runtime import goodput, storage
from masksearch_jax.runtime.process import end_alone, is_lost_process
from masksearch_jax.runtime.watchdog import Watchdog
from masksearch_jax.training.checkpoint import Checkpointer

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
# What `signal.signal` gives for the handler before; None: one that is not Python's, or none asked.
_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None
_polls = itertools.count(1)  # JAX wants a number that grows, over all runs of a process


class Preempted(Restart):
    """A process was told to stop; what the run had is saved."""


class Preemption:
    """SIGTERM as a question that all processes answer alike. Use as a context manager.

    Alone, a signal handler answers; among several, JAX's own service, which knows of a signal on
    any of them and needs no device: all must ask equally often. SIGHUP, of a terminal that is
    lost, is passed on as SIGTERM, unless it is ignored, as `nohup` has it.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: _Handler = None
        self._before_hangup: _Handler = None

    def __enter__(self) -> Preemption:
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            self._before_hangup = _handle(signal.SIGHUP, self._pass_on)
        if not jax.distributed.is_initialized():
            self._before = _handle(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(signal.SIGTERM, self._before)
        _restore(signal.SIGHUP, self._before_hangup)

    def is_reached(self) -> bool:
        """True once any process was told to stop: at the same call on all, and from then on."""
        if jax.distributed.is_initialized():
            self._told |= multihost_utils.reached_preemption_sync_point(next(_polls))
        return self._told

    def raise_if_stopped(self) -> None:
        """Raises Preempted where `is_reached`."""
        if self.is_reached():
            raise Preempted("told to stop (SIGTERM); the same command goes on from here")

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Survival:
    """A run's guardian. Make it first: its clock starts, and this process joins the others.

    As a context manager around the loop it listens to signals and watches for hangs. `steps` gives
    the loop's steps; `phase` says what time is spent on; `raise_if_stopped` belongs into everything
    that takes longer than a moment.
    """

    def __init__(self, config: SurvivalConfig, workdir: str | os.PathLike):
        self.config, self._workdir = config, storage.path(workdir)
        self._clock = goodput.Goodput(workdir)
        join_processes(config.heartbeat_seconds)
        self._clock.writes = jax.process_index() == 0
        if config.compile_cache:
            _check_cache(config.compile_cache)
            jax.config.update("jax_compilation_cache_dir", config.compile_cache)
        self.preemption = Preemption()
        self._watchdog = Watchdog(config, self._workdir, self._clock.touch)
        self._step, self._trace_next = 0, False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Survival:
        self._workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.preemption)
            before = _handle(signal.SIGUSR1, self._ask_for_trace)
            stack.callback(_restore, signal.SIGUSR1, before)
            jax.monitoring.register_event_duration_secs_listener(self._listen)
            stack.callback(jax.monitoring.unregister_event_duration_listener, self._listen)
            stack.enter_context(self._watchdog)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stack.close()
        self._clock.end(self._step)
        if error is not None and is_lost_process(error):
            end_alone(error)  # before anything else that would wait for the one that is gone
        if self._clock.writes:
            with contextlib.suppress(StorageError):  # the run is what it is without its account
                if figures := goodput.summarise(self._workdir):
                    print(f"  {goodput.sentence(figures)}", file=sys.stderr, flush=True)

    def steps(self, start: int, stop: int, bucket: str) -> Iterator[int]:
        """start, …, stop - 1: the steps to be done; time within them goes to `bucket`."""
        self._step = start
        if start < stop:  # a run that is done is not made longer by looking at it
            self._clock.start(start)
        self._clock.enter(bucket)
        for step in range(start, stop):
            with self._traced(step + 1):
                yield step
            self._step = step + 1
            self._clock.step(self._step)
            self._watchdog.beat("step")
        self._clock.enter("save")

    def phase(self, bucket: str) -> contextlib.AbstractContextManager[None]:
        """Time within goes to this bucket of `goodput.BUCKETS`."""
        return self._clock.phase(bucket)

    def patient(self) -> contextlib.AbstractContextManager[None]:
        """Within, the watchdog gives as much time as to start: programs are compiled."""
        return self._watchdog.patient()

    @contextlib.contextmanager
    def disk(self, bucket: str, step: int | None = None) -> Iterator[None]:
        """A `save` or `restore`, which may take its time; `step` is what is then on its way."""
        with self._watchdog.patient(), self._clock.phase(bucket):
            yield
        if step is not None:
            self._clock.save(step)

    def finish(self, checkpointer: Checkpointer) -> None:
        """Waits for what is being written. Raises where the last step is not.

        CheckpointError, or UserError where another process failed; a Restart where that passes.
        """
        with self.disk("save"):
            checkpointer.wait()
        if hosts.is_on_any(checkpointer.failed is not None):
            passes = hosts.is_on_any(isinstance(checkpointer.failed, Restart))
            another = (Restart if passes else UserError)("another process could not save")
            raise checkpointer.failed or another

    def stop(self, checkpointer: Checkpointer) -> None:
        """Finishes, then raises Preempted."""
        self.finish(checkpointer)
        self.preemption.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        """Progress within a step. Raises Preempted, on all processes at the same call."""
        self._watchdog.beat("tick")
        self.preemption.raise_if_stopped()

    def _ask_for_trace(self, number: int, frame: FrameType | None) -> None:
        self._trace_next = True

    @contextlib.contextmanager
    def _traced(self, step: int) -> Iterator[None]:
        if not self._trace_next and step not in self.config.profile_steps:
            yield
            return
        self._trace_next = False
        folder = self._workdir / "profile" / f"step_{step}"
        with self._watchdog.patient(), jax.profiler.trace(folder):
            yield
            jax.block_until_ready(jax.numpy.zeros(()) + 1)  # what was sent to the device before it
        print(f"  profile of step {step}: {folder}", file=sys.stderr, flush=True)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_EVENT and threading.current_thread() is threading.main_thread():
            self._clock.move(duration_secs, "compile")


def _check_cache(folder: str) -> None:
    """Raises ConfigError for a file, of which JAX would say nothing and compile all each time."""
    place = storage.path(folder)
    if place.exists() and not place.is_dir():
        raise ConfigError(
            f"config.survival.compile_cache is {folder!r}, a file where a folder is needed"
        )


def _handle(number: int, handler: Callable[[int, FrameType | None], object]) -> _Handler:
    """Installs a handler and returns the one before; None outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(number, handler)


def _restore(number: int, before: _Handler) -> None:
    if before is not None:
        signal.signal(number, before)
