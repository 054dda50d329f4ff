"""What made an evaluation: model, tokenizer, index, config, versions, and what was left out."""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence

from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals.lost import Lost
from masksearch_jax.evals.suites import Suite
from masksearch_jax.runtime import installed, run_record

NO_LOGPROBS = "none: an endpoint gives text, no token ids and no log-probabilities"


def model_of(cfg: EvalRun, pinned: str, fingerprint: str, served: str) -> JsonObject:
    """Where the model is, the hash of its folder and the step of its checkpoint, or its endpoint.

    pinned: `config.init` with the step that was read, where it holds checkpoints. fingerprint: of
    the folder when it was read; a training may have written to it since. served: what the endpoint
    tells of the weights behind its model.
    """
    if cfg.endpoint.base_url:
        asked = {"endpoint": cfg.endpoint.base_url, "model": cfg.endpoint.model}
        return asked | {"fingerprint": served, "logprobs": NO_LOGPROBS}
    step = pinned.rpartition("/")[2] if pinned != cfg.init else ""
    return {
        "folder": cfg.init,
        "hash": fingerprint,
        "step": int(step) if step.isdecimal() else None,
        "is_random": not cfg.init,
        "logprobs": "in trajectories.jsonl, of sampled tokens",
    }


def provenance(
    cfg: EvalRun, model: JsonObject, tokenizer: str, tool: SearchTool | None
) -> JsonObject:
    """What does not depend on how it went. tokenizer: its fingerprint; tool: the configured one."""
    searched = {"kind": cfg.search.kind, "index": cfg.search.index}
    if cfg.search.service:
        searched = {"kind": cfg.search.kind, "url": cfg.search.service}
    return {
        "model": model,
        "tokenizer": {"folder": cfg.tokenizer, "fingerprint": tokenizer},
        "search": searched | {"fingerprint": _fingerprint(tool)},
        "config": dataclasses.asdict(cfg),
        "seeds": {"items": cfg.eval.seed, "rollouts": cfg.rollout.seed},
        "versions": run_record.versions(),
        "commit": installed.commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _fingerprint(tool: SearchTool | None) -> str:
    """Of what is searched; "" where the tool tells none, as a service that is gone by now."""
    try:
        return getattr(tool, "fingerprint", "")
    except SearchError:
        return ""


def suite_of(
    suite: Suite,
    asked: int,
    lost: Sequence[Lost],
    failures: Mapping[str, int],
) -> JsonObject:
    """Of a suite: its file, whose rules, how many items; lost and failed searches by method."""
    own: dict[str, Counter[str]] = {}
    for item in lost:
        if item.suite == suite.name:
            own.setdefault(item.method, Counter())[item.reason] += 1
    return {
        "path": str(suite.path),
        "sha256": suite.sha256,
        "metric": suite.metric,
        "rules": sorted({suite.rules_name(e) for e in suite.examples}),
        "language": "zh" if suite.is_chinese else "en",
        "rows": len(suite.examples) + suite.left_out.total(),
        "left_out": dict(suite.left_out),
        "items": asked,
        "lost": {method: dict(reasons) for method, reasons in own.items()},
        "tool_failures": dict(failures),
    }
