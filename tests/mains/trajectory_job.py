"""The job of `build_trajectories` by agents: towns, a good model, the command, its outcomes."""

import json
import re

from masksearch_jax import build_trajectories
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.types import Demonstration, Passage, RampExample, Span
from masksearch_jax.search import bm25

RIVERS = ("Glomma", "Drava", "Sava", "Tisza", "Warta", "Oder", "Ebro", "Duero")


def town(n: int) -> tuple[Passage, RampExample]:
    river = f"{RIVERS[n % len(RIVERS)]} {n}"
    text = f"Town {n} is a town on the river {river}, founded by its bishop."
    start = text.index(river)
    span = Span(start, start + len(river), river, "PLACE")
    masked = text[:start] + "[mask]" + text[span.end :]
    return (
        Passage(f"p{n}", f"Town {n}", text),
        RampExample(f"e{n}", f"p{n}", f"Town {n}", masked, text, (span,)),
    )


def write_towns(folder, count):
    passages, examples = zip(*map(town, range(count)), strict=True)
    bm25.build(passages, folder / "index")
    write_jsonl(folder / "ramp" / "train.jsonl", examples)


def number_of(body: dict) -> int:
    return int(re.search(r"Town (\d+)", body["messages"][1]["content"])[1])


def agent(body: dict) -> str:
    """What a good model would say: told apart by the reply that the prompt asks for."""
    system, user = (m["content"] for m in body["messages"][:2])
    n = number_of(body)
    if '"queries"' in system:
        return json.dumps({"queries": [f"Town {n}", f"river of Town {n}", "town on a river"]})
    if '"verdict"' in system:
        return json.dumps({"reason": "It is the same.", "verdict": "correct"})
    if '"action"' in system:
        found = re.search(rf"Town {n} is a town .*bishop\.", user.partition("Results:")[2])
        said = {"thought": "Here it is.", "action": "answer", "answer": found and found[0]}
        return json.dumps(said)
    return json.dumps({"thought": "I look for the town.", "need": f"Where is Town {n}?"})


def llm_config(endpoint, folder, **changes) -> LLMConfig:
    values = {
        "base_url": endpoint.url,
        "api_key_env": "MASKSEARCH_TEST_NO_SUCH_KEY",
        "concurrency": 8,
        "timeout": 30.0,
        "deadline": 60.0,
        "backoff": 0.01,
        "cache": str(folder / "replies.sqlite"),
    }
    return LLMConfig(**values | changes)


def run(folder, llm, **changes):
    values = {
        "folder": str(folder),
        "kinds": ("ramp",),
        "search": SearchConfig("bm25", str(folder / "index"), "", 2, 2, 3, 10.0, 2),
        "max_searches": 3,
        "demonstrations": 0,
        "seed": 0,
        "teacher": "agents",
        "llm": llm,
    }
    return build_trajectories.run(build_trajectories.BuildTrajectoriesRun(**values | changes))


def outcomes(folder):
    """Example id → reason, "" for a demonstration; each id once."""
    made = read_jsonl(folder / "demonstrations" / "train.jsonl", Demonstration)
    lost = read_jsonl(folder / "demonstrations" / "train.rejected.jsonl", Rejection)
    pairs = [(d.example_id, "") for d in made] + [(r.example_id, r.reason) for r in lost]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)
