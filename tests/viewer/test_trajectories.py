"""What the page keeps of trajectories."""

from __future__ import annotations

import json

import pytest

from masksearch_jax import viewer
from masksearch_jax.core import markup, types
from masksearch_jax.testing.pages import data_of
from masksearch_jax.viewer import load, trajectories
from masksearch_jax.viewer.trajectories import Group, Tokens


@pytest.fixture(scope="module")
def data(run_folder) -> dict:
    return data_of(viewer.render([run_folder]))


def one(folder, row: dict) -> tuple[dict, dict, dict]:
    """The entry of the list, the text and the tokens of a run of one trajectory."""
    (folder / "trajectories.jsonl").write_text(json.dumps(row) + "\n")
    found = data_of(viewer.render([folder]))
    return found["main"]["rows"][0], found["texts-0"][0], found["tokens-0"]


def test_the_list_holds_what_it_is_filtered_by(tmp_path, make_trajectory):
    row, _, _ = one(tmp_path, make_trajectory(7, fill="Asia"))
    assert row.pop("id") == trajectories.name_of(
        tmp_path.name, Group(0, "", "ramp", "agent"), make_trajectory(7)
    )
    assert row == {
        "of": 0, "title": "Chad 7", "status": "answered", "score": 0, "searches": 1, "masks": 1,
        "group": "", "well_formed": True,
    }  # fmt: skip


def test_the_answer_stands_against_the_reference(tmp_path, make_trajectory):
    _, text, _ = one(tmp_path, make_trajectory(7, fill="Asia"))
    assert text["answer"] == "Chad 7 is a country of Asia."
    assert text["wanted"] == [
        {"text": "Africa", "type": "PLACE", "fill": "Asia", "is_right": False}
    ]
    _, text, _ = one(tmp_path, make_trajectory(7, fill="Asia", slots=[0.5]))
    assert text["wanted"][0]["recall"] == 0.5
    example = types.to_json(types.QAExample("q", "d", "Where?", ("Africa", "the continent")))
    _, text, _ = one(tmp_path, make_trajectory(7, example=example))
    assert text["wanted"] == [{"text": "Africa"}, {"text": "the continent"}]


def test_an_answer_that_the_prompt_opens_is_read_as_it_was_scored(tmp_path, make_trajectory):
    said = "Chad 7 is a country of Africa.</answer>"
    segments = [{"author": "prompt", "text": "Fill.<answer>"}, {"author": "policy", "text": said}]
    changes = {"segments": segments, "turns": [], "method": "closed_book", "opening": "<answer>"}
    row, text, _ = one(tmp_path, make_trajectory(7, **changes))
    assert text["answer"] == "Chad 7 is a country of Africa."
    assert text["wanted"][0]["fill"] == "Africa"
    assert row["well_formed"]
    segments = [{"author": "policy", "text": "Chad 7 is a country of Africa.<|im_end|>"}]
    whole = {"segments": segments, "turns": [], "answer": "Chad 7 is a country of Africa."}
    _, text, _ = one(tmp_path, make_trajectory(7, **whole))
    assert (text["answer"], text["wanted"][0]["fill"]) == (whole["answer"], "Africa")


def test_a_right_fill_may_have_quotes_of_another_form(tmp_path, make_trajectory):
    spans = [{"start": 8, "end": 14, "text": "O\u2019Hara", "type": "PERSON"}]
    example = {"id": "r", "passage_id": "p", "title": "t", "spans": spans}
    example |= {"masked": "She met [mask].", "paragraph": "She met O\u2019Hara."}
    said = [{"author": "policy", "text": "<answer>She met O'Hara.</answer>"}]
    _, text, _ = one(tmp_path, make_trajectory(7, example=example, segments=said, turns=[]))
    (wanted,) = text["wanted"]
    assert (wanted["fill"], wanted["is_right"]) == ("O'Hara", True)


def test_documents_are_told_apart_and_the_source_is_marked(tmp_path, make_trajectory, hostile):
    _, text, _ = one(tmp_path, make_trajectory(7))
    (turn,) = text["turns"]
    assert turn["queries"] == ["Chad", "Africa"]
    source, other = turn["documents"]
    assert source == {
        "id": "p-7",
        "title": "Chad 7",
        "text": "Chad 7: a country.",
        "kind": "source",
    }
    assert other["kind"] == ""
    assert other["text"] == f"Mali: {hostile}".replace("\ud800", "?")


def test_a_correction_takes_no_document_of_a_search(tmp_path, make_trajectory):
    """A turn that is no action is told so, in a segment of the tool, and is no call."""
    row = make_trajectory(7)
    told = markup.wrap("information", markup.correction("no_action"))
    prompt, *rest = row["segments"]
    said = [{"author": "policy", "text": "Hm."}, {"author": "tool", "text": told}]
    _, without, _ = one(tmp_path, row)
    _, text, _ = one(tmp_path, row | {"segments": [prompt, *said, *rest]})
    assert text["turns"] == without["turns"]
    assert text["segments"][1:3] == [["policy", "Hm."], ["correction", told]]


def test_a_search_tells_who_answered(tmp_path, make_trajectory):
    row = make_trajectory(7)
    by = ["http://b:1/retrieve f1", "http://a:1/retrieve f1", "http://b:1/retrieve f1", 7]
    row["turns"][0]["found"] = [{"passage_ids": [], "answered_by": name} for name in by] + [{}]
    _, text, _ = one(tmp_path, row)
    assert text["turns"][0]["answered_by"] == by[:2]
    _, text, _ = one(tmp_path, make_trajectory(7))
    assert "answered_by" not in text["turns"][0]


def test_a_call_of_another_tool_is_told_with_its_name(tmp_path, make_trajectory):
    row = make_trajectory(7)
    said = [("policy", "<calculate>1 + 1</calculate>"), ("tool", "<information>2</information>")]
    row["segments"][3:3] = [{"author": a, "text": t} for a, t in said]
    row["turns"].append({"queries": ["1 + 1"], "passage_ids": [], "titles": [], "seconds": 0.001,
                         "error": "", "tool": "calculate"})  # fmt: skip
    entry, text, _ = one(tmp_path, row | {"tools": ["search", "calculate", "a|b"]})
    assert text["tools"] == ["search", "calculate"]
    assert text["turns"][1] == {
        "queries": ["1 + 1"], "seconds": 0.001, "tool": "calculate", "documents": [],
    }  # fmt: skip
    assert (entry["searches"], entry["well_formed"]) == (1, True)
    entry, text, _ = one(tmp_path, row)  # of a run that only searches it is no turn
    assert "tools" not in text
    assert not entry["well_formed"]


@pytest.mark.parametrize("given", [{"gold": ["p-mali"]}, {"titles": ["Mali"]}])
def test_documents_that_support_a_question_are_marked(tmp_path, make_trajectory, given):
    example = {"id": "q", "dataset": "d", "question": "Where?", "answers": ["here"]} | given
    _, text, _ = one(tmp_path, make_trajectory(7, example=example))
    assert [d["kind"] for d in text["turns"][0]["documents"]] == ["", "gold"]


@pytest.mark.parametrize(
    ("body", "titles", "expected"),
    [
        ("A is one.\nB: two\nlines", ["A", "B"], ["A is one.", "B: two\nlines"]),
        ("A is one, and B.\nB: two", ["A", "B"], ["A is one, and B.", "B: two"]),
        ("nothing like it", ["A", "B"], ["nothing like it", ""]),
        ("Nothing found.", [], []),
    ],
)
def test_an_observation_is_cut_at_its_titles(body, titles, expected):
    assert trajectories.split_documents(f"<information>{body}</information>", titles) == expected


def test_tokens_are_columns(make_trajectory):
    tokens = Tokens()
    tokens.add(make_trajectory(0, advantages=[0.25] * 12))
    tokens.add({"ids": [100, 5], "sampled": [True, False], "logprobs": [-0.123456, 0.0]})
    tokens.add({})
    packed = tokens.packed()
    first, second, third = packed["rows"]
    assert [packed["table"][t] for t in first["tokens"][:2]] == [[100, "w0"], [101, "w1"]]
    assert first["sampled"] == [4, 3, 3, 2]
    assert first["logprobs"] == [-0.01, -0.5, -1, -3, -0.2]
    assert first["advantages"] == [0.25] * 5
    assert second["sampled"] == [0, 1, 1]
    assert second["logprobs"] == [-0.1235]
    assert [packed["table"][t] for t in second["tokens"]] == [[100, None], [5, None]]
    assert third is None


def test_rollouts_have_groups_rewards_and_both_logprobs(data):
    main = data["main"]
    group = next(g for g in main["groups"] if g["method"] == "rollout")
    assert (group["suite"], group["place"]) == ("rl/ramp", "RAMP DAPO")
    rows = [(i, r) for i, r in enumerate(main["rows"]) if main["groups"][r["of"]] == group]
    assert [r["group"] for _, r in rows] == [f"{s}/{g}" for s in (1, 2, 10) for g in (0, 0, 1, 1)]
    assert [r["score"] for _, r in rows[:2]] == [0, 1]
    index = rows[1][0]
    text = data["texts-0"][index]
    assert (text["advantage"], text["step"], text["trained"]) == (0.5, 1, True)
    assert text["reward"] == {
        "total": 1.0, "answer": 1.0, "format": 1.0, "accuracy": 1.0,
        "coverage": 0.5, "turn 2": -0.25,
    }  # fmt: skip
    tokens = data["tokens-0"]["rows"][index]
    assert tokens["trainer_logprobs"] == [-0.135, -0.625, -1.125, -3.125, -0.325]


def test_as_many_are_shown_as_wanted_evenly_and_the_first(run_folder):
    main = data_of(viewer.render([run_folder], 12))["main"]
    groups = main["groups"]
    shown = {(len(g["items"]), g["shown"]) for g in groups}
    assert shown == {(6, 2), (6, 3), (12, 3)}
    assert sum(g["shown"] for g in groups) == 12
    assert len(main["rows"]) == 12


def test_take_gives_what_small_groups_leave_to_others():
    groups = [Group(0, "", "", m, lines=["x"] * n) for m, n in (("a", 10), ("b", 2), ("c", 7))]
    trajectories.take(groups, 12)
    assert [len(g.lines) for g in groups] == [5, 2, 5]


def test_no_more_lines_are_held_than_twice_those_shown(tmp_path, make_trajectory):
    rows = [make_trajectory(i, method=m) for m in ("agent", "rag", "random") for i in range(40)]
    rows.append(make_trajectory(0, method="closed_book"))
    path = tmp_path / "trajectories.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = trajectories.read(load.read_run(tmp_path, "run"), 0, 10)
    assert sum(len(g.lines) for g in groups) <= 2 * (10 + 4)
    assert [len(g.ids) for g in groups] == [40, 40, 40, 1]
    trajectories.take(groups, 10)
    assert [len(g.lines) for g in groups] == [3, 3, 3, 1]
    assert [json.loads(g.lines[-1])["example_id"] for g in groups] == ["r-2", "r-2", "r-2", "r-0"]


def test_names_stay_and_differ(data, run_folder):
    ids = [row["id"] for row in data["main"]["rows"]]
    assert len(set(ids)) == len(ids)
    again = data_of(viewer.render([run_folder], 12))["main"]["rows"]
    assert {row["id"] for row in again} <= set(ids)


def test_an_empty_trajectory_does_not_stop_the_page(tmp_path):
    lines = '{}\n{"ids": 3, "turns": [null], "segments": [1], "example": {"spans": [4]}}\n'
    (tmp_path / "trajectories.jsonl").write_text(lines)
    assert len(data_of(viewer.render([tmp_path]))["main"]["rows"]) == 2


def test_a_trajectory_of_the_contract_is_kept(tmp_path, make_trajectory):
    fields = types.Trajectory.__dataclass_fields__
    made = {k: v for k, v in make_trajectory(3).items() if k in fields}
    row, text, tokens = one(tmp_path, types.to_json(types.from_json(types.Trajectory, made)))
    assert row["title"] == "r-3"
    assert text["versions"] == [3, 4]
    assert len(tokens["rows"][0]["tokens"]) == 12
