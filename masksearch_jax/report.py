"""Writes RUN/report.html from the files of a run: `python -m masksearch_jax.report --config=…`.

A run that is still going, or that was interrupted, gets a report of what there is.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys

from masksearch_jax import viewer
from masksearch_jax.core import files
from masksearch_jax.core.errors import check_given
from masksearch_jax.core.schema import required
from masksearch_jax.runtime import cli


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """`report`: the HTML page of a run."""

    workdir: str = required(
        "Folder of the run, with summary.json, metrics.jsonl of each training, trajectories.jsonl."
    )


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Renders the run and replaces report.html at once, so that a reader never sees half a page.

    Raises viewer.load.RunFilesError when the folder is no run's, OSError when it cannot be written.
    """
    path = pathlib.Path(workdir) / "report.html"
    files.write_text(path, viewer.render(workdir))
    return path


def run(cfg: ReportConfig) -> None:
    """Writes the report of `cfg.workdir` and prints where it is."""
    check_given(cfg, workdir="the folder of a run")
    path = write(cfg.workdir)
    print(f"report: {path} ({path.stat().st_size / 1024:.0f} KiB)", file=sys.stderr)


if __name__ == "__main__":
    cli.run(run, ReportConfig)
