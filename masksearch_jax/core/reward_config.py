"""The keys of section `dapo` that say what a trajectory is paid for."""

from __future__ import annotations

import dataclasses

from masksearch_jax.core.schema import key, share


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a finished trajectory earns, and how its reward is computed."""

    reward: str = key(
        "penalised",
        (
            "recall: of the masked spans or the answer, as in the paper; f1: of the answer, "
            "quantities all or nothing; penalised: recall, quantities all or nothing, less for "
            "what a fill or an answer has in excess; judge: the verdict of the model in section "
            "judge; or a function of yours, package.module:function."
        ),
    )
    format_weight: float = share(
        0.1, "Share of the reward for a well-formed trajectory; a function of yours has none."
    )
    length_penalty: float = key(
        0.6,
        (
            "Of the penalised reward: taken off for an excess as long as the right text. Above "
            "one half, a second guess as long as the right text costs more than recall can gain."
        ),
        least=0,
    )
    min_searches: int = key(0, "A trajectory with fewer searches is not well-formed.", least=0)
    coverage_weight: float = key(
        0.0,
        (
            "Added for the share of masked spans, of supporting articles, or for an answer, that "
            "search has shown."
        ),
        least=0,
    )
    gold_hit_weight: float = key(
        0.0,
        "Added for the share of the passages known to hold the answer that search has shown.",
        least=0,
    )
    no_answer_penalty: float = key(
        0.0,
        (
            "Taken off the advantage of the tokens of a last turn that does not answer. All "
            "advantages of a group have a deviation of 1."
        ),
        least=0,
    )
    no_search_penalty: float = key(
        0.0,
        "Taken off the advantage of the last turn of a trajectory that never searched.",
        least=0,
    )
    malformed_turn_penalty: float = key(
        0.0,
        "Taken off the advantage of a turn that is not an optional thought and one action.",
        least=0,
    )
    repeated_query_penalty: float = key(
        0.0,
        "Taken off the advantage of a turn, times the share of its queries asked before.",
        least=0,
    )
    unreadable_call_penalty: float = key(
        0.0,
        "Taken off the advantage of a call, times the share that its tool could not read.",
        least=0,
    )
    reward_workers: int = key(
        8,
        "Rewards computed at once, beside the engine; of verdicts judge.concurrency says.",
        harmless=True,
        least=1,
    )
    reward_timeout: float = key(
        300.0, "Seconds of one reward; 0: any number.", harmless=True, least=0
    )
    max_reward_failures: float = share(
        0.1,
        (
            "Share of a step's samples that may be left without a reward (an exception, NaN); "
            "beyond it the run ends with 1. With a judge: of its verdicts; beyond it is waited "
            "for."
        ),
        harmless=True,
    )
