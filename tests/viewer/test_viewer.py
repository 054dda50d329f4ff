"""The report: every figure of a run's files is on the page, nothing on it can act or load."""

from __future__ import annotations

import html.parser
import itertools
import json
import pathlib
import re
import subprocess
import sys

import pytest

from masksearch_jax import report, viewer
from masksearch_jax.core import types
from masksearch_jax.viewer import figures, plots, traces
from masksearch_jax.viewer.load import RunFilesError

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'</style></title>{{ 7*7 }}\x00\ud800"
)
VOID = {"meta", "br", "img", "input", "hr", "link"}


class Page(html.parser.HTMLParser):
    """Tags with attributes, text by tag, and whether every tag was closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.texts, self.errors = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def visible(self) -> str:
        return " ".join(t for tag, t in self.texts if tag not in ("script", "style"))

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def cell(value: float) -> dict:
    return {"value": value, "low": value - 0.0312, "high": value + 0.0417, "n": 200}


def summary() -> dict:
    metrics = ("span_recall", "em", "f1", "format_rate", "searches")
    values = iter(0.1 + 0.0071 * i for i in range(1000))
    return {
        "wall_seconds": 582.25,
        "peak_memory_bytes": 2_310_000_000,
        "stages": {
            "index": {"seconds": 1.31, "counts": {"passages": 6960}},
            "train_sft": {"seconds": 262.7},
        },
        "eval": {
            c: {
                s: {q: {m: cell(next(values)) for m in metrics} for q in ("search", "no_search")}
                for s in ("ramp", "two_hop")
            }
            for c in ("init", "sft", "dapo")
        },
        "export": {"tensors": 51, "max_abs_logit_diff": 3.8e-6, "greedy_equal": True},
        "config": {"sft": {"steps": 613, "curriculum": "0:ramp_k1,40:ramp_k2"}, "name": HOSTILE},
        "data": {"corpus": {"in": 3484, "out": 3479, "dropped": {"too_short": 5}}},
        "versions": {"jax": "0.10.2"},
    }


def trajectory(**changes) -> dict:
    segments = [
        ("prompt", "Fill in: [mask] is a country.\n"),
        ("policy", "<think>I search.</think><search>one query\nother query</search>"),
        ("tool", f"<information>Chad: a country. {HOSTILE}</information>"),
        ("policy", "<answer>Chad is a country.</answer>"),
    ]
    ids = list(range(100, 112))
    record = {
        "example_id": "r-1",
        "sample": 0,
        "ids": ids,
        "logprobs": [0.0] * 4 + [-0.01, -0.5, -1.0] + [0.0] * 3 + [-3.0, -0.2],
        "sampled": [False] * 4 + [True] * 3 + [False] * 3 + [True] * 2,
        "prompt_len": 4,
        "segments": [{"author": a, "text": t} for a, t in segments],
        "turns": [
            {
                "queries": ["one query", "other query"],
                "passage_ids": ["7"],
                "titles": ["Chad"],
                "seconds": 0.004,
                "error": "deadline passed",
            }
        ],
        "status": "answered",
        "versions": [-1, -1, 3, 3],
        "seconds": 1.5,
        "example": {
            "id": "r-1",
            "title": HOSTILE,
            "masked": "[mask] is a country.",
            "spans": [{"start": 0, "end": 4, "text": "Chad", "type": "PLACE"}],
        },
        "scores": {"span_recall": 1.0, "reward": 0.875},
        "checkpoint": "dapo",
        "tokens": [f"t{i}" for i in ids[:-1]] + [HOSTILE],
    }
    return record | changes


def write_run(root: pathlib.Path, without: str = "") -> pathlib.Path:
    files = {
        "summary.json": json.dumps(summary()),
        "sft/metrics.jsonl": "".join(
            json.dumps({"step": s, "loss": 7.0 / s, "tokens_per_second": 9000 + s}) + "\n"
            for s in range(1, 81)
        ),
        "dapo/metrics.jsonl": "".join(
            json.dumps({"step": s, "reward": 0.5 + s / 100, "entropy": 1 / s, "odd_key": s}) + "\n"
            for s in range(1, 11)
        ),
        "trajectories.jsonl": "".join(json.dumps(trajectory()) + "\n" for _ in range(2)),
    }
    for name, text in files.items():
        if name != without:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> str:
    return viewer.render(write_run(tmp_path_factory.mktemp("run")))


def test_every_tag_is_closed_in_order(rendered):
    page = Page(rendered)
    assert page.errors == []
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = {h[1:] for h in page.attributes("href")}
    assert targets
    assert targets <= set(ids)


def test_every_figure_of_the_summary_is_on_the_page(rendered):
    page = Page(rendered)
    titles, shown = page.attributes("title"), page.visible()
    for key, value in figures.flatten(summary()):
        if key.startswith("eval."):
            in_title = any(f"{key.rsplit('.')[-1]} {value!r}" in t for t in titles)
            assert in_title, key
            if key.endswith(".value"):
                digits = 2 if ".searches." in key else 3
                assert f"{value:.{digits}f}" in shown, key
    for text in ("9 min 42 s", "2.15 GiB", "1.31 s", "4 min 23 s", "6,960", "51", "3.8e-06"):
        assert text in shown
    for text in ("greedy_equal", "yes", "613", "3,484", "3,479", "too short", "0.10.2"):
        assert text in shown


def test_the_abstract_is_computed_from_the_evaluation(rendered):
    lines = re.findall(r"<li>(.*?)</li>", rendered.split('class="abstract"')[1].split("</ol>")[0])
    assert len(lines) == 5
    recall = summary()["eval"]["dapo"]["ramp"]["search"]["span_recall"]
    assert f"<b>{recall['value']:.3f}</b>" in lines[1]
    assert f"[{recall['low']:.3f}–{recall['high']:.3f}]" in lines[1]
    assert "are apart" in lines[1]
    overlapping = summary()
    overlapping["eval"]["dapo"]["ramp"]["search"]["span_recall"] = cell(
        overlapping["eval"]["sft"]["ramp"]["search"]["span_recall"]["value"] + 0.01
    )
    assert "overlap" in viewer.abstract.abstract(overlapping)[1]


def test_hostile_text_is_inert(rendered):
    page = Page(rendered)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "<script>alert(1)</script>" in page.visible()  # as text, the reader still sees it
    assert "{{ 7*7 }}" in page.visible()
    rendered.encode("utf-8")
    assert "\x00" not in rendered


def test_nothing_is_loaded_from_anywhere(rendered):
    page = Page(rendered)
    assert page.attributes("src") == []
    assert all(h.startswith("#") for h in page.attributes("href"))
    assert not re.search(r"@import|url\(|https?:", rendered.replace("https?:", ""))
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("summary.json", "Not evaluated."),
        ("sft/metrics.jsonl", "Not run, or nothing logged yet."),
        ("dapo/metrics.jsonl", "Not run, or nothing logged yet."),
        ("trajectories.jsonl", "None were kept."),
    ],
)
def test_a_missing_file_is_said_and_the_rest_is_shown(tmp_path, missing, said):
    page = Page(viewer.render(write_run(tmp_path, without=missing)))
    assert page.errors == []
    assert f"{missing} is not there" in page.visible()
    assert said in page.visible()


@pytest.mark.parametrize("key", sorted(summary()))
def test_any_part_of_the_summary_may_be_absent(tmp_path, key):
    write_run(tmp_path)
    partial = {k: v for k, v in summary().items() if k != key}
    partial.get("eval", {}).pop("dapo", None)
    for suites in partial.get("eval", {}).values():
        suites.pop("two_hop")
    (tmp_path / "summary.json").write_text(json.dumps(partial))
    page = Page(viewer.render(tmp_path))
    assert page.errors == []
    assert "Two-hop questions: not evaluated." in page.visible()


def two_stages() -> dict:
    """The summary of a run of both stages with a control."""
    values = iter(0.1 + 0.0071 * i for i in range(1000))
    metrics = {"ramp": ("span_recall", "f1"), "two_hop": ("recall", "f1", "source_hit")}
    names = ("init", "ramp_sft", "ramp_dapo", "qa_sft", "qa_dapo", "control")
    found = {
        c: {s: {"search": {m: cell(next(values)) for m in ms}} for s, ms in metrics.items()}
        for c in names
    }
    by_type = {
        c: {"two_hop": {"search": {t: {"f1": cell(next(values))} for t in ("a_to_b", "b_to_c")}}}
        for c in names
    }
    config = {"sft": {"curriculum": "0:ramp_a,5:ramp_b"}, "qa_sft": {"curriculum": "0:qa_a"}}
    return {"eval": found, "eval_by_type": by_type, "config": config}


def write_two_stages(root: pathlib.Path) -> pathlib.Path:
    (root / "summary.json").write_text(json.dumps(two_stages()))
    for name in ("ramp_sft", "ramp_dapo", "qa_sft", "qa_dapo", "control_sft", "control_dapo"):
        (root / name).mkdir()
        key = "loss" if name.endswith("sft") else "reward"
        rows = ({"step": s, key: s / 8} for s in range(1, 9))
        (root / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "trajectories.jsonl").write_text(json.dumps(trajectory(checkpoint="qa_dapo")) + "\n")
    return root


def test_the_curves_of_both_stages_are_joined(tmp_path):
    page = Page(viewer.render(write_two_stages(tmp_path)))
    points = [json.loads(p) for p in page.attributes("data-points")]
    assert [[int(p[2]) for p in curve] for curve in points[:2]] == [list(range(1, 17))] * 2
    shown = page.visible()
    for label in ("Supervised fine-tuning", "DAPO", "Questions alone, the control"):
        assert label in shown
    assert "is not there" not in shown
    assert {"ramp_b", "qa_a", "qa dapo"} <= set(page_marks(tmp_path))


def page_marks(folder: pathlib.Path) -> list[str]:
    return re.findall(r'class="tick marklabel"[^>]*>([^<]*)<', viewer.render(folder))


def test_a_run_of_both_stages_is_shown_by_stage_and_by_type(tmp_path):
    page = Page(viewer.render(write_two_stages(tmp_path)))
    assert page.errors == []
    shown, summary = page.visible(), two_stages()
    for name in ("after RAMP SFT", "after QA DAPO", "control: QA alone", "source hit", "a to b"):
        assert name in shown
    for by_suite in summary["eval"].values():
        for metrics in (m for s in by_suite.values() for m in s.values()):
            assert all(f"{m['value']:.3f}" in shown for m in metrics.values())
    for by_suite in summary["eval_by_type"].values():
        for metrics in by_suite["two_hop"]["search"].values():
            assert f"{metrics['f1']['value']:.3f}" in shown
    lines = list(map(str, viewer.abstract.abstract(summary)))
    ours = summary["eval"]["qa_dapo"]["two_hop"]["search"]["f1"]["value"]
    control = summary["eval"]["control"]["two_hop"]["search"]["f1"]["value"]
    assert f"F1 <b>{ours:.3f}</b>" in lines[3]
    assert f"with as many updates: F1 <b>{control:.3f}</b>" in lines[3]
    assert lines[3].endswith("The two intervals overlap.")
    assert "The intervals after SFT and after DAPO overlap." in lines[1]


def test_the_cells_stand_beside_each_other(tmp_path):
    """A folder of several chains: what each was evaluated to, and its curves."""
    found = two_stages()["eval"]
    cells = dict(
        zip(("none-sft", "sft-sft", "rl-sft", "sft-rl", "rl-rl"), found.values(), strict=False)
    )
    for name, results in cells.items():
        (tmp_path / "eval" / name).mkdir(parents=True)
        by_method = {s: {"agent": c["search"]} for s, c in results.items()}
        whole = json.dumps({"results": by_method, "breakdown": {}})
        (tmp_path / "eval" / name / "eval.json").write_text(whole)
    for stage in ("qa_dapo", "ramp_sft", "ramp_dapo"):
        (tmp_path / "rl-rl" / stage).mkdir(parents=True)
        rows = ({"step": s, "loss": s / 8} for s in range(1, 5))
        text = "".join(json.dumps(r) + "\n" for r in rows)
        (tmp_path / "rl-rl" / stage / "metrics.jsonl").write_text(text)
    page = Page(viewer.render(tmp_path))
    assert page.errors == []
    shown = page.visible()
    for name, results in cells.items():
        assert figures.CHECKPOINTS[name] in shown
        assert f"{results['two_hop']['search']['f1']['value']:.3f}" in shown
    (points,) = (json.loads(p) for p in page.attributes("data-points"))
    assert [int(p[2]) for p in points] == list(range(1, 13))
    assert page_marks(tmp_path) == ["ramp dapo", "qa dapo"]


def test_a_half_written_line_is_skipped_and_counted(tmp_path):
    write_run(tmp_path)
    with (tmp_path / "sft/metrics.jsonl").open("a") as f:
        f.write('{"step": 81, "los')
    shown = Page(viewer.render(tmp_path)).visible()
    assert "sft/metrics.jsonl: 1 unreadable line(s) skipped (81)." in shown
    assert "80 rows of metrics" in shown


def test_a_step_written_twice_counts_once_with_its_last_values(tmp_path):
    write_run(tmp_path)
    rows = [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 8.0}, {"step": 2, "loss": 4.25}]
    (tmp_path / "sft/metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = Page(viewer.render(tmp_path))
    points = [json.loads(p) for p in page.attributes("data-points")]
    assert [p[2:] for p in points[0]] == [["1", "8.0000"], ["2", "4.2500"]]


def test_values_that_are_not_finite_leave_a_gap_and_a_note(tmp_path):
    write_run(tmp_path)
    rows = '{"step": 1, "loss": NaN}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 1.5}\n'
    (tmp_path / "sft/metrics.jsonl").write_text(rows)
    shown = Page(viewer.render(tmp_path)).visible()
    assert "2 value(s) not finite" in shown


@pytest.mark.parametrize("content", ["[1, 2]", '{"wall_seconds": 1', ""])
def test_a_broken_summary_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(RunFilesError, match=r"summary\.json"):
        viewer.render(tmp_path)


def test_a_folder_without_a_run_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RunFilesError, match=re.escape(str(tmp_path))):
        viewer.render(tmp_path)


def test_each_token_is_coloured_by_its_author():
    record = trajectory()
    page = Page(str(traces.token_spans(record)))
    spans = [attrs for tag, attrs in page.tags if tag == "span"]
    assert [s["class"].split()[1] for s in spans] == (
        ["prompt"] * 4 + ["policy"] * 3 + ["tool"] * 3 + ["policy"] * 2
    )
    assert [s["class"].split()[2] for s in spans if "policy" in s["class"]] == [
        "s0", "s1", "s2", "s3", "s1",
    ]  # fmt: skip
    assert spans[5]["title"] == "policy · position 5 · id 105 · logprob -0.5000"
    assert spans[0]["title"] == "prompt · position 0 · id 100"
    assert traces.count_tokens(record) == {"prompt": 4, "policy": 5, "tool": 3}


def test_tokens_without_text_show_their_ids():
    record = trajectory(tokens=["only one"])
    spans = Page(str(traces.token_spans(record)))
    assert [t for _, t in spans.texts][:2] == ["only one", "⟨101⟩"]


def test_a_trajectory_is_read_in_turns():
    found = traces.pieces(trajectory(), ["Chad"])
    assert [(p["author"], p["tag"]) for p in found] == [
        ("prompt", "prompt"),
        ("policy", "think"),
        ("policy", "search"),
        ("tool", "information"),
        ("policy", "answer"),
    ]
    assert found[3]["note"] == "1 passage in 4 ms: Chad"
    assert found[3]["error"] == "deadline passed"
    assert str(found[4]["text"]) == '<mark class="gold">Chad</mark> is a country.'


def test_text_outside_the_grammar_is_shown_too():
    segments = [{"author": "policy", "text": "before<search>q</search>after <answer>open"}]
    found = traces.pieces({"segments": segments}, [])
    assert [str(p["text"]) for p in found] == ["before", "q", "after &lt;answer&gt;open"]


def test_marks_take_whole_words_only():
    marked = str(traces.highlight("Mali, Malian and [mask]", ["Mali", ""]))
    assert marked == ('<mark class="gold">Mali</mark>, Malian and <mark class="mask">[mask]</mark>')


def test_a_trajectory_of_the_contract_is_shown(tmp_path):
    record = {k: v for k, v in trajectory().items() if k in types.Trajectory.__dataclass_fields__}
    line = types.to_json(types.from_json(types.Trajectory, record))
    (tmp_path / "trajectories.jsonl").write_text(json.dumps(line) + "\n")
    page = Page(viewer.render(tmp_path))
    assert page.errors == []
    assert sum("t policy" in c for c in page.attributes("class")) == 5


def test_an_empty_trajectory_does_not_stop_the_page(tmp_path):
    (tmp_path / "trajectories.jsonl").write_text(
        '{}\n{"ids": 3, "turns": [null], "segments": [1]}\n'
    )
    assert Page(viewer.render(tmp_path)).errors == []


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.351, 7.62), (-0.04, 0.03), (5.0, 5.0), (0, 0), (1e-9, 3e-3)]
)
def test_ticks_are_round_and_cover_the_data(low, high):
    ticks = plots.nice_ticks(low, high)
    steps = {round(b - a, 12) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 3 <= len(ticks) <= 9


def test_a_long_curve_is_thinned_to_means():
    points, width = plots.thin([(float(i), float(i % 2)) for i in range(1200)])
    assert width == 2
    assert points[:2] == [(0.5, 0.5), (2.5, 0.5)]
    assert len(points) == 600


def test_the_curve_is_drawn_to_scale():
    def drawn(low: float, high: float, **more: float) -> list[tuple[float, float]]:
        rows = [{"step": 0, "x": low}, {"step": 10, "x": high}]
        svg = str(plots.line_chart(rows, "x", **more))
        points = re.search(r'<polyline class="curve" points="([^"]+)"', svg)[1]
        return [tuple(map(float, p.split(","))) for p in points.split()]

    left, right, bottom = plots.LEFT, plots.WIDTH - plots.RIGHT, 210 - plots.BOTTOM
    assert drawn(0.0, 1.0) == [(left, bottom), (right, plots.TOP)]
    assert drawn(1.0, 2.0) == [(left, bottom), (right, plots.TOP)]
    assert drawn(1.0, 2.0, floor=0.0) == [(left, (bottom + plots.TOP) / 2), (right, plots.TOP)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (figures.seconds(0.42), "0.42 s"),
        (figures.seconds(59.94), "59.9 s"),
        (figures.seconds(59.97), "1 min 00 s"),
        (figures.seconds(3599.6), "1 h 00 min"),
        (figures.seconds(None), "–"),
        (figures.size(1536), "1.50 KiB"),
        (figures.size(12), "12 B"),
        (figures.number(12345), "12,345"),
        (figures.number(True), "yes"),
        (figures.number(0.0), "0.000"),
        (figures.number(float("nan")), "nan"),
    ],
)
def test_numbers_as_text(text, shown):
    assert text == shown


def test_the_report_is_written_whole_or_not_at_all(tmp_path):
    write_run(tmp_path)
    path = report.write(tmp_path)
    before = path.read_text(encoding="utf-8")
    assert before.endswith("</html>")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RunFilesError):
        report.write(tmp_path)
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in tmp_path.glob("report*")] == ["report.html"]


def test_the_command_writes_a_report_and_names_a_wrong_folder(tmp_path):
    write_run(tmp_path / "run")
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "masksearch_jax.report"]
    good = subprocess.run(
        [*command, f"--config=configs/report.py:{tmp_path}/run"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "run/report.html").is_file()
    bad = subprocess.run(
        [*command, "--config=configs/report.py", f"--config.workdir={tmp_path}/none"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bad.returncode == 1
    assert f"{tmp_path}/none is not the folder of a run" in bad.stderr
    assert "Traceback" not in bad.stderr
