"""What DAPO and its rollouts are told that cannot work together, or does nothing together."""

from __future__ import annotations

from collections.abc import Sequence

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.loss_config import check_loss
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import check_idle
from masksearch_jax.rl import rewards
from masksearch_jax.rollout import sampling


def check_sampling(dapo: DapoConfig, rollout: RolloutConfig, tools: Sequence[str] = ()) -> None:
    """Raises ConfigError for settings that cannot work on any mesh. tools: besides search."""
    sampler = sampling.sampler_of(rollout)
    if sampler.is_greedy:
        raise ConfigError(
            f"config.rollout.temperature is {rollout.temperature}; to train, it must be at least "
            f"{sampling.COLDEST:g}"
        )
    rewards.check_reward(dapo, rollout.max_turns, tools)
    check_loss(dapo, dapo.minibatches)
    if sampler.has_filters and not dapo.allow_filters:
        raise ConfigError(
            f"config.rollout samples with top_k {rollout.top_k}, top_p {rollout.top_p}, min_p "
            f"{rollout.min_p}: tokens left out make the sampler's log-probabilities differ from "
            "the trainer's; turn them off, or set config.dapo.allow_filters"
        )
    if not 0 <= dapo.overlong_buffer <= rollout.max_new_tokens:
        raise ConfigError(
            f"config.dapo.overlong_buffer is {dapo.overlong_buffer}; it must lie in 0.."
            f"config.rollout.max_new_tokens, {rollout.max_new_tokens}"
        )
    if not dapo.overlong_buffer:
        instead = "choose a dapo.overlong_buffer"
        check_idle(dapo, "config.dapo", "dapo.overlong_buffer=0", instead, overlong_penalty=0.0)
    if rollout.in_flight != "drop" and not rollout.max_staleness:
        raise ConfigError(
            f"config.rollout.in_flight is {rollout.in_flight}, which does nothing with "
            "rollout.max_staleness=0: what is in flight is too old for the next step, and begins "
            "again; choose a max_staleness, or in_flight=drop"
        )
    if dapo.oversample > 1 and rollout.in_flight == "drop":
        raise ConfigError(
            f"config.dapo.oversample is {dapo.oversample:g}, which does nothing with "
            "config.rollout.in_flight drop: each step ends all that it begins; choose "
            "in_flight=keep or rebuild, or oversample=1"
        )
    if dapo.keep_rollouts < 0:
        raise ConfigError(
            f"config.dapo.keep_rollouts is {dapo.keep_rollouts}; it must be a share up to 1, a "
            "number above 1, or 0 for none"
        )
    if dapo.group_size < 2:
        raise ConfigError(
            f"config.dapo.group_size is {dapo.group_size}; it must be at least 2: a sample is "
            "compared with the others of its prompt"
        )
