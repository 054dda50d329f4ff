"""The mains as commands in this process, and a corpus of a dozen towns for them."""

import json

import pytest

from masksearch_jax import (
    ask,
    build_cache,
    build_index,
    build_ramp,
    build_trajectories,
    evaluate,
    export_hf,
    train_dapo,
    train_sft,
)
from masksearch_jax.core.types import Passage
from masksearch_jax.runtime import cli

MAINS = {
    "ask": (ask.run, ask.AskRun),
    "build_cache": (build_cache.run, build_cache.BuildCacheRun),
    "build_index": (build_index.run, build_index.BuildIndexRun),
    "build_ramp": (build_ramp.run, build_ramp.BuildRampRun),
    "build_trajectories": (build_trajectories.run, build_trajectories.BuildTrajectoriesRun),
    "evaluate": (evaluate.run, evaluate.EvalRun),
    "export_hf": (export_hf.run, export_hf.ExportRun),
    "train_dapo": (train_dapo.run, train_dapo.DapoRun),
    "train_sft": (train_sft.run, train_sft.SftRun),
}
TOWNS = [
    "Oslo",
    "Bergen",
    "Paris",
    "Lyon",
    "Rome",
    "Milan",
    "Madrid",
    "Seville",
    "Berlin",
    "Munich",
    "Vienna",
    "Graz",
]


def run(repository, main, config, **overrides):
    """What `python -m masksearch_jax.MAIN --config=configs/CONFIG` does, in this process."""
    fn, schema = MAINS[main]
    argv = [main, f"--config={repository / 'configs' / config}"]
    argv += [f"--config.{k.replace('__', '.')}={v}" for k, v in overrides.items()]
    result = []
    cli.run(lambda cfg: result.append(fn(cfg)), schema, argv)
    return result[0]


def failure(capsys, repository, main, config, **overrides):
    """The one line on stderr, after what was dropped, of a command that must fail; its status."""
    with pytest.raises(SystemExit) as end:
        run(repository, main, config, **overrides)
    *before, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ")
    assert not any("Traceback" in line for line in before)
    return end.value.code, last.removeprefix("error: ")


def passages():
    for i, town in enumerate(TOWNS):
        text = (
            f"{town} is a town that was founded in {1100 + 7 * i} by King Harald on the river "
            f"Glomma, and its university was opened in {1811 + i} by the physicist Marie Curie."
        )
        yield Passage(f"town:{i}", town, text)


def write_lines(path, rows):
    lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def question(i, gold):
    return {
        "qid": f"q{i}",
        "dataset": "towns",
        "question": f"When was {TOWNS[i]} founded?",
        "answers": [str(1100 + 7 * i)],
        "gold": gold,
    }


def build(repository, place, **overrides):
    settings = {
        "corpus__path": place / "towns.jsonl",
        "corpus__questions": place / "questions.jsonl",
        "folder": place / "out",
        "ramp__heldout_fraction": 0.3,
    }
    return run(repository, "build_ramp", "build_ramp.py", **(settings | overrides))
