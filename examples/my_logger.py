"""A logger of your own: one figure of each step as a CSV file, beside metrics.jsonl.

    python -m masksearch_jax.train_dapo --config=configs/qa_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=Qwen2.5-1.5B-Instruct --config.log.to=jsonl,examples.my_logger:Csv

A logger is a class. The first process makes it when a run begins or goes on: of the run's folder,
and of the rows that are there. `write` gets each further row of metrics.jsonl; a run waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]  # step, wall_time, the step's figures; no loss where nothing was learned


class Csv:
    def __init__(self, folder: Path, rows: Sequence[Row]):
        self._file = (folder / "loss.csv").open("w")
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        print(row["step"], row.get("loss", ""), sep=",", file=self._file, flush=True)

    def close(self) -> None:
        self._file.close()
