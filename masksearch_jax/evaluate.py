"""Evaluates a model on the suites, with its search tool, without it, and with a random retriever.

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:qwen2.5-1.5b --config.init=FOLDER

Writes WORKDIR/eval.json and one line per trajectory to WORKDIR/trajectories.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from masksearch_jax.core import retrieval
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.files import write_json, writing
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import Example, QAExample, RampExample, Trajectory, to_json
from masksearch_jax.data import prompt
from masksearch_jax.evals import suites
from masksearch_jax.models.load import check_vocabulary, initial
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.ramp.examples import read_jsonl
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.runtime import cli, storage
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import check_sources, open_tool
from masksearch_jax.training.supervisor import Preemption

# Condition → search.kind; "search" takes the kind that is configured.
CONDITIONS = {"search": "", "no_search": "none", "random": "random"}


def tools(cfg: EvalRun) -> dict[str, SearchTool]:
    """The search tool of each condition. Raises ConfigError for an unknown one."""
    found = {}
    for name in cfg.eval.conditions:
        if name not in CONDITIONS:
            raise ConfigError(f"config.eval.conditions has {name!r}; {nearest(name, CONDITIONS)}")
        kind = CONDITIONS[name] or cfg.search.kind
        found[name] = open_tool(dataclasses.replace(cfg.search, kind=kind))
    return found


def load_suites(cfg: EvalRun) -> dict[str, list[Example]]:
    """All of each suite's held-out file."""
    found: dict[str, list[Example]] = {}
    for name in cfg.eval.suites:
        if name == "ramp":
            found[name] = read_jsonl(Path(cfg.data) / "ramp" / "heldout.jsonl", RampExample)
        elif name == "two_hop":
            found[name] = read_jsonl(Path(cfg.data) / "questions" / "heldout.jsonl", QAExample)
        else:
            near = nearest(name, ("ramp", "two_hop"))
            raise ConfigError(f"config.eval.suites has {name!r}; {near}")
    return found


def count(cfg: EvalRun, suite: str, condition: str) -> int:
    """Examples of a suite in a condition, the first ones of its file, which is shuffled."""
    first = suite == cfg.eval.suites[0] and condition == "search"
    return cfg.eval.examples if first else cfg.eval.baseline_examples


def rollout_suite(
    engine: Engine,
    model: Any,
    examples: Sequence[Example],
    prompts: Sequence[np.ndarray],
    progress: Progress,
) -> list[Trajectory]:
    """One trajectory per example, in their order."""
    sources = map(retrieval.source_of, examples)
    requests = [
        Request(str(i), ids, i, source=source)
        for i, (ids, source) in enumerate(zip(prompts, sources, strict=True))
    ]
    found: dict[int, Trajectory] = {}
    for trajectory in engine.run(model, requests):
        i = int(trajectory.example_id)
        found[i] = dataclasses.replace(trajectory, example_id=examples[i].id)
        progress.update(progress.done + 1)
    return [found[i] for i in range(len(examples))]


def run(cfg: EvalRun, model: Any = None) -> dict[str, Any]:
    """{suite: {condition: {metric: {value, low, high, n}}}}; `model` saves loading `cfg.init`."""
    workdir = storage.path(cfg.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    vocab = Vocab.load(cfg.tokenizer)
    check_vocabulary(cfg.model, vocab.size)
    by_suite, by_condition = load_suites(cfg), tools(cfg)
    if "search" in by_condition:
        check_sources(by_condition["search"], cfg.search, by_suite.get("ramp", ()))
    mesh = make_mesh(cfg.mesh)
    if model is None:
        model = initial(cfg.init, cfg.model, cfg.compute, mesh, 0, cfg.base)
    rollout = dataclasses.replace(cfg.rollout, temperature=cfg.eval.temperature)
    results: dict[str, Any] = {}
    total = sum(
        min(len(examples), count(cfg, suite, condition))
        for suite, examples in by_suite.items()
        for condition in by_condition
    )
    with (
        jax.set_mesh(mesh),
        Progress("evaluate", total) as progress,
        writing(workdir / "trajectories.jsonl") as file,
        Preemption() as preemption,
    ):
        for condition, tool in by_condition.items():
            with Engine(vocab, tool, rollout, cfg.search, check=preemption.check) as engine:
                for suite, examples in by_suite.items():
                    examples = examples[: count(cfg, suite, condition)]
                    prompts = [
                        np.asarray(
                            vocab.encode(prompt.render(e, cfg.prompt.style, vocab)), np.int32
                        )
                        for e in examples
                    ]
                    found = rollout_suite(engine, model, examples, prompts, progress)
                    scores = [suites.score(e, t) for e, t in zip(examples, found, strict=True)]
                    results.setdefault(suite, {})[condition] = suites.summarise(
                        scores, cfg.eval.bootstrap, cfg.eval.seed
                    )
                    for e, t, s in zip(examples, found, scores, strict=True):
                        row = {"suite": suite, "condition": condition, "scores": s}
                        row |= to_json(t) | {"example": to_json(e)}
                        row["tokens"] = [vocab.decode([i]) for i in t.ids.tolist()]
                        file.write(json.dumps(row) + "\n")
    write_json(workdir / "eval.json", results)
    return results


def table(results: Mapping[str, Any]) -> str:
    """The results as lines of text: one per suite and condition."""
    lines = []
    for suite, conditions in results.items():
        for condition, metrics in conditions.items():
            cells = "  ".join(
                f"{name} {m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
                for name, m in metrics.items()
            )
            lines.append(f"{suite:8} {condition:10} {cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(lambda cfg: print(table(run(cfg))), EvalRun, resumes=True)
