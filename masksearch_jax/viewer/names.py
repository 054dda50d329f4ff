"""What the report calls things: metrics with their group and unit, suites, methods, places."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Metrics of training by group, in the order they are shown: key → (name, unit).
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Reward and answers": {
        "reward": ("Reward", "mean per trajectory"),
        "accuracy": ("Accuracy", "share of trajectories that are right"),
        "answer": ("Answer score", "mean per trajectory"),
        "answer_length": ("Answer length", "words / words of the right answer"),
        "format": ("Format", "share well-formed"),
        "coverage": ("Coverage", "share of what the answer needs that search has shown"),
        "gold_hit": ("Gold passages found", "share of the known passages"),
        "reward_spread": ("Spread of rewards", "mean deviation within a group"),
        "overlong": ("Taken off for length", "mean per trajectory"),
        "judge_agreement": ("Judge agrees with exact match", "share of verdicts"),
        "judge_unreadable": ("Judge unreadable", "share of replies"),
        "ramp_reward": ("Reward of RAMP", "mean per trajectory"),
        "ramp_accuracy": ("Accuracy of RAMP", "share of trajectories that are right"),
        "qa_reward": ("Reward of questions", "mean per trajectory"),
        "qa_accuracy": ("Accuracy of questions", "share of trajectories that are right"),
        "pass_rate": ("Pass rate", "share of right samples, mean over all prompts seen"),
        "distinct_answers": ("Different answers", "share within a group"),
        "enumeration": ("Answers that list alternatives", "share of answers to questions"),
        "copied": ("Copied from documents", "share of an answer's words"),
    },
    "Held-out examples": {
        "heldout_span_recall": ("Held-out span recall", "mean over masked spans"),
        "heldout_questions_recall": ("Held-out recall of questions", "of the answer's words"),
        "heldout_format_rate": ("Held-out format", "share well-formed"),
        "heldout_searches": ("Held-out searches", "per trajectory"),
        "heldout_source_hit": ("Held-out source found", "share of trajectories"),
        "heldout_source_first": ("Held-out source first", "share of trajectories"),
        "heldout_source_reciprocal_rank": ("Held-out reciprocal rank of the source", "mean"),
        "heldout_gold_recall": ("Held-out gold passages found", "share of them"),
        "heldout_lost": ("Held-out examples lost", "share that ended for no fault of the policy"),
    },
    "Curriculum": {
        "lesson": ("Lesson in force", "number, from 0"),
        "lesson_steps": ("Steps in the lesson", ""),
        "gate": ("Recall that the gate reads", "mean over the lesson's kinds"),
        "prompts_known": ("Prompts seen", "so far"),
        "prompts_resting": ("Prompts at rest", "in the next step"),
    },
    "Loss": {
        "loss": ("Loss", "per token"),
        "agent_nll": ("Loss on the agent's tokens", "nats per token"),
        "agent_confident": ("Agent's tokens above even odds", "share"),
        "entropy": ("Entropy", "nats per sampled token"),
        "grad_norm": ("Gradient norm", "before clipping"),
        "lr": ("Learning rate", ""),
        "loss_weight": ("Tokens trained on", "weighted, per step"),
    },
    "Searches, length and endings": {
        "searches": ("Searches", "per trajectory"),
        "source_hit": ("Source found", "share of trajectories"),
        "source_first": ("Source first of all that was shown", "share of trajectories"),
        "source_reciprocal_rank": ("Reciprocal rank of the source", "mean; 0 where not shown"),
        "gold_recall": ("Gold passages found", "share of them"),
        "sampled_tokens": ("Length", "sampled tokens per trajectory"),
        "truncated": ("Truncated", "share of trajectories"),
        "no_answer": ("Ended without an answer", "share of trajectories"),
        "no_search": ("Ended without a search", "share of trajectories"),
        "malformed_turn": ("Malformed turns", "per trajectory"),
        "repeated_query": ("Repeated queries", "shares of a turn, per trajectory"),
        "tool_failures": ("Tool failures", "share of trajectories"),
        "out_of_time": ("Ended by the clock", "share of trajectories"),
        "reward_failures": ("Samples without a reward", "share"),
        "ramp_searches": ("Searches of RAMP", "per trajectory"),
        "qa_searches": ("Searches of questions", "per trajectory"),
        "unreadable_call": ("Calls that no tool could read", "per trajectory"),
        "answers_opened": ("Answers opened", "tags per trajectory"),
        "tags_per_turn": ("Tags opened", "per turn"),
        "thoughts": ("Turns that begin with a thought", "share"),
        "repeating": ("Cut as repeating", "share of trajectories"),
    },
    "Policy and sampler": {
        "ratio": ("Ratio of the update", "new to old probability"),
        "clip_low": ("Clipped from below", "share of tokens"),
        "clip_high": ("Clipped from above", "share of tokens"),
        "kl_k1": ("KL to the old policy, k1", "nats per token"),
        "kl_k3": ("KL to the old policy, k3", "nats per token"),
        "kl_penalty": ("Penalty for the KL", "mean, weighted"),
        "floor_penalty": ("Penalty below the likelihood floor", "mean, weighted"),
        "tis_weight": ("Importance weight", "trainer to sampler, truncated"),
        "sampler_gap": ("Trainer and sampler apart", "mean difference of logprobs"),
        "sampler_gap_max": ("Trainer and sampler apart, most", "largest difference of logprobs"),
        "sampler_kl": ("KL of trainer and sampler", "nats per token"),
        "staleness": ("Staleness", "versions, mean per token"),
        "staleness_max": ("Staleness, most", "versions"),
        "dropped_tokens": ("Dropped tokens", "share"),
        "masked_sequences": ("Samples left out as too far apart", "share"),
        "skipped": ("Skipped updates", "of the run"),
        "skipped_in_a_row": ("Skipped updates in a row", ""),
        "skipped_longest": ("Skipped updates in a row, most", "of the run"),
        "rollbacks": ("Rollbacks", "of the run"),
    },
    "Groups": {
        "groups_kept": ("Groups trained on", "with spread in reward"),
        "groups_sampled": ("Groups sampled", "per step"),
        "groups_carried": ("Groups of earlier steps", "per step"),
        "groups_expired": ("Groups lost as too old", "per step"),
        "refills": ("Rounds of further prompts", "per step"),
        "updates": ("Updates", "per step"),
        "row_fill": ("Rows filled", "share of the batch's tokens"),
    },
    "Speed": {
        "tokens_per_second": ("Throughput", "tokens per second"),
        "rollout_tokens_per_second": ("Rollout throughput", "sampled tokens per second"),
        "decode_occupancy": ("Slots that decode", "share"),
        "host_share": ("Host's share of time", ""),
        "sample_seconds": ("Sampling", "seconds per step"),
        "update_seconds": ("Updating", "seconds per step"),
        "logprob_seconds": ("Log-probabilities before the update", "seconds per step"),
        "reward_seconds": ("Rewards", "seconds of all workers"),
        "reward_wait_seconds": ("Waiting for rewards", "seconds per step"),
        "search_wait_seconds": ("Waiting for search", "seconds per step"),
        "device_seconds": ("Device", "seconds per step"),
        "host_seconds": ("Host", "seconds per step"),
        "overlapped_seconds": ("Host while the device works", "seconds per step"),
    },
    "Rollout engine": {
        "open_trajectories": ("Open trajectories", ""),
        "queue_length": ("Prompts waiting", ""),
        "searches_in_flight": ("Searches in flight", ""),
        "search_cache_hits": ("Searches answered from the cache", "share"),
        "prompts_shared": ("Prompts shared within a group", "share"),
        "prefix_tokens": ("Prompt tokens found in another prompt's cache", "tokens per step"),
        "kv_pages_used": ("Pages of the KV cache in use", "share"),
        "evicted": ("Evicted trajectories", "per step"),
        "restarted": ("Restarted trajectories", "per step"),
    },
}
OTHER = "Other"
# Metrics that are named after what they are of: the key → (group, name, unit) with that in it.
_OF_SOMETHING: tuple[tuple[str, tuple[str, str, str]], ...] = (
    (r"heldout_k(\d+)_span_recall",
     ("Held-out examples", "Held-out span recall, {} masks", "mean over masked spans")),
    (r"heldout_(\w+)_recall", ("Held-out examples", "Held-out recall of {}", "")),
    (r"calls_(\w+)", ("Searches, length and endings", "Calls of {}", "per trajectory")),
    (r"failures_(\w+)", ("Searches, length and endings", "Failed calls of {}", "per trajectory")),
    (r"unreadable_(\w+)",
     ("Searches, length and endings", "Unreadable calls of {}", "per trajectory")),
    (r"reward_(\w+)", ("Reward and answers", "Reward: {}", "mean per trajectory")),
)  # fmt: skip

# Figures of an iteration of self-evolution: key → (name, unit).
ITERATIONS = {
    "span_recall": ("Held-out span recall", "with its 95% interval"),
    "accepted": ("Accepted", "share of what students sampled"),
    "demonstrations": ("Demonstrations", "trained on"),
    "new": ("New demonstrations", ""),
    "sampled": ("Sampled", "trajectories"),
    "distinct_2": ("Distinct-2", "of thoughts and queries"),
    "self_bleu": ("Self-BLEU", "the higher the more alike"),
    "query_overlap": ("Query overlap", "within an example"),
    "shapes": ("Plan shapes", "number"),
    "shape_entropy": ("Plan shapes", "entropy in bits"),
    "words": ("Length", "words that the agent wrote"),
    "searches": ("Searches", "per demonstration"),
}

SUITES = {
    "ramp": "Held-out RAMP",
    "source_hidden": "RAMP, its own passage hidden",
    "questions": "Questions",
    "statements": "Statements: true, false, not told",
    "hotpotqa": "HotpotQA",
    "fanoutqa": "FanOutQA",
    "musique": "MuSiQue",
    "2wiki": "2WikiMultiHopQA",
    "2wikimultihopqa": "2WikiMultiHopQA",
    "bamboogle": "Bamboogle",
    "freshqa": "FreshQA",
    "nq": "Natural Questions",
    "triviaqa": "TriviaQA",
    "popqa": "PopQA",
    "fever": "FEVER",
    "rl/ramp": "RAMP in training",
}
METHODS = {
    "agent": "agent",
    "rag": "retrieval, no agent",
    "closed_book": "closed book",
    "no_search": "no search",
    "random": "random retriever",
    "rollout": "rollout of training",
}
SCORES = {
    "span_recall": "span recall",
    "recall": "recall",
    "f1": "F1",
    "em": "exact match",
    "precision": "precision",
    "loose": "loose accuracy",
    "strict": "strict accuracy",
    "judge": "judge",
    "reward": "reward",
    "answer": "answer",
    "format": "format",
    "format_rate": "format rate",
    "source_hit": "source found",
    "source_first": "source first",
    "source_reciprocal_rank": "reciprocal rank of the source",
    "gold_recall": "gold passages found",
    "searches": "searches",
    "turns": "turns",
    "tokens": "tokens",
    "answer_tokens": "answer length",
    "tool_failures": "tool failures",
}
STATUSES = {
    "answered": "answered",
    "no_answer": "no answer",
    "out_of_tokens": "out of tokens",
    "out_of_turns": "out of turns",
    "repeating": "repeating",
    "out_of_time": "out of time",
    "tool_failure": "tool failure",
}

# Folders of runs, in the order of the recipe; cells of launch/cells.sh are RAMP → questions.
TRAININGS = {
    "ramp_sft": "RAMP SFT",
    "ramp_dapo": "RAMP DAPO",
    "qa_sft": "QA SFT",
    "qa_dapo": "QA DAPO",
    "more_sft": "more SFT",
    "self_sft": "SFT with own trajectories",
    "control_sft": "control SFT",
    "control_dapo": "control DAPO",
}
CELLS = {
    "start": "the model as it was",
    "none-sft": "none → SFT",
    "none-rl": "none → RL",
    "sft-sft": "SFT → SFT",
    "rl-sft": "RL → SFT",
    "sft-rl": "SFT → RL",
    "rl-rl": "RL → RL",
}
_EVALUATED = {"init": "before training", "control": "control: QA alone"} | {
    name: f"after {words}" for name, words in TRAININGS.items()
}
_ORDER = ["init", *TRAININGS, "control", *CELLS]
# Steps of a build that make one thing of another: what is read, what is kept.
STEPS = {"ramp": "ramp: passages to masked paragraphs"}


def words(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ").strip()


def stage(name: str) -> str:
    """What a stage of a recipe is called: as its training, or as what its evaluation is called."""
    evaluated = name.removeprefix("evaluate_")
    if evaluated != name:
        return f"evaluation {_EVALUATED.get(evaluated) or words(evaluated)}"
    return TRAININGS.get(name) or words(name)


def place(parts: tuple[str, ...], *, is_evaluation: bool = False) -> str:
    """What a folder of a run is called; "" of the run's own folder."""
    named = []
    for part in parts:
        if part in ("eval", "iterations"):
            continue
        if part.isdigit():
            named.append(f"student {part}")
        elif is_evaluation and part in _EVALUATED:
            named.append(_EVALUATED[part])
        else:
            named.append(TRAININGS.get(part) or CELLS.get(part) or words(part))
    return " · ".join(named)


def place_order(parts: tuple[str, ...]) -> tuple:
    """Sorts folders in the order of the recipe; others by name, numbers as numbers."""
    return tuple(_part_order(part) for part in parts)


def _part_order(part: str) -> tuple:
    if part in _ORDER:
        return (0, _ORDER.index(part), "")
    number = re.search(r"\d+", part)
    return (1, int(number[0]) if number else -1, part)


def metric(key: str) -> tuple[str, str, str]:
    """Group, name and unit of a metric of training."""
    for group, members in GROUPS.items():
        if key in members:
            return group, *members[key]
    for pattern, (group, name, unit) in _OF_SOMETHING:
        if match := re.fullmatch(pattern, key):
            return group, name.format(words(match[1])), unit
    return OTHER, words(key).capitalize(), ""


def metric_order() -> list[str]:
    """Metrics of training in the order that they are shown in."""
    return [key for members in GROUPS.values() for key in members]


def ordered(known: Iterable[str], present: Iterable[str]) -> list[str]:
    """Keys of `present`, those of `known` first and in its order, the others after them."""
    keys, first = list(present), list(known)
    return [k for k in first if k in keys] + sorted(k for k in keys if k not in first)


def main_score(present: Iterable[str]) -> str:
    """The score that a trajectory is read by where its suite does not say: "" for none."""
    keys = list(present)
    return next((k for k in (*SCORES, *keys) if k in keys), "")
