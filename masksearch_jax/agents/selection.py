"""Self-evolving distillation, its logic alone: what to keep of a student's trajectories.

As in MaskSearch, section 3.2: a student trained on demonstrations samples trajectories of its own;
those that a judge accepts become the next demonstrations. Nothing here samples, trains or writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from masksearch_jax.agents.scripted_teacher import Rejection, is_shown, task_name
from masksearch_jax.core import chinese, markup, scoring
from masksearch_jax.core.config import ComputeConfig, MeshConfig, ModelConfig, PromptConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import key, required, section, share
from masksearch_jax.core.types import (
    Demonstration,
    Example,
    QAExample,
    RampExample,
    Segment,
    Trajectory,
)

# Demonstrations: fewer are not different from each other.
FEWEST = 2


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a trajectory must be to be accepted."""

    min_recall: float = share(
        1.0, "Of the masked spans, each in its slot; of a question's answer its strict F1."
    )
    grounded: bool = key(True, "What a trajectory fills in must stand in what it read.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A model of ours as the teacher: it samples, and rules (or an LLM too) say what is kept."""

    init: str = required("Folder in HF format or of checkpoints, or a GGUF file.")
    tokenizer: str = required("Folder with tokenizer.json.")
    samples: int = key(4, "Trajectories per example.", least=1)
    rules: Rules = section(Rules)
    judge: Literal["rules", "llm"] = key(
        "rules", "llm: what the rules accept the LLM judge must accept too."
    )
    model: ModelConfig = section(ModelConfig)
    compute: ComputeConfig = section(ComputeConfig)
    mesh: MeshConfig = section(MeshConfig)
    prompt: PromptConfig = section(PromptConfig)
    rollout: RolloutConfig = section(RolloutConfig)


@dataclasses.dataclass(frozen=True)
class Floors:
    """Below this share of what it was at first, a measure of diversity has collapsed; 0: never."""

    distinct_2: float = share(0.5, "Different bigrams / all bigrams.")
    novelty: float = share(0.5, "1 - self-BLEU.")
    shape_entropy: float = key(0.25, "Entropy of the trajectories' shapes.", least=0)


@dataclasses.dataclass(frozen=True)
class EvolveConfig:
    """What an iteration samples, keeps and trains on."""

    iterations: int = key(3, "After the first demonstrations.", least=0)
    teacher: Literal["scripted", "agents"] = key("scripted", "Of the first demonstrations.")
    thoughts: Literal["full", "short"] = key(
        "full", "Of the scripted teacher, as in build_trajectories."
    )
    language: str = key("en", "Of the agents' prompts: en or zh.")
    seed_examples: int = key(3000, "Training examples that the teacher is given.", least=1)
    seed_masks: int = key(
        2, "Most masks in the teacher's examples; students sample on up to ramp.max_masks.", least=1
    )
    split: Literal["train", "rl"] = key(
        "rl", "Of the examples that students sample on; rl: of articles new to the teacher."
    )
    pool_size: int = key(1200, "Examples that a student samples on in an iteration.", least=1)
    samples: int = key(4, "Trajectories of each.", least=1)
    hard_share: float = share(
        0.25, "Most of the pool that may be examples which nobody has solved so far."
    )
    max_tries: int = key(
        3, "Iterations in which a hard item is sampled before it is given up.", least=1
    )
    per_example: int = key(2, "Accepted trajectories of an example kept in an iteration.", least=1)
    max_failed: float = share(
        0.01, "Share of attempts that may fail for want of an endpoint or a search tool."
    )
    rules: Rules = section(Rules)
    judge: Literal["rules", "llm"] = key(
        "rules", "llm: what the rules accept the LLM judge must accept too."
    )
    restart: bool = key(
        False, "Train from the first weights each time, not from the last student's."
    )
    diversity_texts: int = key(300, "Trajectories that diversity is measured on.", least=FEWEST)
    floors: Floors = section(Floors)
    on_collapse: Literal["stop", "warn"] = key(
        "warn", "What to do where diversity has collapsed, or too few were kept to measure it."
    )


def to_demonstration(
    trajectory: Trajectory, example: Example, teacher: str, sample: int
) -> Demonstration:
    """The trajectory as text; its turns carry 0 seconds, so that the same tokens give one file."""
    return Demonstration(
        id=f"{example.id}/{teacher}/{sample}",
        example_id=example.id,
        task=task_name(example),
        teacher=teacher,
        segments=tuple(s for s in trajectory.segments if s.author != "prompt"),
        turns=tuple(dataclasses.replace(t, seconds=0.0) for t in trajectory.turns),
    )


def rejection(example: Example, trajectory: Trajectory, rules: Rules) -> Rejection | None:
    """Why a trajectory is no demonstration by rule, or None.

    Reasons: its status unless `answered` (`detail`: the error of its last search); malformed;
    no_search; repeated_search (a turn asks what an earlier one asked); spans_wrong (`detail`: the
    recall, of a question the strict F1); not_grounded (`detail`: the text).
    """
    if trajectory.status != "answered":
        error = trajectory.turns[-1].error if trajectory.turns else ""
        return Rejection(example.id, trajectory.status, error)
    tools = trajectory.tools
    if not markup.is_well_formed([s for s in trajectory.segments if s.author != "prompt"], tools):
        return Rejection(example.id, "malformed")
    if not trajectory.searches:
        return Rejection(example.id, "no_search")
    if len({(t.tool, t.queries) for t in trajectory.turns}) < len(trajectory.turns):
        return Rejection(example.id, "repeated_search")
    answer = markup.extract_answer(trajectory.text_by("policy"), tools) or ""
    score, wanted = _score(example, answer)
    if score < rules.min_recall:
        return Rejection(example.id, "spans_wrong", f"{score:.3f}")
    shown = [Segment("tool", text) for text in markup.shown_by_search(trajectory.segments, tools)]
    if isinstance(example, QAExample) and example.calls:  # what no passage says, a tool does
        shown = list(trajectory.segments)
    unread = [text for text in wanted if not is_shown(text, shown)]
    if rules.grounded and unread:
        return Rejection(example.id, "not_grounded", unread[0])
    return None


def _score(example: Example, answer: str) -> tuple[float, list[str]]:
    """How well the answer holds what was asked for and no more, and what it must have read.

    Neither a slot nor a question's answer pays for a passage that is copied whole.
    """
    if isinstance(example, RampExample):
        return scoring.span_recall(example, answer), [s.text for s in example.spans]
    closed = any(map(scoring.is_verdict, example.answers))
    found = scoring.strict_f1(answer, example.answers, scoring.rules_of(example))
    return found, [] if closed else [answer]


# ---- filtering and merging


def digest(demonstration: Demonstration) -> str:
    """Equal for demonstrations that say the same about the same example."""
    said = [demonstration.example_id, *(s.text for s in demonstration.segments)]
    normal = "\0".join(" ".join(text.split()) for text in said)
    return hashlib.sha256(normal.encode("utf-8", "replace")).hexdigest()


def select(
    accepted: Iterable[Demonstration], per_example: int, seed: int
) -> tuple[list[Demonstration], dict[str, int]]:
    """At most `per_example` different demonstrations of each example, and the others counted.

    Of those that say the same one is kept. Of more than may be kept each shape (searches, and
    queries in each) gives one before any gives a second, so that shapes do not die out; else chance
    decides, the same for the same seed. In the order of the examples.
    """
    by_example: dict[str, dict[str, Demonstration]] = defaultdict(dict)
    given = 0
    for demonstration in accepted:
        given += 1
        by_example[demonstration.example_id].setdefault(digest(demonstration), demonstration)
    kept: list[Demonstration] = []
    for example_id, different in by_example.items():
        drawn = list(different.values())
        random.Random(f"{seed}/{example_id}").shuffle(drawn)
        seen: Counter[tuple[int, ...]] = Counter()
        ranks = []
        for demonstration in drawn:
            shape = tuple(len(turn.queries) for turn in demonstration.turns)
            ranks.append(seen[shape])
            seen[shape] += 1
        ranked = [drawn[i] for i in sorted(range(len(drawn)), key=ranks.__getitem__)]
        kept += sorted(ranked[:per_example], key=lambda d: d.id)
    unique = sum(map(len, by_example.values()))
    return kept, {"duplicate": given - unique, "enough of its example": unique - len(kept)}


def merge(
    old: Iterable[Demonstration], new: Iterable[Demonstration]
) -> tuple[list[Demonstration], int]:
    """All demonstrations, each saying once, the old first; how many new ones said nothing new."""
    found = {digest(d): d for d in old}
    before, given = len(found), 0
    for demonstration in new:
        given += 1
        found.setdefault(digest(demonstration), demonstration)
    return list(found.values()), given - (len(found) - before)


# ---- the pool


@dataclasses.dataclass(frozen=True)
class Pool:
    """Examples to sample next: new ones, and hard ones that came back."""

    new: tuple[RampExample, ...]
    hard: tuple[RampExample, ...]
    given_up: tuple[str, ...]  # ids tried as often as allowed

    @property
    def examples(self) -> tuple[RampExample, ...]:
        return self.new + self.hard


def next_pool(
    examples: Sequence[RampExample],
    tried: Mapping[str, int],
    solved: Collection[str],
    *,
    size: int,
    hard_share: float,
    max_tries: int,
) -> Pool:
    """The next `size` examples, in their order: those never tried, after hard ones come back.

    examples: all there are. tried: id → iterations in which it was sampled. solved: ids of which a
    trajectory was accepted; the others are hard, and at most `hard_share` of the pool. One tried
    `max_tries` times is given up. Fewer than `size` are left at the end.
    """
    unsolved = [e for e in examples if e.id in tried and e.id not in solved]
    hard = [e for e in unsolved if tried[e.id] < max_tries][: round(size * hard_share)]
    new = [e for e in examples if e.id not in tried][: size - len(hard)]
    given_up = tuple(e.id for e in unsolved if tried[e.id] >= max_tries)
    return Pool(tuple(new), tuple(hard), given_up)


# ---- figures


def acceptance(
    examples: Iterable[RampExample],
    accepted: Iterable[Demonstration],
    samples: int,
    failed: Mapping[str, int],
) -> dict[str, dict[str, float]]:
    """By number of masks and for `all`: trajectories sampled and accepted, examples and solved.

    failed: id → attempts that ended for no fault of the model. These are no trajectories, and an
    example that has no others is left out.
    """
    masks = {e.id: str(e.k) for e in examples}
    by_id = Counter(d.example_id for d in accepted)
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for example_id, k in masks.items():
        sampled = samples - failed.get(example_id, 0)
        if not sampled:
            continue
        for row in (rows[k], rows["all"]):
            row["examples"] += 1
            row["sampled"] += sampled
            row["accepted"] += by_id[example_id]
            row["solved"] += by_id[example_id] > 0
    return {
        k: dict(rows[k]) | {"rate": rows[k]["accepted"] / rows[k]["sampled"]} for k in sorted(rows)
    }


def lengths(demonstrations: Sequence[Demonstration]) -> dict[str, float]:
    """Means over demonstrations: words that the agent wrote, searches, queries of a search."""
    said = (s.text for d in demonstrations for s in d.segments if s.author == "policy")
    words = [len(chinese.spaced(text).split()) for text in said]
    turns = [t for d in demonstrations for t in d.turns]
    count = max(len(demonstrations), 1)
    return {
        "words": sum(words) / count,
        "searches": len(turns) / count,
        "queries": sum(len(t.queries) for t in turns) / max(len(turns), 1),
    }


def collapsed(
    diversity: Mapping[str, float], first: Mapping[str, float], floors: Mapping[str, float]
) -> list[str]:
    """What has fallen below its floor, a share of what it `first` was; in words, [] for nothing.

    A measure that was 0 at first cannot collapse.
    """
    found = []
    for name, kept in floors.items():
        floor = kept * first[name]
        if diversity[name] < floor:
            found.append(
                f"{name} is {diversity[name]:.3f}, below {kept:g} of the {first[name]:.3f} that "
                "it was at first"
            )
    return found
