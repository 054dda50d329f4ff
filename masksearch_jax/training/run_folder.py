"""A training's folder: whether the run that it holds goes on with these settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from masksearch_jax.core.config import TrainRun
from masksearch_jax.core.errors import ConfigError, check_given
from masksearch_jax.core.schema import check_idle
from masksearch_jax.core.types import JsonObject
from masksearch_jax.parallel import hosts
from masksearch_jax.parallel.folder_lock import FolderLock
from masksearch_jax.runtime import metric_services, run_record, storage
from masksearch_jax.runtime.process import process_index
from masksearch_jax.training import checkpoint_files
from masksearch_jax.training.train_state import check_rounding

_STEP = "init.step"  # in the content of run.json: of `init`, where the run compares with it


class RunFolder(FolderLock):
    """A training's folder, and that of its checkpoints: no other process works there until the end.

    compared: where the weights are that the run compares with to its end; "" for none.
    """

    def __init__(self, workdir: str, checkpoints: str, compared: str = ""):
        super().__init__(workdir)
        self._checkpoints = FolderLock(checkpoints) if checkpoints else None
        self.compared = compared

    def __exit__(self, *error: object) -> None:
        if self._checkpoints:
            self._checkpoints.__exit__(*error)
        super().__exit__(*error)


def check_config(cfg: TrainRun) -> None:
    """Raises ConfigError for keys that every training needs and that are empty or cannot be."""
    check_given(
        cfg,
        workdir="the folder to write",
        data="the folder that build_cache wrote",
        tokenizer="the folder that holds tokenizer.json",
    )
    metric_services.check_log(cfg.log)
    check_rounding(cfg)
    if cfg.optim.schedule == "constant":
        because, instead = "optim.schedule=constant", "choose linear or cosine"
        check_idle(cfg.optim, "config.optim", because, instead, end_lr_ratio=1.0)
    if storage.path(cfg.checkpoint.folder).name.isdigit():
        raise ConfigError(
            f"config.checkpoint.folder is {cfg.checkpoint.folder!r}, which names a step of a "
            "folder of checkpoints: give a folder whose name is no number"
        )


def open_run_folder(
    cfg: TrainRun,
    steps: str,
    unread: Sequence[str] = (),
    compared: str = "",
    served: Mapping[str, str] | None = None,
) -> RunFolder:
    """Takes WORKDIR and `checkpoint.folder` and writes their run.json. All processes must call it.

    steps: the key with the number of steps. With a constant learning rate more of them change
    nothing of those before; linear and cosine schedules end with the last one. unread: keys of
    folders that the run does not read, whose files may change. compared: where the weights of
    `cfg.init` are that the run compares with to its end, FOLDER/STEP of checkpoints; "" for none;
    of a run that goes on the folder has the step that it began with. served: by the key of a name,
    or address, what tells the weights or the index of that service from others. Raises ConfigError,
    on all processes, where there are checkpoints and the settings that they come from differ in
    what changes the result, see `run_record.resume`, or the weights compared with are others, and
    BeingWrittenError as `FolderLock`.
    """
    own = cfg.checkpoint.folder
    folder = RunFolder(cfg.workdir, own)
    harmless = {*unread, *([steps] if cfg.optim.schedule == "constant" else ())}
    checkpoints = own or storage.path(cfg.workdir) / "checkpoints"
    goes_on = checkpoint_files.has_steps(checkpoints)  # orbax asks all processes together

    def record() -> str:
        content, where = {**dict.fromkeys(unread, ""), **(served or {})}, compared
        if compared:
            before = (own and run_record.read(own)) or run_record.read(cfg.workdir)
            where = _as_begun(cfg, compared, before if goes_on else None)
            content |= {"init": storage.fingerprint(where).hex(), _STEP: _step(where)}
        if goes_on:
            run_record.resume(cfg.workdir, cfg, harmless, content, own)
        else:
            for place in filter(None, (cfg.workdir, own)):
                run_record.write(place, cfg, content)
        return where

    folder.compared = hosts.from_first(record)
    return folder


def tell_start(workdir: str, start: int, steps: int) -> None:
    """Says on stderr, from process 0, where a run with checkpoints goes on."""
    if process_index() == 0:
        rest = f"goes on from step {start}" if start < steps else "nothing is left to do"
        print(
            f"  {workdir}: {start} of {steps} steps are done; {rest}", file=sys.stderr, flush=True
        )


def _as_begun(cfg: TrainRun, compared: str, before: JsonObject | None) -> str:
    """`compared` with the step that its run began with. Raises ConfigError where that is gone."""
    began = before["content"].get(_STEP, "") if before else ""
    if not began or began == _step(compared):
        return compared
    where = f"{checkpoint_files.split(compared)[0]}/{began}"
    if storage.path(where).exists():
        return where
    if cfg.survival.changed == "accept":
        return compared
    raise ConfigError(
        f"config.init is {cfg.init!r}, which no longer holds step {began}: the run began with that "
        "step and compares with it (config.dapo.kl); put the step back, or go on with another one "
        "by --config.survival.changed=accept"
    )


def _step(where: str) -> str:
    """STEP of FOLDER/STEP; "" where there is none."""
    step = checkpoint_files.split(where)[1]
    return "" if step is None else str(step)
