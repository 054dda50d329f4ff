"""The report: every figure of the runs' files is in the page, nothing in it can act or load."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re
import subprocess
import sys

import pytest

from masksearch_jax import report, viewer
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import write_json, write_lines
from masksearch_jax.runtime import cli
from masksearch_jax.testing.pages import data_of
from masksearch_jax.viewer import load, names
from masksearch_jax.viewer.load import RunFilesError, run_names

VOID = {"meta", "br", "img", "input", "hr", "link"}


class Page(html.parser.HTMLParser):
    """Tags with attributes, and whether every tag was closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.errors = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def rendered(run_folder) -> str:
    return viewer.render([run_folder])


@pytest.fixture(scope="module")
def main(rendered) -> dict:
    return data_of(rendered)["main"]


# ---- the page


def test_the_page_is_whole_and_loads_nothing(rendered):
    page = Page(rendered)
    assert page.errors == []
    assert page.open == []
    assert page.attributes("src") == []
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", rendered)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    scripts = [a for t, a in page.tags if t == "script" and "type" not in a]
    assert len(scripts) == policy.count("sha256-") == 2
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_text_of_the_data_is_nowhere_in_the_markup(rendered, run_folder, tmp_path):
    assert "alert(1)" not in rendered
    rendered.encode("utf-8")
    named = tmp_path / "<script>alert(3)</script>"
    named.mkdir(parents=True)
    (named / "summary.json").write_text("{}")
    page = viewer.render([named])
    assert "<script>alert(3)" not in page
    assert "<title>MaskSearch: script&gt;</title>" in page  # the folder's name is a path of two


def test_the_same_files_give_the_same_page(rendered, run_folder):
    assert viewer.render([run_folder]) == rendered


def test_scripts_say_no_name_twice():
    """They share one scope."""
    source = "\n".join(map(viewer.page.asset, viewer.page.SCRIPTS))
    found = re.findall(r"^(?:async )?(?:function|const|let) (\w+)", source, re.MULTILINE)
    assert len(found) == len(set(found))
    assert "innerHTML" not in source


# ---- what is in it


def test_curves_are_named_grouped_and_timed(main):
    sft, rl = main["series"]
    assert (sft["place"], sft["kind"]) == ("RAMP SFT", "sft")
    assert (rl["place"], rl["kind"]) == ("RAMP DAPO", "rl")
    assert sft["steps"] == list(range(1, 9))
    assert sft["seconds"] == [10.0 * i for i in range(8)]
    assert sft["values"]["agent_nll"] == pytest.approx([8 / s for s in range(1, 9)], rel=1e-5)
    assert sft["metrics"]["agent_nll"] == ["Loss", "Loss on the agent's tokens", "nats per token"]
    assert list(sft["metrics"]) == ["agent_nll", "lr"]
    assert rl["metrics"]["reward"][0] == "Reward and answers"
    assert sft["marks"] == [[0, "ramp_k1"], [4, "ramp_k2"]]


@pytest.mark.parametrize(
    ("by", "marks"),
    [
        ("gated", [[0, "ramp_k1"], [3, "ramp_k2"]]),
        ("schedule", [[0, "ramp_k1"], [100, "ramp_k2"], [200, "ramp_k3"]]),
    ],
)
def test_a_lesson_is_marked_where_its_gate_opened_and_not_where_it_was_planned(by, marks, tmp_path):
    config = {"sft": {"curriculum": "0:ramp_k1, 100:ramp_k2,200:ramp_k3"}, "lessons": {"by": by}}
    write_json(tmp_path / "run.json", {"config": config})
    rows = [{"step": s, "lesson": float(s > 2), "gate": 0.1 * s} for s in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (series,) = data_of(viewer.render([tmp_path]))["main"]["series"]
    assert series["marks"] == marks
    assert series["metrics"]["gate"][1] == "Recall that the gate reads"


def test_an_alarm_is_marked_where_it_begins(tmp_path):
    ringing = [[], ["entropy"], ["entropy", "tags", "copied"], ["tags"], [], ["entropy"]]
    rows = [{"step": s, "reward": 1.0, "alarms": a} for s, a in enumerate(ringing, 1)]
    del rows[0]["alarms"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (series,) = data_of(viewer.render([tmp_path]))["main"]["series"]
    assert series["marks"] == [
        [2, "alarm: entropy"], [3, "alarm: copied, tags"], [6, "alarm: entropy"]
    ]  # fmt: skip
    assert list(series["values"]) == ["reward"]


def test_a_rollback_is_marked_though_the_rows_of_its_alarm_are_gone(tmp_path):
    rows = [{"step": s, "reward": 1.0} for s in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    gone = [{"from": 4, "to": 2, "why": "tags"}, {"from": 7}]
    (tmp_path / "rollbacks.json").write_text(json.dumps(gone))
    (series,) = data_of(viewer.render([tmp_path]))["main"]["series"]
    assert series["marks"] == [[2, "rollback from step 4"]]


def test_a_long_curve_is_thinned_to_means(tmp_path):
    rows = ({"step": s, "loss": float(s % 2)} for s in range(1, 4001))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (series,) = data_of(viewer.render([tmp_path]))["main"]["series"]
    assert (series["width"], series["rows"]) == (2, 4000)
    assert series["steps"][:2] == [1.5, 3.5]
    assert series["values"]["loss"] == [0.5] * 2000


def test_rows_written_twice_and_values_that_are_no_numbers(tmp_path):
    text = (
        '{"step": 2, "loss": 9}\n{"step": 1, "loss": NaN}\n{"step": 2, "loss": 4.25}\n'
        f'{{"step": 2, "loss": {"1" * 5000}}}\n{"[" * 100_000}\n{{"step": 3, '
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    main = data_of(viewer.render([tmp_path]))["main"]
    (series,) = main["series"]
    assert series["steps"] == [1, 2]
    assert series["values"]["loss"] == [None, 4.25]
    assert series["unusable"] == {"loss": 1}
    assert series["seconds"] is None
    assert main["runs"][0]["notes"] == ["metrics.jsonl: 3 unreadable lines left out (4, 5, 6)."]


def test_evaluations_have_all_their_figures(main):
    entries = {(e["place"], e["method"]): e for e in main["evaluations"]}
    assert list(entries) == [
        (place, method)
        for place in ("before training", "after RAMP SFT")
        for method in ("agent", "random")
    ]
    agent = entries["after RAMP SFT", "agent"]
    assert agent["metrics"] == {"span_recall": [0.5, 0.47, 0.54, 4]}
    two = {"span_recall": [0.5, 0.47, 0.54, 4]}
    assert agent["by"] == {"masks": {"1": agent["metrics"], "2": two}, "status": {"answered": {}}}
    origin = main["origins"][1]
    assert origin["average"] == {"agent": [0.5, 0.47, 0.54, 1]}
    assert origin["compare"]["run"] == "runs/other"
    assert origin["compare"]["differences"]["ramp"]["agent"]["span_recall"][0] == 0.25
    assert ["model.step", 7] in origin["pairs"]
    assert ["suites.ramp.sha256", "ab" * 32] in origin["pairs"]
    assert main["metrics"] == {"ramp": "span_recall"}
    told = {"model": "strict", "cell": [0.25, 0.22, 0.29, 4], "agreement": [0.5, 0.47, 0.54, 4]}
    assert agent["judges"] == [told | {"unreadable": 1}]
    (leaked,) = origin["leakage"]["suites"].values()
    assert (leaked["items"], leaked["shared"]) == (9, 2)
    assert leaked["without"]["agent"] == {"span_recall": [0.125, 0.095, 0.165, 4]}
    ((span,),) = origin["difficulty"]["ramp"].values()
    assert (span["label"], span["n"]) == ("1–2", 3)
    assert span["cells"]["source_first"][0] == 0.75


def test_a_trajectory_has_its_verdicts(rendered):
    pieces = data_of(rendered)
    rows = pieces["main"]["rows"]
    suites = [pieces["main"]["groups"][row["of"]]["suite"] for row in rows]
    texts = [t for name, piece in pieces.items() if name.startswith("texts") for t in piece]
    said = [text.get("verdicts") for text in texts]
    assert said == [[["strict", "incorrect"]] if s == "ramp" else None for s in suites]


def test_an_evaluation_that_has_not_ended_is_shown(write_run, tmp_path):
    folder = write_run(tmp_path / "run") / "eval" / "ramp_sft"
    whole = data_of(viewer.render([folder]))["main"]
    lines = (folder / "trajectories.jsonl").read_text().splitlines(keepends=True)
    for name in ("eval.json", "trajectories.jsonl", "verdicts.jsonl"):
        (folder / name).unlink()
    (folder / "trajectories.partial.jsonl").write_text("".join(lines[:3]))
    (folder / "trajectories.partial.1.jsonl").write_text(lines[3] + lines[4][:20])
    main = data_of(viewer.render([folder]))["main"]
    assert [r["id"] for r in main["rows"]] == [r["id"] for r in whole["rows"][:4]]
    assert main["runs"][0]["notes"] == [
        "trajectories.partial.jsonl: of an evaluation that has not ended.",
        "trajectories.partial.1.jsonl: of an evaluation that has not ended.",
        "trajectories.partial.1.jsonl: 1 unreadable line left out (2).",
    ]
    within = data_of(viewer.render([tmp_path / "run"]))["main"]
    assert "after RAMP SFT" in {group["place"] for group in within["groups"]}


def test_all_methods_give_the_same_items_the_same_numbers(main):
    groups = [g for g in main["groups"] if g["method"] != "rollout"]
    assert [g["items"] for g in groups] == [groups[0]["items"]] * 4
    assert len(set(groups[0]["items"])) == 6
    agent = next(g for g in groups if g["place"] == "after RAMP SFT" and g["method"] == "agent")
    assert agent["scores"]["span_recall"] == [1, 1, 1, 0, 0, 0]


def test_what_made_it_counts_leaked_items_and_lists_none(write_run, tmp_path):
    path = write_run(tmp_path / "run") / "eval" / "init" / "eval.json"
    found = json.loads(path.read_text())
    told = {"items": 9, "shared": {"title": 2}, "shared_ids": ["a", "b"], "without": {"agent": {}}}
    found["leakage"] = {"path": "p", "ngram": 13, "suites": {"ramp": told}}
    found["difficulty"] = {"ramp": {"words": [{"label": "1"}]}}
    path.write_text(json.dumps(found))
    pairs = data_of(viewer.render([tmp_path / "run"]))["main"]["origins"][0]["pairs"]
    made = {k: v for k, v in pairs if k.startswith(("leakage", "difficulty"))}
    assert made == {
        "leakage.path": "p",
        "leakage.ngram": 13,
        "leakage.suites.ramp.items": 9,
        "leakage.suites.ramp.shared.title": 2,
    }


def test_items_of_other_files_are_no_pairs(write_run, tmp_path):
    folders = [write_run(tmp_path / name) for name in ("a", "b", "c")]
    for path in folders[2].rglob("eval.json"):
        path.write_text(path.read_text().replace("ab" * 32, "cd" * 32))
    told = data_of(viewer.render(folders))["main"]["groups"]
    evaluated = [g for g in told if g["place"] == "after RAMP SFT"]
    mine, same, other = (set(g["items"]) for g in evaluated if g["method"] == "agent")
    assert mine == same
    assert not mine & other


def test_counts_of_data_are_in_words(main):
    ramp, index = main["runs"][0]["data"]
    assert (ramp["name"], index["name"]) == ("ramp: passages to masked paragraphs", "index")
    assert ramp["said"] == "kept 25,217; left out: 531 same masks again"
    assert ramp["more"] == [["kept by.a", 2]]
    assert index["said"] == "kept 3; nothing left out"


def test_the_config_says_what_was_decided(main):
    whole, training = main["runs"][0]["records"]
    assert whole["keys"] == [
        ["workdir", "w"], ["seed", 3], ["sft.steps", 8], ["sft.curriculum", "0:ramp_k1"],
    ]  # fmt: skip
    assert whole["given"] == ["seed"]
    assert whole["defaults"] == {"workdir": None, "sft.steps": 100}
    assert whole["sessions"][0]["commit"] == "0123456789abcdef"
    assert training["place"] == "RAMP SFT"


def test_stages_have_their_seconds(main):
    stages = [(s["name"], s["seconds"]) for s in main["runs"][0]["stages"]]
    assert stages == [
        ("index", 1.5),
        ("evaluation before training", 9.0),
        ("RAMP SFT", 262.5),
        ("evaluation after RAMP SFT", 8.0),
    ]


def test_several_runs_share_a_page(run_folder, write_run, tmp_path):
    other = write_run(tmp_path / "run")
    main = data_of(viewer.render([run_folder, other]))["main"]
    first, second = [run["name"] for run in main["runs"]]
    assert first != second
    assert {s["run"] for s in main["series"]} == {0, 1}
    assert len({row["id"] for row in main["rows"]}) == len(main["rows"])


def test_runs_are_told_apart_by_the_end_of_their_paths():
    assert run_names(["/a/sft", "/a/dapo"]) == ["sft", "dapo"]
    assert run_names(["/a/one/sft", "/a/two/sft"]) == ["one/sft", "two/sft"]
    assert run_names(["/a/sft", "/a/sft"]) == ["sft", "sft"]


@pytest.mark.parametrize(
    ("parts", "is_evaluation", "said"),
    [
        ((), False, ""),
        (("ramp_sft",), False, "RAMP SFT"),
        (("eval", "ramp_sft"), True, "after RAMP SFT"),
        (("eval", "rl-rl"), True, "RL → RL"),
        (("rl-rl", "qa_dapo"), False, "RL → RL · QA DAPO"),
        (("iterations", "2", "eval"), True, "student 2"),
    ],
)
def test_folders_have_names(parts, is_evaluation, said):
    assert names.place(parts, is_evaluation=is_evaluation) == said


def test_folders_are_in_the_order_of_the_recipe():
    found = [("qa_dapo",), ("x", "10"), ("x", "9"), ("ramp_sft",), ("init",)]
    expected = [("init",), ("ramp_sft",), ("qa_dapo",), ("x", "9"), ("x", "10")]
    assert sorted(found, key=names.place_order) == expected


# ---- folders that are not whole


@pytest.mark.parametrize("content", ["[1, 2]", '{"wall_seconds": 1', ""])
@pytest.mark.parametrize("name", ["summary.json", "eval.json", "run.json"])
def test_a_broken_file_is_an_error_that_names_it(tmp_path, name, content):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / name).write_text(content)
    with pytest.raises(RunFilesError, match=name.replace(".", r"\.")):
        viewer.render([tmp_path])


def test_a_folder_without_a_run_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RunFilesError, match=re.escape(str(tmp_path))):
        viewer.render([tmp_path])


@pytest.mark.parametrize("path", ["metrics.jsonl", "a/b/eval.json", "summary.json"])
def test_one_file_is_enough(tmp_path, path):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("{}")
    page = viewer.render([tmp_path])
    assert Page(page).errors == []
    assert data_of(page)["main"]["rows"] == []


# ---- the command


@pytest.mark.parametrize("name", ["hf", "index", "data", "cache", "tokenizer", "stages"])
@pytest.mark.parametrize(
    "file", ["eval.json", "trajectories.jsonl", "trajectories.partial.1.jsonl", "metrics.jsonl"]
)
def test_a_folder_with_results_is_read_whatever_it_is_called(name, file, tmp_path):
    """Such a name is else of weights and records, as of a run's own folders beside its results."""
    write_lines(tmp_path / "evals" / "vllm" / "metrics.jsonl", [])
    write_lines(tmp_path / "evals" / name / file, [])
    write_lines(tmp_path / "evals" / name / name / "passages.jsonl", [])
    write_lines(tmp_path / "evals" / name / name / "old" / "metrics.jsonl", [])
    found = load.read_run(tmp_path / "evals", "evals")
    assert {folder.parts for folder in found.folders} == {(), (name,), ("vllm",)}


def test_the_report_is_written_whole_or_not_at_all(write_run, tmp_path):
    folder = write_run(tmp_path / "run")
    path = report.write([folder])
    before = path.read_text(encoding="utf-8")
    assert before.endswith("</html>\n")
    (folder / "summary.json").write_text("{")
    with pytest.raises(RunFilesError):
        report.write([folder])
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in folder.glob("report*")] == ["report.html"]


def test_the_command_begins_with_folders():
    argv = report.arguments(["report", "a", "b,c", "--config.trajectories=7"])
    cfg = cli.parse(report.ReportConfig, argv)
    assert cfg == report.ReportConfig(runs=("a", "b,c"), trajectories=7)
    unchanged = ["report", "--config=configs/report.py:runs/x"]
    assert report.arguments(unchanged) == unchanged
    with pytest.raises(ConfigError, match=r"^usage: python -m masksearch_jax\.report RUN \[RUN"):
        report.arguments(["report"])


def test_the_command_writes_a_report_and_names_a_wrong_folder(write_run, tmp_path):
    write_run(tmp_path / "run")
    root = pathlib.Path(__file__).parents[2]

    def start(*args: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "masksearch_jax.report", *args]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    good = start(f"{tmp_path}/run", f"--config.out={tmp_path}/page.html")
    assert good.returncode == 0, good.stderr
    assert "main" in data_of((tmp_path / "page.html").read_text())
    bad = start(f"{tmp_path}/none")
    assert bad.returncode == 1
    assert f"{tmp_path}/none is not the folder of a run" in bad.stderr
    assert "Traceback" not in bad.stderr
