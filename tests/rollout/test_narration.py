"""What a person is told of a trajectory: the same, however much has come since the last time."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np

from masksearch_jax.core.tools import Answering, Searching, Toolbox
from masksearch_jax.rollout import narration
from masksearch_jax.rollout.episode import Request, Rules
from masksearch_jax.rollout.narration import Narrator
from masksearch_jax.testing.models import TextVocab
from tests.rollout.word_engine import GREEDY, SEARCH, colours

VOCAB = TextVocab("red", "blue", "go", "12", " ", "<think>", "</think>", "<add>", "</add>")
ROLLOUT = dataclasses.replace(
    GREEDY, max_len=2048, max_new_tokens=1500, max_observation_tokens=60, max_turns=2, corrections=9
)
# Calls and turns that are no action, two of which a correction follows although they are calls.
TURNS = st.sampled_from(
    [
        ("go",), ("<think>", "red ", "</think>", " blue "), (), ("<add>", "12"),
        ("go ", "<search>", "red", "</search>"), ("<search>", "</search>"),
        ("<think>", "go", "</think>", "<add>", "12", "</add>"), ("<add>", "</add>"),
        ("<search>", "blue", "</search>"),
    ]
)  # fmt: skip


class Add:
    name, offers, usage, example = "add", "a sum", "put numbers", "1 2"

    def answer(self, request: str) -> str:
        return "19"


def states(turns):
    """What was to be seen of an episode after each token and each text of a tool; its tools."""
    tools = Toolbox(Searching(colours(), SEARCH), [Answering(Add(), "the tool add")])
    rules = Rules(VOCAB, ROLLOUT, tools)
    episode = rules.open(Request("e", np.asarray(VOCAB.encode("go"), np.int32), 0))
    found = []
    for turn in (*turns, ("<answer>", "red", "</answer>")):
        ids = [i for word in turn for i in VOCAB.encode(word)] + [*VOCAB.eos_ids][:1]
        for i in ids:
            asked = rules.read(episode, np.asarray([i]), np.zeros(1, np.float32), 0)
            found.append(narration.seen_of(episode))
            if isinstance(asked, tuple):
                episode.queries = asked
                room = rules.observation_room(episode)
                rules.observe(episode, rules.call(episode.tool, asked, "", room), 0.0)
                found.append(narration.seen_of(episode))
            if asked is not None or not episode.turn_tokens:
                break
        if isinstance(asked, str):
            return found, asked, tools
    raise AssertionError("the episode has not ended")


def merged(events):
    """Pieces of a plan side by side are one."""
    for is_plan, some in itertools.groupby(events, lambda event: "plan" in event):
        if is_plan:
            yield {"plan": "".join(event["plan"] for event in some)}
        else:
            yield from some


@hypothesis.given(st.lists(TURNS, max_size=5), st.data())
def test_all_at_once_is_told_as_piece_by_piece(turns, data):
    """A reader may be late: of a correction and the next search in one go none is the other."""
    found, status, tools = states(turns)
    last = found[-1]
    at_once = list(merged(Narrator(tools.limits).end(last, status)))
    met = data.draw(st.lists(st.sampled_from(range(len(found))), unique=True).map(sorted))
    for reader in (range(len(found)), met):
        narrator, told = Narrator(tools.limits), []
        for i in reader:
            told += narrator.tell(found[i])
        assert list(merged([*told, *narrator.end(last, status)])) == at_once
    calls = [event for event in at_once if "documents" in event or "result" in event]
    assert len(calls) == len(last.shown)
    said = [segment for segment in last.segments if segment.author == "tool"]
    assert sum("note" in event for event in at_once) == len(said) - len(calls)
    (ended,) = (event for event in at_once if event.keys() & {"answer", "failed"})
    assert ended is at_once[-1]


def test_a_correction_and_the_search_after_it_are_told_in_their_order_at_once():
    turns = [("go",), ("<search>", "red", "</search>")]
    found, status, tools = states(turns)
    told = list(Narrator(tools.limits).end(found[-1], status))
    kinds = list(itertools.chain(*told))
    assert kinds == ["plan", "note", "search", "documents", "answer"]
    assert told[1]["note"].startswith("No action.")
    assert [d["id"] for d in told[3]["documents"]] == ["red"]
