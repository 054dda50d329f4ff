"""Searches that trajectories recorded, answered again with no tool but the passages."""

import dataclasses
import gzip
import json

import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError, find_recorded
from masksearch_jax.core.types import QueryRecord, Turn, to_json
from masksearch_jax.search.bm25 import build
from masksearch_jax.search.open import open_recorded, open_tool
from masksearch_jax.search.tool import FakeSearch, NoSearch, RandomSearch
from tests.search.fruit import FRUIT

CFG = SearchConfig("http", "", "http://127.0.0.1:1", 2, 3, 2, timeout=1.0, workers=1)


@pytest.fixture
def index(tmp_path):
    build(FRUIT, tmp_path / "index")
    return str(tmp_path / "index")


def record(fruit, path, *asked, **changes):
    """Writes a trajectory whose turns made these searches; what each of them showed.

    method: of an evaluation, as the row names it.
    """
    row = {"method": changes.pop("method")} if "method" in changes else {}
    cfg = dataclasses.replace(CFG, **changes)
    shown, turns = [], []
    for queries in asked:
        passages, found = find_recorded(fruit, queries, cfg, "")
        shown.append(passages)
        turns.append(to_json(Turn(queries, (), (), 0.1, found=found)))
    path.write_bytes(gzip.compress(json.dumps({"turns": turns, "step": 3} | row).encode()))
    return shown


def test_recorded_searches_are_answered_again_without_their_service(fruit, index, tmp_path):
    folder = tmp_path / "run" / "rollouts"
    folder.mkdir(parents=True)
    first = record(fruit, folder / "1.jsonl.gz", ("red", "tropic"), ("yellow",))
    (second,) = record(fruit, folder / "2.jsonl.gz", ("red",), top_k=3)
    (folder / "0.jsonl").write_text('{"no": "turns"}\n')
    cfg = dataclasses.replace(CFG, index=index, replay=True, recorded=str(tmp_path / "run"))
    tool = open_tool(cfg)
    assert find_recorded(tool, ("red", "tropic"), cfg, "")[0] == first[0]
    assert find_recorded(tool, ("yellow",), cfg, "")[0] == first[1]
    deeper = dataclasses.replace(cfg, top_k=3)
    assert find_recorded(tool, ("red",), deeper, "")[0] == second
    (hits,) = tool.search(["red"], 2)
    assert (hits.cached, hits.scores) == (True, fruit.search(["red"], 2)[0].scores)
    with pytest.raises(SearchError, match="'tropic' wants 3 passages, and 2 were asked for when"):
        tool.search(["tropic"], 3)
    called = Turn(("apple",), (), (), 0.1, found=(QueryRecord(()),), tool="calculate")
    (folder / "3.jsonl").write_text(json.dumps({"turns": [to_json(called)]}) + "\n")
    with pytest.raises(SearchError, match="query 'apple' is not recorded in"):
        open_tool(cfg).search(["red", "apple"], 2)
    assert open_tool(dataclasses.replace(cfg, kind="none")).search(["apple"], 2) == [[]]


def test_what_a_control_found_is_no_answer_of_the_tool(fruit, index, tmp_path):
    control = RandomSearch(FRUIT[3:])
    (random,) = record(control, tmp_path / "0.jsonl.gz", ("red",), method="random", top_k=3)
    record(NoSearch(), tmp_path / "1.jsonl.gz", ("red", "rock"), method="no_search")
    (shown,) = record(fruit, tmp_path / "2.jsonl.gz", ("red",), method="agent")
    cfg = dataclasses.replace(CFG, index=index, replay=True, recorded=str(tmp_path))
    assert find_recorded(open_tool(cfg), ("red",), cfg, "")[0] == shown
    with pytest.raises(SearchError, match="query 'rock' is not recorded in"):
        open_tool(cfg).search(["rock"], 2)
    deeper = dataclasses.replace(cfg, top_k=3)
    assert find_recorded(open_recorded(cfg, "random"), ("red",), deeper, "")[0] == random
    (tmp_path / "0.jsonl.gz").unlink()
    message = r"recorded a search by method random; leave random out of config\.eval\.methods"
    with pytest.raises(SearchError, match=message):
        open_recorded(cfg, "random")


def test_a_query_with_several_results_is_not_answered(fruit, index, tmp_path):
    record(fruit, tmp_path / "0.jsonl.gz", ("red", "tropic"))
    other = FakeSearch({"red": FRUIT[:1], "tropic": fruit.search(["tropic"], 2)[0]})
    record(other, tmp_path / "1.jsonl.gz", ("red", "tropic"))
    cfg = dataclasses.replace(CFG, index=index, replay=True, recorded=str(tmp_path))
    tool = open_tool(cfg)
    assert tool.search(["tropic"], 2) == fruit.search(["tropic"], 2)
    with pytest.raises(SearchError, match="query 'red' has several results in"):
        tool.search(["red"], 2)
    record(FakeSearch({"red": FRUIT[3:]}), tmp_path / "2.jsonl.gz", ("red",), top_k=3)
    assert open_tool(cfg).search(["red"], 3) == [list(FRUIT[3:])]  # asked with this number once
    with pytest.raises(SearchError, match="query 'red' has several results in"):
        open_tool(cfg).search(["red"], 2)


def test_a_replayed_answer_keeps_who_gave_it(fruit, index, tmp_path, capsys):
    record(fruit, tmp_path / "t.jsonl.gz", ("red",))
    cfg = dataclasses.replace(CFG, index=index, replay=True, recorded=str(tmp_path))
    build(FRUIT[::-1], index)  # another index with the same passages
    capsys.readouterr()
    tool = open_tool(cfg)
    _, (again,) = find_recorded(tool, ("red",), cfg, "")
    assert again.answered_by == fruit.fingerprint != tool.fingerprint
    said = f"recorded searches of index {fruit.fingerprint}, and search.index is {tool.fingerprint}"
    assert said in capsys.readouterr().err
    build(FRUIT, index)
    assert open_tool(cfg).fingerprint == fruit.fingerprint
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"t\.jsonl:1 is no trajectory"),
        ('{"turns": [{"queries": ["q"]}]}', "missing fields"),
        ("[1]", r"t\.jsonl:1 is no trajectory"),
        ('{"turns": []}', "no trajectory in .* recorded a search"),
    ],
)
def test_a_file_of_another_kind_is_refused(index, tmp_path, text, message):
    (tmp_path / "t.jsonl").write_text(text)
    cfg = dataclasses.replace(CFG, index=index, replay=True, recorded=str(tmp_path / "t.jsonl"))
    with pytest.raises(SearchError, match=message):
        open_tool(cfg)


def test_what_cannot_be_replayed_is_said(fruit, index, tmp_path):
    record(fruit, tmp_path / "t.jsonl.gz", ("red",))
    cfg = dataclasses.replace(CFG, index=index, replay=True, recorded=str(tmp_path / "t.jsonl.gz"))
    build(FRUIT[3:], index)
    tool = open_tool(cfg)
    with pytest.raises(SearchError, match=r"passage '[ac]', recorded in .* not in search\.index"):
        tool.search(["red"], 2)
    for changes in ({"replay": False}, {"cache": "c"}):
        with pytest.raises(SearchError, match=r"search\.recorded is what search\.replay answers"):
            open_tool(dataclasses.replace(cfg, **changes))
    with pytest.raises(SearchError, match="cannot read the recorded searches"):
        open_tool(dataclasses.replace(cfg, recorded=str(tmp_path / "none.jsonl")))
