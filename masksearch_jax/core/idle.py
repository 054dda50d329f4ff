"""Keys that the values of other keys switch off: a flag for one of them would do nothing.

What shares its section with its switch is refused there, whoever gave it. Here are sections that
several mains, or several kinds of a tool, share: a config file may fill them all, and only what a
command line names is meant for this run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from masksearch_jax.core.config import DapoRun, EvalRun, SftRun, TrainRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import Section, describe_keys
from masksearch_jax.core.search_config import SearchConfig

_SERVICES = ("http", "web", "opensearch")
_DENSE = ("dense", "hybrid")


def check_flags(cfg: Section, named: Collection[str]) -> None:
    """Raises ConfigError for a key that a command line names and nothing of this run reads.

    named: dotted keys. A value that is the key's default says nothing, and passes.
    """
    defaults = {known.name: known.default for known in describe_keys(type(cfg))}
    for idle, why in idle_keys(cfg):
        for name in sorted(named):
            if (name == idle or name.startswith(f"{idle}.")) and name in defaults:
                value = _value(cfg, name)
                if value != defaults[name]:
                    raise ConfigError(
                        f"config.{name} is {value!r}, which does nothing here: {why}; else "
                        "leave it out"
                    )


def idle_keys(cfg: Section) -> Iterator[tuple[str, str]]:
    """Dotted names of keys, and of whole sections, that nothing reads, each with what would."""
    if isinstance(cfg, SftRun) and not cfg.eval.every:
        for name in ("search", "rollout"):
            yield name, "train_sft reads it with config.eval.every above 0"
    if isinstance(cfg, TrainRun) and not cfg.eval.every:
        for name in ("data", "examples", "temperature", "seed"):
            yield f"eval.{name}", "it is read with config.eval.every above 0"
    if isinstance(cfg, DapoRun) and cfg.dapo.reward != "judge":
        yield "judge", "it is read with config.dapo.reward=judge"
    if isinstance(cfg, EvalRun):
        yield "rollout.temperature", "config.eval.temperature is read in its place"
        yield "endpoint.temperature", "config.eval.temperature is read in its place"
        for name in ("endpoint", "judge"):
            if not getattr(cfg, name).base_url:
                yield name, f"it is read with config.{name}.base_url"
    for field in dataclasses.fields(cfg):
        section = getattr(cfg, field.name)
        if isinstance(section, SearchConfig):
            for name, why in _of_search(section):
                yield f"{field.name}.{name}", why


def _of_search(cfg: SearchConfig) -> Iterator[tuple[str, str]]:
    """The keys of section `search` that its kind does not read."""
    readers = {
        "url": ("http",),
        "batch_wait": ("http",),
        "web": ("web",),
        "opensearch": ("opensearch",),
        **dict.fromkeys(("attempt_timeout", "retries", "backoff", "hedge"), _SERVICES),
        "encoder": (*_DENSE, "opensearch"),
        "nearest": _DENSE,
        **dict.fromkeys(("fusion", "rank_constant", "dense_weight", "fusion_depth"), ("hybrid",)),
    }
    for name, kinds in readers.items():
        if cfg.kind not in kinds:
            yield name, f"it is read with config.search.kind={' or '.join(kinds)}"
    if cfg.kind == "hybrid" and cfg.fusion == "score":
        yield "rank_constant", "it is read with config.search.fusion=rank"
    if cfg.kind == "hybrid" and cfg.fusion == "rank":
        yield "dense_weight", "it is read with config.search.fusion=score"
    if not cfg.rerank:
        yield "rerank_depth", "it is read with config.search.rerank"
    if not cfg.cache:
        yield "cache_bytes", "it is read with config.search.cache"


def _value(cfg: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        cfg = getattr(cfg, name)
    return cfg
