"""Makes one HTML page of runs, finished or not: `python -m masksearch_jax.report RUN [RUN …]`.

A run is any folder that a main wrote: quickstart, evolve, train_sft, train_dapo, evaluate, or one
with several of these in it, as launch/cells.sh makes. Several runs stand beside each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from masksearch_jax import viewer
from masksearch_jax.core import files
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import key, required
from masksearch_jax.runtime import cli, installed

USAGE = "usage: {name} RUN [RUN ...] [--config.key=value ...]"


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """`report`: the HTML page of runs."""

    runs: tuple[str, ...] = required("Folders of runs; the arguments of the command before flags.")
    out: str = key(
        "", "File to write; empty: report.html, in the run's folder, of several runs here."
    )
    trajectories: int = key(
        viewer.MAX_TRAJECTORIES,
        "Most that can be read on the page, the first of each kind.",
        least=0,
    )


def write(
    runs: Sequence[str | os.PathLike],
    out: str | os.PathLike = "",
    most: int = viewer.MAX_TRAJECTORIES,
) -> Path:
    """Renders the runs and replaces the file at once, so that a reader never sees half a page.

    out, most: as in ReportConfig. Raises viewer.load.RunFilesError when a folder is no run's,
    OSError when the page cannot be written.
    """
    path = Path(out or ("report.html" if len(runs) > 1 else Path(runs[0]) / "report.html"))
    files.write_text(path, viewer.render(runs, most))
    return path


def check_config(cfg: ReportConfig) -> None:
    """Raises ConfigError where no run is named."""
    if not cfg.runs or not all(folder.strip() for folder in cfg.runs):
        raise ConfigError("config.runs is empty; it must name the folders of runs")


def run(cfg: ReportConfig) -> None:
    """Writes the report and prints where it is."""
    check_config(cfg)
    path = write(cfg.runs, cfg.out, cfg.trajectories)
    print(f"report: {path} ({path.stat().st_size / 2**20:.1f} MiB)", file=sys.stderr)


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line with the folders that it begins with as a flag, of our config `report`.

    Raises ConfigError, with the usage, where there are no arguments.
    """
    if len(argv) == 1:
        raise ConfigError(USAGE.format(name=installed.as_started("report")))
    folders = tuple(itertools.takewhile(lambda arg: not arg.startswith("-"), argv[1:]))
    if not folders:
        return list(argv)
    return [argv[0], "--config=report", f"--config.runs={folders!r}", *argv[1 + len(folders) :]]


if __name__ == "__main__":
    cli.call(lambda: cli.run(run, ReportConfig, arguments(sys.argv)))
