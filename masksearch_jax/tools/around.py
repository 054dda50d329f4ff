"""What a user's tool may have around it as search does: answers shared and kept, a bounded rate.

Which it has is said by its own attributes; see `core.tools.TextTool`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.search.cache import CachedSearch
from masksearch_jax.search.rate import LimitedSearch, RateLimit
from masksearch_jax.search.recorded import RecordedAnswers
from masksearch_jax.search.shared import SharedSearch

_FINGERPRINT, _RATE = "fingerprint", "requests_per_second"


def is_kept(tool: Any) -> bool:
    """Whether its answers depend on the request alone, so that they may be kept."""
    return hasattr(tool, _FINGERPRINT)


def is_replayed(tool: Any, name: str, cfg: SearchConfig) -> bool:
    """Whether it is not asked: this package's own tools ask nobody else, and are not replayed."""
    return cfg.replay and (is_kept(tool) or ":" in name)


def of_tool(
    tool: Any, name: str, said: str, cfg: SearchConfig
) -> Callable[[SearchTool], SearchTool]:
    """What puts around a tool's answers what the tool and `cfg` want.

    name: as the config has it; its answers lie in `cfg.cache` under it and its fingerprint. said:
    how messages call it. Raises ConfigError for an attribute of another type, and for a replay
    from nothing.
    """
    rate = getattr(tool, _RATE, 0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate < 0:
        raise ConfigError(f"{said} has {_RATE} {rate!r}; it must be a number of at least 0")
    fingerprint = getattr(tool, _FINGERPRINT, "")
    if not isinstance(fingerprint, str):
        raise ConfigError(f"{said} has {_FINGERPRINT} {fingerprint!r}; it must be a text")
    if is_replayed(tool, name, cfg):
        _check_replay(tool, said, cfg)

    def put(answers: SearchTool) -> SearchTool:
        if cfg.recorded and is_replayed(tool, name, cfg):
            return RecordedAnswers(cfg.recorded, tool.name, said)
        if rate:
            key = f"{_RATE} of {said}"
            answers = LimitedSearch(answers, RateLimit(rate), cfg.timeout, key)
        if not is_kept(tool):
            return answers
        if cfg.cache:
            answers = CachedSearch(
                answers,
                cfg.cache,
                mode="replay" if cfg.replay else "use",
                name=f"tool:{name}",
                fingerprint=fingerprint,
                max_bytes=cfg.cache_bytes,
            )
        return SharedSearch(answers, cfg.memory)

    return put


def _check_replay(tool: Any, said: str, cfg: SearchConfig) -> None:
    """Raises ConfigError where nothing has its answers."""
    if cfg.recorded:
        return
    if not cfg.cache:
        raise ConfigError(
            f"{said} is replayed from search.cache or search.recorded, and neither names a file"
        )
    if not is_kept(tool):
        raise ConfigError(
            f"{said} has no fingerprint: search.cache has none of its answers to replay; replay "
            "what trajectories recorded (search.recorded), or give it a fingerprint"
        )
