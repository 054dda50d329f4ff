"""Kills a study at random moments and compares what becomes of it with an undisturbed one.

    python -m benchmarks.study_crash --study=ramp_first --kills=12 --json=FILE

Both are smoke runs of all parts. Each kill -9 hits the study; a build of a cache, which is a
process in a session of its own, goes on beside the next attempt. The same command is given again.
Equal means: results and curves of `study.json`, and every line of each evaluation's trajectories
but the seconds that searches took.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from masksearch_jax.core.files import write_json

_STAGE = re.compile(r"^\[\d+/\d+\] (\w+)-\w+$", re.MULTILINE)


def start(study: str, folder: Path, log: Path, more: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "masksearch_jax.study"]
    command += [f"--config=configs/study.py:{study},runlocal", f"--config.workdir={folder}", *more]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file)


def undisturbed(study: str, folder: Path, log: Path, more: list[str]) -> float:
    """Seconds of a study from start to end. Raises RuntimeError where it fails."""
    started = time.monotonic()
    if status := start(study, folder, log, more).wait():
        raise RuntimeError(f"the study ended with status {status}; see {log}")
    return time.monotonic() - started


def tormented(
    study: str, folder: Path, log: Path, more: list[str], kills: int, longest: float, seed: int
) -> Counter[str]:
    """Runs a study to its end through at most so many kills; how many hit each kind of stage."""
    rng, hit = random.Random(seed), Counter[str]()
    while hit.total() < kills:
        before = log.stat().st_size if log.is_file() else 0
        process = start(study, folder, log, more)
        try:
            status = process.wait(rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            if status:
                raise RuntimeError(f"the study ended with status {status}; see {log}")
            return hit  # faster than the undisturbed one: done before the next kill
        began = _STAGE.findall(log.read_bytes()[before:].decode())
        hit[began[-1] if began else "start"] += 1
        print(f"kill {hit.total()}: {began[-1] if began else 'start'}", file=sys.stderr, flush=True)
    undisturbed(study, folder, log, more)
    return hit


def outcome(folder: Path) -> dict[str, Any]:
    """What a study has found: its results and curves, and each item of its evaluations."""
    figures = json.loads((folder / "study.json").read_text())
    rows = {}
    for path in sorted((folder / "made").glob("evaluate-*/eval/model/trajectories.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        rows[str(path.relative_to(folder))] = [_timeless(json.loads(line)) for line in lines]
    return {name: figures[name] for name in ("said", "results", "notes", "curves")} | {"rows": rows}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if "seconds" not in k}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", default="ramp_first", help="a name of configs/study.py")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write the figures to")
    given, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        quiet, loud = Path(temporary, "quiet"), Path(temporary, "loud")
        logs = [Path(temporary, name) for name in ("quiet.log", "loud.log")]
        took = undisturbed(given.study, quiet, logs[0], more)
        print(f"undisturbed: {took:.0f} s", file=sys.stderr, flush=True)
        # Twice the even share: some kills hit what a session has just begun, some go further.
        longest = 2 * took / (given.kills + 1)
        hit = tormented(given.study, loud, logs[1], more, given.kills, longest, given.seed)
        found = [outcome(folder) for folder in (quiet, loud)]
        figures = {
            "study": given.study,
            "kills": hit.total(),
            "hit": dict(hit.most_common()),
            "differ": sorted(n for n in found[0] if found[0][n] != found[1][n]),
            "evaluations": len(found[0]["rows"]),
            "undisturbed_seconds": round(took),
        }
    print(json.dumps(figures, indent=1))
    if given.json:
        write_json(Path(given.json), figures)
    if figures["differ"]:
        raise SystemExit(f"the killed study differs in {', '.join(figures['differ'])}")


if __name__ == "__main__":
    main()
