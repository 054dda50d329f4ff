"""Folders as runs leave them, small."""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'</title>\x00\ud800"


def cell(value: float, n: int = 4) -> dict[str, Any]:
    return {"value": value, "low": value - 0.03, "high": value + 0.04, "n": n, "lost": {}}


def ramp(number: int) -> dict[str, Any]:
    paragraph = f"Chad {number} is a country of Africa."
    start = paragraph.index("Africa")
    return {
        "id": f"r-{number}",
        "passage_id": f"p-{number}",
        "title": f"Chad {number}",
        "masked": paragraph.replace("Africa", "[mask]"),
        "paragraph": paragraph,
        "spans": [{"start": start, "end": start + 6, "text": "Africa", "type": "PLACE"}],
    }


def trajectory(number: int = 0, fill: str = "Africa", **changes: Any) -> dict[str, Any]:
    """A trajectory of one search of two documents, of which the first is the source."""
    example = ramp(number)
    segments = [
        ("prompt", f"{example['masked']}\n"),
        ("policy", "<think>I look.</think><search>Chad\nAfrica</search>"),
        ("tool", f"<information>Chad {number}: a country.\nMali: {HOSTILE}</information>"),
        ("policy", f"<answer>Chad {number} is a country of {fill}.</answer>"),
    ]
    turn = {
        "queries": ["Chad", "Africa"],
        "passage_ids": [f"p-{number}", "p-mali"],
        "titles": [f"Chad {number}", "Mali"],
        "seconds": 0.004,
        "error": "",
    }
    return {
        "suite": "ramp",
        "method": "agent",
        "scores": {"span_recall": float(fill == "Africa"), "searches": 1.0},
        "example_id": example["id"],
        "sample": 0,
        "ids": list(range(100, 112)),
        "tokens": [f"w{i}" for i in range(11)] + ["\n"],
        "logprobs": [0.0] * 4 + [-0.01, -0.5, -1.0] + [0.0] * 3 + [-3.0, -0.2],
        "sampled": [False] * 4 + [True] * 3 + [False] * 3 + [True] * 2,
        "versions": [-1] * 4 + [3] * 3 + [-1] * 3 + [4] * 2,
        "prompt_len": 4,
        "segments": [{"author": a, "text": t} for a, t in segments],
        "turns": [turn],
        "status": "answered",
        "seconds": 0.5,
        "example": example,
    } | changes


def rollout(step: int, group: int, sample: int) -> dict[str, Any]:
    """A trajectory as reinforcement learning stores it."""
    found = trajectory(group, fill="Africa" if sample else "Asia", sample=sample)
    del found["suite"], found["method"], found["scores"]
    terms = {"total": float(sample), "answer": float(sample), "format": 1.0, "accuracy": 1.0}
    terms |= {"turns": [0.0, -0.25], "logged": {"coverage": 0.5}, "failure": ""}
    mine = [v - 0.125 if m else 0.0 for v, m in zip(found["logprobs"], found["sampled"])]  # noqa: B905
    return found | {
        "step": step, "group": group, "trained": True, "advantage": 0.5, "reward": terms,
        "trainer_logprobs": mine, "version": step,
    }  # fmt: skip


def write_json(path: pathlib.Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: pathlib.Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def record(command: str, config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    session = {
        "date": "2026-01-02T03:04:05+00:00",
        "command": command,
        "commit": "0123456789abcdef",
        "versions": {"jax": "0.10.2", "machine": "x86_64"},
        "changed": [],
    }
    return {"config": config, "defaults": defaults, "content": {}, "sessions": [session]}


def evaluate(folder: pathlib.Path, value: float, right: range, items: int = 6) -> None:
    """An evaluation of which the items in `right` are right with search, and none without."""
    of_spans = {"source_first": cell(0.75), "reciprocal_rank": cell(0.8), "span_recall": cell(0.5)}
    judged = cell(0.25) | {"unreadable": 1, "agreement": cell(0.5)}
    without = {m: {"span_recall": cell(0.125)} for m in ("agent", "random")}
    shared = {"items": 9, "shared": {"title": 2}, "shared_ids": ["a", "b"], "without": without}
    results = {
        "ramp": {m: {"span_recall": cell(v)} for m, v in (("agent", value), ("random", 0.0))}
    }
    masks = {"1": {"span_recall": cell(value)}, "2": {"span_recall": cell(value, len(right) + 1)}}
    parts = {"masks": masks, "status": {"answered": {}}}
    write_json(
        folder / "eval.json",
        {
            "version": 2,
            "results": results,
            "average": {"agent": cell(value, 1)},
            "breakdown": {"ramp": {"agent": parts}},
            "suites": {"ramp": {"metric": "span_recall", "sha256": "ab" * 32, "lost": {}}},
            "provenance": {"model": {"folder": "m", "step": 7}, "config": {"seed": 0}},
            "compare": {
                "run": "runs/other",
                "differences": {"ramp": {"agent": {"span_recall": cell(0.25)}}},
            },
            "judges": [
                {"model": "strict", "prompt": "ab", "results": {"ramp": {"agent": judged}}},
            ],
            "leakage": {"path": "p", "ngram": 13, "suites": {"ramp": shared}},
            "difficulty": {"ramp": {"words": [{"label": "1–2", "n": 3} | of_spans]}},
        },
    )
    made = [
        trajectory(i, fill="Africa" if m == "agent" and i in right else "Asia", method=m)
        for m in ("agent", "random")
        for i in range(items)
    ]
    write_lines(folder / "trajectories.jsonl", made)
    names = {"model": "strict", "prompt": "ab", "suite": "ramp", "verdict": "incorrect"}
    said = [names | {"method": row["method"], "id": row["example_id"]} for row in made]
    write_lines(folder / "verdicts.jsonl", said)


@pytest.fixture(scope="session")
def write_run() -> Callable[..., pathlib.Path]:
    """Writes a run of two trainings, two evaluations and rollouts; `items` of each evaluation."""

    def write(root: pathlib.Path, items: int = 6) -> pathlib.Path:
        counts = {
            "in": 25748,
            "out": 25217,
            "dropped": {"same_masks_again": 531},
            "kept_by": {"a": 2},
        }
        summary = {
            "wall_seconds": 582.25,
            "peak_memory_bytes": 2_310_000_000,
            "stages": {
                "index": {"seconds": 1.5},
                "evaluate_init": {"seconds": 9.0},
                "ramp_sft": {"seconds": 262.5},
                "evaluate_ramp_sft": {"seconds": 8.0},
            },
            "data": {"ramp": counts, "index": {"in": 3, "out": 3, "dropped": {}}},
            "export": {"tensors": 51},
        }
        write_json(root / "summary.json", summary)
        command = (
            "python -m masksearch_jax.quickstart --config=configs/quickstart.py --config.seed=3"
        )
        config = {"workdir": "w", "seed": 3, "sft": {"steps": 8, "curriculum": "0:ramp_k1"}}
        write_json(root / "run.json", record(command, config, {"workdir": None, "sft.steps": 100}))
        curriculum = {"sft": {"curriculum": "0:ramp_k1,4:ramp_k2"}}
        write_json(root / "ramp_sft" / "run.json", record("python", curriculum, {}))
        for name, key in (("ramp_sft", "agent_nll"), ("ramp_dapo", "reward")):
            rows = [
                {"step": s, "wall_time": 1e9 + 10 * s, key: 8.0 / s, "lr": 1e-5 * s}
                for s in range(1, 9)
            ]
            write_lines(root / name / "metrics.jsonl", rows)
        for step in (1, 2, 10):
            rows = [rollout(step, group, sample) for group in range(2) for sample in range(2)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            path = root / "ramp_dapo" / "rollouts" / f"{step}.jsonl.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(text.encode()))
        evaluate(root / "eval" / "init", 0.0, range(0), items)
        evaluate(root / "eval" / "ramp_sft", 0.5, range(items // 2), items)
        (root / "ramp_sft" / "checkpoints" / "8").mkdir(parents=True)
        (root / "ramp_sft" / "checkpoints" / "8" / "metrics.jsonl").write_text("of nobody")
        return root

    return write


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, write_run) -> pathlib.Path:
    """A run to read; tests that change it make their own."""
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., dict[str, Any]]:
    return trajectory


@pytest.fixture(scope="session")
def hostile() -> str:
    return HOSTILE
