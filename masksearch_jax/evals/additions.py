"""What a finished evaluation can be given: a judge's verdicts, leakage, paired differences."""

from __future__ import annotations

import json
from pathlib import Path

from etils import epath

from masksearch_jax.core import stamp
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import write_json, write_lines
from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals import comparison, judging, leaked
from masksearch_jax.evals.results import RESULTS, Bootstrap
from masksearch_jax.evals.rows import TRAJECTORIES, Rows, by_place
from masksearch_jax.ramp.survey import CleanConfig
from masksearch_jax.runtime import storage


def check_added(cfg: EvalRun) -> None:
    """Raises ConfigError for what no finished evaluation could be given."""
    if cfg.judge.own_model:
        raise ConfigError(
            "config.judge.own_model is for training; of evaluate the judge is an endpoint, "
            "config.judge.base_url, such as serve_model's"
        )
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


def added(cfg: EvalRun, workdir: epath.Path, found: JsonObject) -> JsonObject:
    """eval.json with verdicts, leakage and paired differences, as far as they are asked for."""
    if not (cfg.judge.base_url or cfg.eval.leakage or cfg.eval.compare):
        return found
    read = Rows(workdir / TRAJECTORIES)
    how = Bootstrap(cfg.eval.bootstrap, cfg.eval.seed)
    if cfg.judge.base_url:
        verdicts = judging.judged(read, cfg.judge, cfg.eval.max_tool_failures)
        for (suite, method), cell in judging.cells(read, verdicts, how).items():
            found["results"][suite][method]["judge"] = cell
        prompt_hash = stamp.hash_of(judging.prompt_of(cfg.judge))
        found["judge"] = {"model": cfg.judge.model, "prompt": prompt_hash}
        told = ((*row.place, row.example.id, v) for row, v in zip(read, verdicts, strict=True))
        names = ("suite", "method", "id", "verdict")
        lines = (json.dumps(dict(zip(names, values, strict=True))) for values in told)
        write_lines(workdir / "verdicts.jsonl", lines)
    if cfg.eval.leakage:
        ngram = CleanConfig().ngram
        found["leakage"] = leaked.told(read, cfg.eval.leakage, ngram, how)
    if other := cfg.eval.compare:
        theirs = json.loads((storage.path(other) / RESULTS).read_text())
        mine = by_place(read)
        found["compare"] = comparison.compare(mine, found["suites"], other, theirs, how)
    write_json(workdir / RESULTS, found)
    return found
