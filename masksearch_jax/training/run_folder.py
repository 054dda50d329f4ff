"""A training's folder: whether the run that it holds goes on with these settings."""

from __future__ import annotations

from collections.abc import Sequence

from masksearch_jax.core.config import TrainRun
from masksearch_jax.parallel import hosts
from masksearch_jax.runtime import run_record, storage
from masksearch_jax.training import checkpoint_files


def open_run_folder(cfg: TrainRun, steps: str, unread: Sequence[str] = ()) -> None:
    """Writes WORKDIR/run.json. All processes must call it.

    steps: the key with the number of steps. With a constant learning rate more of them change
    nothing of those before; linear and cosine schedules end with the last one. unread: keys of
    folders that the run does not read, whose files may change. Raises ConfigError,
    on all processes, where there are checkpoints and the settings that they come from differ in
    what changes the result, see `run_record.resume`.
    """
    harmless = {*unread, *([steps] if cfg.optim.schedule == "constant" else ())}
    checkpoints = cfg.checkpoint.folder or storage.path(cfg.workdir) / "checkpoints"
    goes_on = checkpoint_files.has_steps(checkpoints)  # orbax asks all processes together

    def record() -> None:
        if goes_on:
            run_record.resume(cfg.workdir, cfg, harmless, dict.fromkeys(unread, ""))
        else:
            run_record.write(cfg.workdir, cfg, dict.fromkeys(unread, ""))

    hosts.from_first(record)
