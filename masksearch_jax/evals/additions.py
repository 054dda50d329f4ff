"""What a finished evaluation can be given: a user's measures, verdicts, leakage, differences."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from masksearch_jax.agents.judge import served_of
from masksearch_jax.core import stamp
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import write_json, write_lines
from masksearch_jax.core.schema import describe_keys
from masksearch_jax.core.types import JsonObject, has_answer
from masksearch_jax.evals import comparison, judging, leaked, own_metrics
from masksearch_jax.evals.results import RESULTS, Bootstrap
from masksearch_jax.evals.rows import TRAJECTORIES, Rows, by_place
from masksearch_jax.evals.suites import Suite
from masksearch_jax.ramp.survey import CleanConfig
from masksearch_jax.runtime import storage

VERDICTS = "verdicts.jsonl"  # in the folder of an evaluation


def keys() -> list[str]:
    """Keys that decide what is added and bind no trajectory."""
    return [k.name for k in describe_keys(EvalRun) if k.name.startswith("judge.")]


def check_added(cfg: EvalRun) -> None:
    """Raises ConfigError where what a finished evaluation is to be given is not there."""
    if cfg.eval.compare and not (storage.path(cfg.eval.compare) / RESULTS).exists():
        raise ConfigError(
            f"config.eval.compare is {cfg.eval.compare!r}, which holds no {RESULTS}; it must name "
            "the folder of a finished evaluation"
        )
    if cfg.eval.leakage and not Path(cfg.eval.leakage).exists():
        raise ConfigError(
            f"config.eval.leakage is {cfg.eval.leakage!r}, which is not there; it must name the "
            "folder that build_ramp wrote, or a JSONL file of passages"
        )
    if cfg.eval.leakage and next(leaked.trained_on(cfg.eval.leakage), None) is None:
        raise ConfigError(
            f"config.eval.leakage is {cfg.eval.leakage!r}, which holds no text that was trained "
            "on: neither train.jsonl or rl.jsonl in ramp, questions or statements, nor passages"
        )


def check_judge(cfg: EvalRun, loaded: Sequence[Suite]) -> None:
    """Raises JudgeError for a judge that does not call the first known answer right."""
    examples = (example for suite in loaded for example in suite.examples)
    known = next(filter(has_answer, examples), None)
    if cfg.judge.base_url and known:
        judging.check_judge(cfg.judge, known)


def added(cfg: EvalRun, workdir: epath.Path, summary: JsonObject) -> JsonObject:
    """eval.json with own measures, verdicts, leakage and differences, as they are asked for."""
    if not (cfg.eval.metrics or cfg.judge.base_url or cfg.eval.leakage or cfg.eval.compare):
        return summary
    read = Rows(workdir / TRAJECTORIES)
    how = Bootstrap(cfg.eval.bootstrap, cfg.eval.seed)
    if cfg.eval.metrics:
        own_metrics.add(cfg.eval.metrics, workdir / TRAJECTORIES, summary, how)
    if cfg.judge.base_url:
        _add_verdicts(cfg, workdir, read, summary, how)
    if cfg.eval.leakage:
        ngram = CleanConfig().ngram
        summary["leakage"] = leaked.told(read, cfg.eval.leakage, ngram, how)
    if other := cfg.eval.compare:
        theirs = json.loads((storage.path(other) / RESULTS).read_text())
        mine = by_place(read)
        summary["compare"] = comparison.compare(mine, summary["suites"], other, theirs, how)
    write_json(workdir / RESULTS, summary)
    return summary


def _add_verdicts(
    cfg: EvalRun, workdir: epath.Path, read: Rows, summary: JsonObject, how: Bootstrap
) -> None:
    """The verdicts of a judge beside those of others; it is the measure `judge` from here on.

    A judge is a model, by its name and what tells its weights from others, with a prompt. Asked
    again, its verdicts take the place of its own.
    """
    verdicts = judging.judged(read, cfg.judge, cfg.eval.max_tool_failures)
    prompt_hash = stamp.hash_of(judging.prompt_of(cfg.judge))
    served = served_of(cfg.judge)
    judge = {"model": cfg.judge.model, "prompt": prompt_hash, "fingerprint": served}
    results: JsonObject = {}
    for (suite, method), cell in judging.cells(read, verdicts, how).items():
        results.setdefault(suite, {})[method] = cell
        summary["results"][suite][method][own_metrics.JUDGE] = cell
    others = [one for one in summary.get("judges", ()) if not judge.items() <= one.items()]
    summary["judge"], summary["judges"] = judge, [*others, judge | {"results": results}]
    told = ((*row.place, row.example.id, v) for row, v in zip(read, verdicts, strict=True))
    names = ("suite", "method", "id", "verdict")
    mine = (judge | dict(zip(names, values, strict=True)) for values in told)
    kept = [one for one in _verdicts(workdir) if not judge.items() <= one.items()]
    lines = (json.dumps(one) for one in itertools.chain(kept, mine))
    write_lines(workdir / VERDICTS, lines)


def _verdicts(workdir: epath.Path) -> list[JsonObject]:
    """The lines of verdicts.jsonl, none where there is no such file."""
    path = workdir / VERDICTS
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []
