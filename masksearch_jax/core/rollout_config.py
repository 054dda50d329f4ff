"""How trajectories are sampled: the section of every main that runs the rollout engine."""

from __future__ import annotations

import dataclasses
from typing import Literal

from masksearch_jax.core.schema import key, seed_key, share


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How trajectories are sampled. All numbers of tokens are of one trajectory."""

    slots: int = key(
        256, "Trajectories open at once, if the KV cache holds them.", harmless=True, least=1
    )
    decode_share: tuple[float, ...] = key(
        (0.25, 0.5, 0.75),
        (
            "Shares of the slots that decode at once, ascending: a program for each, the smallest "
            "that will do is run; what is open beyond the last share waits for search. Programs of "
            "other sizes round differently in the last bit: with one alone nothing ever does."
        ),
        harmless=True,
    )
    max_len: int = key(6144, "Tokens of prompt, sampled text and observations together.", least=1)
    kv_tokens: int = key(
        0,
        (
            "Tokens that the KV cache holds, all slots together; 0: slots times max_len; with less "
            "a slot opens once pages are free."
        ),
        harmless=True,
        least=0,
    )
    page_tokens: int = key(
        128, "The KV cache is handed out in pages of so many tokens.", harmless=True, least=1
    )
    kv_dtype: Literal["compute", "float32", "bfloat16", "int8"] = key(
        "compute", "Of the KV cache; compute: compute.dtype."
    )
    attention: Literal["auto", "xla", "pallas"] = key(
        "auto",
        (
            "How a decode step reads the KV cache; pallas: by a kernel, on TPUs and GPUs; auto: by "
            "it where it takes the head_dim and the page_tokens."
        ),
        harmless=True,
    )
    weights: Literal["whole", "shared"] = key(
        "whole",
        (
            "Where devices share weights (mesh.fsdp, mesh.context): whole, in a copy on each while "
            "they sample, in the compute dtype; or shared as they are, gathered layer by layer for "
            "every token."
        ),
        harmless=True,
    )
    tick_tokens: int = key(
        64,
        "Tokens decoded per tick; between ticks searches and requests are taken up.",
        harmless=True,
        least=1,
    )
    extend_tokens: int = key(
        512, "Prompt or observation tokens written per slot and tick.", harmless=True, least=1
    )
    chunk_tokens: int = key(
        128,
        "Of extend_tokens, those written at once: a chunk is chunk_rows rows of so many, padded.",
        harmless=True,
        least=1,
    )
    chunk_rows: int = key(
        8,
        (
            "Trajectories that a chunk writes for. Where few wait at once, fewer rows of more "
            "chunk_tokens are less padding."
        ),
        harmless=True,
        least=1,
    )
    max_turns: int = key(4, "Searches allowed; the turn after the last must answer.", least=0)
    tool_turns: tuple[str, ...] = key(
        (), "TOOL=NUMBER: of these max_turns, at most so many calls of one tool."
    )
    max_new_tokens: int = key(1536, "Tokens sampled.", least=1)
    max_turn_tokens: int = key(0, "Tokens sampled per turn; 0: no limit of its own.", least=0)
    max_observation_tokens: int = key(768, "Tokens per search result.", least=0)
    answer_tokens: int = key(
        256,
        (
            "Kept free for the answer: observations are cut to it, and turns where max_new_tokens "
            "is more."
        ),
        least=0,
    )
    corrections: int = key(1, "Invalid actions answered by a hint instead of the end.", least=0)
    temperature: float = key(1.0, "Of sampling; 0: greedy.", least=0)
    top_k: int = key(
        0,
        (
            "Likeliest tokens sampled from; 0: all. With a filter log-probabilities are not the "
            "trainer's: training wants dapo.allow_filters."
        ),
        least=0,
    )
    top_p: float = share(1.0, "Share of the likeliest tokens sampled from; 1: all.")
    min_p: float = share(0.0, "Least probability sampled, as a share of the likeliest's; 0: any.")
    max_repeats: int = key(
        16, "A phrase so often in a row ends the trajectory; 0: it never does.", least=0
    )
    deadline: float = key(
        600.0,
        (
            "Seconds of a trajectory by the clock, those of its searches included and of updates "
            "not; 0: any number. What it ends trains nobody."
        ),
        harmless=True,
        least=0,
    )
    in_flight: Literal["drop", "keep", "rebuild"] = key(
        "drop",
        (
            "What is in flight when sampling stops before all are done: dropped; kept with its "
            "cache, which other weights wrote; or kept, the cache rebuilt by the next weights."
        ),
    )
    max_staleness: int = key(
        1,
        (
            "Versions since the oldest token that is trained on: what is older starts again, and "
            "no group is carried over that would be."
        ),
        least=0,
    )
    seed: int = seed_key("Of all that is sampled.")
