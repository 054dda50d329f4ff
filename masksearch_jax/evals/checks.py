"""What no evaluation can be made of, whatever its model and its suites are."""

from __future__ import annotations

from masksearch_jax.agents.llm_client import check_endpoint
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.evals import own_metrics, suites
from masksearch_jax.evals.endpoint import settings_of
from masksearch_jax.evals.items import check_methods
from masksearch_jax.runtime.process import process_count


def check_asked(cfg: EvalRun) -> None:
    """Raises ConfigError for suites, methods, measures and endpoints that cannot be."""
    check_methods(cfg.eval)
    suites.paths(cfg.eval, cfg.data)
    own_metrics.functions(cfg.eval.metrics)
    if cfg.judge.own_model:
        raise ConfigError(
            "config.judge.own_model is for training; of evaluate the judge is an endpoint, "
            "config.judge.base_url, such as serve_model's"
        )
    if cfg.judge.base_url:
        check_endpoint(cfg.judge, "config.judge")
    if cfg.endpoint.base_url:
        check_endpoint(settings_of(cfg), "config.endpoint")


def check_processes(cfg: EvalRun) -> None:
    """Raises ConfigError for what one process does, where this is one of several."""
    alone = {
        "endpoint.base_url": (cfg.endpoint.base_url, "an endpoint is asked by one process"),
        "eval.difficulty": (cfg.eval.difficulty, "one process measures how likely spans are"),
    }
    for name, (value, why) in alone.items():
        if value and process_count() > 1:
            raise ConfigError(
                f"config.{name} is {value!r}, and this is one of {process_count()} processes: "
                f"{why}; start one, with JAX_COORDINATOR_ADDRESS unset"
            )
