"""What `evaluate` asks, by which methods, and what is made of the answers."""

from __future__ import annotations

import dataclasses
from typing import Literal

from masksearch_jax.core.schema import key, seed_key, share

CONTROLS = ("no_search", "random")  # methods that are not answered by the configured search


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is evaluated, by which methods, on how much."""

    suites: tuple[str, ...] = key(
        ("ramp", "questions"),
        (
            "ramp, questions, source_hidden and, where they were built, statements of the folder "
            "`data`, and NAME=PATH, files of questions; "
            "source_hidden is RAMP with search that hides the masked passage, on examples whose "
            "facts other passages repeat."
        ),
        content="named",
    )
    methods: tuple[str, ...] = key(
        ("agent", "no_search", "random"), "Of closed_book, rag, agent, no_search, random."
    )
    examples: int = key(1000, "Items of each suite, the same ones for every method.", least=1)
    aliases: str = key(
        "",
        (
            "File of other names of answers that are accepted too, by the `answer_id` of a "
            "question: 2WikiMultihopQA's id_aliases.json, as its script v1.1 reads; empty: none."
        ),
        content="text",
    )
    suite_examples: tuple[str, ...] = key(
        (), "NAME=NUMBER: items of a suite that has another number."
    )
    strata: Literal["shares", "even"] = key(
        "shares",
        (
            "Items are of each type in its share of the suite's file, or of all types alike, as "
            "long as each lasts."
        ),
    )
    temperature: float = key(
        1.0, "Of evaluation rollouts, in place of rollout.temperature; 0: greedy.", least=0
    )
    bootstrap: int = key(1000, "Resamples of the 95% interval.", least=1)
    seed: int = seed_key(
        "Of the choice of items and of the resamples; rollout.seed is that of rollouts."
    )
    metrics: tuple[str, ...] = key(
        (),
        "Further measures, package.module:function of an example and its trajectory.",
        harmless=True,
    )
    compare: str = key(
        "",
        ("Folder of another evaluation, to which paired differences are told; empty: of none."),
        harmless=True,
    )
    leakage: str = key(
        "",
        (
            "What was trained on, the folder that build_ramp wrote or a JSONL file of passages: "
            "items that share a passage, title or text with it are told apart; empty: not looked "
            "for."
        ),
        harmless=True,
    )
    whole_replies: bool = key(
        False,
        (
            "Of closed_book and rag: a reply without <answer> is scored whole, as of a model that "
            "was not trained to write the tag."
        ),
    )
    difficulty: bool = key(
        False, "Of RAMP: what makes a span hard, and what came of it, as a table and a plot."
    )
    lemmatizer: str = key(
        "",
        (
            "An installed spaCy pipeline by whose lemmas FanOutQA's accuracy compares words, "
            "en_core_web_sm as its authors do; empty: words as they are written."
        ),
    )
    retries: int = key(
        3, "Of an item whose search failed or whose time ran out.", harmless=True, least=0
    )
    max_tool_failures: float = share(
        0.01, "Share of such items, after that, beyond which the run ends with 1.", harmless=True
    )
    max_bad_fraction: float = share(
        0.01,
        "Share of items that cannot be run, found before any is, that is tolerated.",
        harmless=True,
    )
