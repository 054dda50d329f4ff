"""How a step's trajectories behave: signs of a reward that is gamed, and of a policy that decays.

Means over trajectories of all processes; what is no fault of the policy is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from masksearch_jax.core import markup, retrieval, scoring
from masksearch_jax.core.types import Example, RampExample, Trajectory
from masksearch_jax.parallel import hosts
from masksearch_jax.rl import turns
from masksearch_jax.rl.groups import Group

_RUN = 8  # words in a row that are copied, not chanced upon
_LISTED = re.compile(r"[,;/\n|、，；]|\b(?:or|and/or)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"\s*<think>\s*[^\s<]", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z]+>", re.IGNORECASE)


def figures(seen: Sequence[Group]) -> dict[str, float]:
    """Figures by name, each the mean over those that have it; all processes must call it.

    Of a trajectory: `answers_opened`, answer tags; `tags_per_turn`; `thoughts`, the share of turns
    that begin with a thought that is not empty; `repeating`, cut by the repetition guard; what
    `retrieval.sources_shown` tells. Of its answer, if there is one: `answer_length`, words / words
    of the right answer (of a masked paragraph, of the paragraph); `enumeration`, whether it lists
    alternatives that no right answer does; `copied`, the share of its words in runs of eight that
    search showed and, of a masked paragraph, the paragraph given does not hold. Of a group:
    `distinct_answers`, the share of its answers that differ from all before.
    """
    own: dict[str, list[float]] = {}
    for group in seen:
        for trajectory in group.counted:
            for name, value in _of_trajectory(group.example, trajectory).items():
                own.setdefault(name, []).append(value)
        answers = [_words(_answer(t) or "") for t in group.counted]
        if answers:
            different = len(set(map(tuple, answers))) / len(answers)
            own.setdefault("distinct_answers", []).append(different)
    return hosts.means(own)


def _of_trajectory(example: Example, trajectory: Trajectory) -> dict[str, float]:
    text = trajectory.text_by("policy")
    each = turns.texts(trajectory)
    opened = sum(text.lower().count(f"<{tag}>") for tag in markup.tags_of(trajectory.tools))
    found = {
        "answers_opened": float(text.lower().count("<answer>")),
        "tags_per_turn": opened / max(len(each), 1),
        "thoughts": float(np.mean([bool(_THOUGHT.match(turn)) for turn in each])) if each else 0.0,
        "repeating": float(trajectory.status == "repeating"),
    }
    found |= retrieval.sources_shown(example, trajectory.turns)
    answer = _answer(trajectory)
    return found | (_of_answer(example, trajectory, answer) if answer else {})


def _answer(trajectory: Trajectory) -> str | None:
    return markup.extract_answer(trajectory.text_by("policy"), trajectory.tools)


def _of_answer(example: Example, trajectory: Trajectory, answer: str) -> dict[str, float]:
    is_ramp = isinstance(example, RampExample)
    right = [example.paragraph] if isinstance(example, RampExample) else list(example.answers)
    words = _words(answer)
    lengths = [len(_words(text)) for text in right]
    lists = _parts(answer) > max(map(_parts, right), default=1)
    shown = (_TAG.sub(" ", s.text) for s in trajectory.segments if s.author == "tool")
    given = [example.masked] if isinstance(example, RampExample) else []
    return {
        "answer_length": len(words) / max(*lengths, 1),
        "enumeration": float(lists and not is_ramp),
        "copied": _copied(words, shown, given),
    }


def _parts(text: str) -> int:
    return len([part for part in _LISTED.split(text) if part.strip()])


def _copied(words: Sequence[str], shown: Iterable[str], given: Iterable[str]) -> float:
    """The share of words that lie in a run of eight that is in `shown`, and not in `given`."""
    own = [tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)]
    if not own:  # a short answer, the most of them: what was shown need not be read
        return 0.0
    copied = _shared(own, shown) - _shared(own, given)
    hit = np.zeros(len(words), bool)
    for start, run in enumerate(own):
        if run in copied:
            hit[start : start + _RUN] = True
    return float(hit.mean())


def _shared(runs: Sequence[tuple[str, ...]], texts: Iterable[str]) -> set[tuple[str, ...]]:
    """The runs that a text holds."""
    wanted, firsts = set(runs), {run[0] for run in runs}
    found: set[tuple[str, ...]] = set()
    for text in texts:
        words = _words(text)
        starts = (i for i, word in enumerate(words) if word in firsts)
        found.update(run for i in starts if (run := tuple(words[i : i + _RUN])) in wanted)
    return found


def _words(text: str) -> list[str]:
    return scoring.tokenise(text)
