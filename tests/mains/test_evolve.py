"""Self-evolution: what is kept of a student's trajectories, and that no kill changes a figure."""

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evolution import Control
from masksearch_jax import evolve, viewer
from masksearch_jax.agents import selection as logic
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import BeingWrittenError, write_json
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.types import (
    Demonstration,
    QAExample,
    RampExample,
    Segment,
    Span,
    Trajectory,
    Turn,
)
from masksearch_jax.evals import iterations
from masksearch_jax.recipes.stage_folder import Usage
from masksearch_jax.runtime import cli
from masksearch_jax.testing.pages import data_of
from tests.parallel.lock_holder import held

TEXT = "Sora is a town on the Liri with 25,000 people."
EXAMPLE = RampExample(
    "e", "p", "Sora", "Sora is a town on the [mask] with [mask] people.", TEXT,
    (Span(22, 26, "Liri", "PLACE"), Span(32, 38, "25,000", "NUMBER")),
)  # fmt: skip
FOUND = "<information>Sora lies on the Liri. 25,000 people live there.</information>"
STRICT = logic.Rules(min_recall=1.0, grounded=True)


def trajectory(*policy, status="answered", found=FOUND, queries=(("Sora",),)):
    """The prompt, then what the policy wrote with the tool's text between."""
    segments = [Segment("prompt", EXAMPLE.masked + "\n")]
    for text in policy:
        segments += [Segment("policy", text), Segment("tool", found)]
    nothing = np.zeros(0)
    turns = tuple(Turn(q, ("p",), ("Sora",), 0.5) for q in queries)
    return Trajectory(
        "0", 3, nothing, nothing, nothing, nothing, 0, tuple(segments[:-1]), turns, status, 1.0
    )


SEARCH = "<think>Look.</think><search>Sora</search>"
ANSWER = f"<think>Found.</think><answer>{TEXT}</answer>"


@pytest.mark.parametrize(
    ("made", "rules", "reason", "detail"),
    [
        (trajectory(SEARCH, ANSWER), STRICT, "", ""),
        (trajectory(SEARCH, ANSWER, status="out_of_tokens"), STRICT, "out_of_tokens", ""),
        (trajectory("Hm. " + SEARCH, ANSWER), STRICT, "malformed", ""),
        (trajectory(ANSWER, queries=()), STRICT, "no_search", ""),
        (
            trajectory(SEARCH, SEARCH, ANSWER, queries=(("Sora",),) * 2),
            STRICT,
            "repeated_search",
            "",
        ),
        (trajectory(SEARCH, ANSWER.replace("Liri", "Po")), STRICT, "spans_wrong", "0.500"),
        (
            trajectory(SEARCH, ANSWER.replace("Liri", "Po")),
            logic.Rules(0.5, grounded=False),
            "",
            "",
        ),
        (
            trajectory(SEARCH, ANSWER, found=FOUND.replace("25,000", "Many")),
            STRICT,
            "not_grounded",
            "25,000",
        ),
        (
            trajectory(SEARCH, ANSWER, found=FOUND.replace("25,000", "125,000")),
            STRICT,
            "not_grounded",
            "25,000",
        ),
    ],
)
def test_a_trajectory_is_accepted_or_refused_by_rule(made, rules, reason, detail):
    refused = logic.rejection(EXAMPLE, made, rules)
    found = (refused.reason, refused.detail) if refused else ("", "")
    assert found == (reason, detail)


@pytest.mark.parametrize(
    ("answer", "accepted", "reason"),
    [
        ("the Liri", ("Liri", "Liris"), ""),
        ("the Po", ("Liri",), "spans_wrong"),
        ("Sora lies on the Liri. 25,000 people live there.", ("Liri",), "spans_wrong"),
        ("Sora, Liri", ("Liri",), "spans_wrong"),
        ("people: 25,000", ("25,000 people",), "not_grounded"),
        ("25,000 people", ("5,000 people", "25,000 people"), ""),
        ("Sora river", ("Sora river",), "not_grounded"),
        ("yes", ("yes",), ""),
    ],
)
def test_an_answer_to_a_question_is_judged_too(answer, accepted, reason):
    example = QAExample("q", "atlas", "Which river?", accepted)
    made = trajectory(SEARCH, f"<think>So.</think><answer>{answer}</answer>")
    refused = logic.rejection(example, made, logic.Rules(1.0, grounded=True))
    # "the" is in what was read, but "the Liri" is too.
    assert (refused.reason if refused else "") == reason


def test_what_a_calculator_repeats_is_not_read():
    asked, told = "<calculate>25,000</calculate>", "<information>25,000</information>"
    found = trajectory(SEARCH, asked, ANSWER, found=FOUND.replace("25,000", "Many"))
    segments = list(found.segments)
    segments[4] = Segment("tool", told)  # after the prompt, the search, its result and the call
    calls = (*found.turns, Turn(("25,000",), (), (), 0.0, tool="calculate"))
    made = dataclasses.replace(
        found, segments=tuple(segments), turns=calls, tools=("search", "calculate")
    )
    refused = logic.rejection(EXAMPLE, made, STRICT)
    assert (refused.reason, refused.detail) == ("not_grounded", "25,000")


def test_a_demonstration_leaves_out_the_prompt_and_the_clock():
    made = logic.to_demonstration(trajectory(SEARCH, ANSWER), EXAMPLE, "local", 3)
    assert (made.id, made.example_id, made.task) == ("e/local/3", "e", "ramp_k2")
    assert [s.text for s in made.segments] == [SEARCH, FOUND, ANSWER]
    assert made.turns == (Turn(("Sora",), ("p",), ("Sora",), 0.0),)


def demonstration(example_id, sample, text, searches=1):
    segments = (Segment("policy", text),)
    turns = (Turn((text,), (), (), 0.0),) * searches
    return Demonstration(f"{example_id}/t/{sample}", example_id, "ramp_k1", "t", segments, turns)


def test_of_each_example_a_few_different_ones_are_kept():
    made = [
        demonstration("b", 0, "long", searches=3),
        demonstration("b", 1, "short"),
        demonstration("b", 2, " short\n"),  # says the same
        demonstration("b", 3, "brief"),
        demonstration("a", 0, "long"),  # of another example
    ]
    for seed in range(20):
        kept, dropped = logic.select(made, 2, seed)
        assert dropped == {"duplicate": 1, "enough of its example": 1}
        assert [d.id for d in kept if d.example_id == "a"] == ["a/t/0"]
        assert sorted(len(d.turns) for d in kept if d.example_id == "b") == [1, 3]  # each plan
        assert logic.select(made, 2, seed) == (kept, dropped)
    ones = {logic.select(made, 1, seed)[0][0].id for seed in range(40)}
    assert ones == {"b/t/0", "b/t/1", "b/t/3"}  # among equals chance decides
    assert [d.id for d in logic.select(made, 9, 0)[0]] == ["b/t/0", "b/t/1", "b/t/3", "a/t/0"]
    assert logic.select([], 2, 0) == ([], {"duplicate": 0, "enough of its example": 0})


def test_what_is_known_is_not_merged_again():
    old = [demonstration("a", 0, "x"), demonstration("b", 0, "x")]
    new = [demonstration("a", 1, "x"), demonstration("a", 2, "y"), demonstration("a", 3, "y")]
    merged, known = logic.merge(old, new)
    assert [d.id for d in merged] == ["a/t/0", "b/t/0", "a/t/2"]
    assert known == 2


def examples(count, k=1):
    spans = (Span(0, 1, "x", "TERM"),) * k
    return [RampExample(f"e{i}", "p", "t", "", "", spans) for i in range(count)]


def test_hard_items_come_back_until_they_are_given_up():
    given = examples(20)
    limits = {"size": 8, "hard_share": 0.25, "max_tries": 2}
    first = logic.next_pool(given, {}, (), **limits)
    assert [e.id for e in first.examples] == [f"e{i}" for i in range(8)]
    tried = {e.id: 1 for e in first.examples}
    second = logic.next_pool(given, tried, {"e0", "e2", "e5", "e6"}, **limits)
    assert [e.id for e in second.hard] == ["e1", "e3"]  # two of eight, of the four unsolved
    assert [e.id for e in second.new] == [f"e{i}" for i in range(8, 14)]
    tried |= {e.id: tried.get(e.id, 0) + 1 for e in second.examples}
    third = logic.next_pool(given, tried, {"e0", "e2", "e3", "e5", "e6"}, **limits)
    assert third.given_up == ("e1",)
    assert [e.id for e in third.hard] == ["e4", "e7"]
    assert [e.id for e in third.new] == [f"e{i}" for i in range(14, 20)]
    tried |= {e.id: 1 for e in third.new}
    solved = {e.id for e in given} - {"e1"}
    assert logic.next_pool(given, tried, solved, **limits).examples == ()


def test_acceptance_by_mask_count():
    given = [*examples(2), *(dataclasses.replace(e, id="k2" + e.id) for e in examples(1, k=2))]
    accepted = [demonstration("e0", i, str(i)) for i in range(3)]
    assert logic.acceptance(given, accepted, samples=4, failed={}) == {
        "1": {"examples": 2, "sampled": 8, "accepted": 3, "solved": 1, "rate": 3 / 8},
        "2": {"examples": 1, "sampled": 4, "accepted": 0, "solved": 0, "rate": 0.0},
        "all": {"examples": 3, "sampled": 12, "accepted": 3, "solved": 1, "rate": 0.25},
    }


def test_attempts_that_failed_are_no_trajectories():
    accepted = [demonstration("e0", i, str(i)) for i in range(3)]
    failed = {"e0": 1, "e1": 4}
    assert logic.acceptance(examples(3), accepted, samples=4, failed=failed)["all"] == {
        "examples": 2, "sampled": 7, "accepted": 3, "solved": 1, "rate": 3 / 7
    }  # fmt: skip


def test_lengths_by_hand():
    made = [demonstration("a", 0, "one two", searches=2), demonstration("b", 0, "one")]
    assert logic.lengths(made) == {"words": 1.5, "searches": 1.5, "queries": 1.0}
    assert logic.lengths([demonstration("c", 0, "查北京 now")])["words"] == 4.0
    assert logic.lengths([]) == {"words": 0.0, "searches": 0.0, "queries": 0.0}


def test_a_collapse_names_the_measure():
    first = {"distinct_2": 0.4, "novelty": 0.5, "shape_entropy": 0.0}
    floors = {"distinct_2": 0.5, "novelty": 0.5, "shape_entropy": 0.5}
    assert logic.collapsed(first, first, floors) == []
    now = first | {"distinct_2": 0.19, "novelty": 0.25}
    assert logic.collapsed(now, first, floors) == [
        "distinct_2 is 0.190, below 0.5 of the 0.400 that it was at first"
    ]
    assert logic.collapsed(now, first, floors | {"distinct_2": 0.0}) == []


# ---- what a reader gets


def manifest(n, recall):
    shown = dict.fromkeys((*iterations.SHOWN, "novelty"), 0.5) | {"shapes": 3}
    sampled = {"examples": 5, "sampled": 10, "accepted": 4, "solved": 3, "rate": 0.4}
    return {
        "iteration": n,
        "eval": {"ramp": {"search": {"span_recall": {"value": recall, "low": recall - 0.1,
                                                      "high": recall + 0.1, "n": 9}}}},
        "figures": {
            "acceptance": {"all": sampled, "1": sampled} | ({"4": sampled} if n else {}),
            "pool": {"new": 5, "hard": 0, "given_up": 0},
            "diversity": shown,
            "lengths": {"words": 20.0, "searches": 1.25, "queries": 1.5},
            "kept": 4,
            "demonstrations": 1000 + 4 * n,
        },
        "collapsed": ["distinct_2 is 0.1 <b>"] if n else [],
    }  # fmt: skip


def test_the_iterations_are_a_table():
    rows = [iterations.row(manifest(n, 0.5 + n / 4)) for n in range(2)]
    assert iterations.table(rows) == [
        "iteration           0      1",
        "span recall     0.500  0.750",
        "  from          0.400  0.650",
        "  to            0.600  0.850",
        "demonstrations  1,000  1,004",
        "  new               4      4",
        "sampled            10     10",
        "accepted        0.400  0.400",
        "  of k1          0.40   0.40",
        "  of k4             -   0.40",
        "distinct-2      0.500  0.500",
        "self-BLEU       0.500  0.500",
        "query overlap   0.500  0.500",
        "plan shapes         3      3",
        "words            20.0   20.0",
        "searches         1.25   1.25",
    ]


def test_the_report_shows_the_iterations(tmp_path):
    rows = [iterations.row(manifest(n, 0.5 + n / 4)) for n in range(2)]
    summary = {"wall_seconds": 1.0, "evolution": rows, "collapsed": ["novelty is 0"]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (run,) = data_of(viewer.render([tmp_path]))["main"]["runs"]
    assert run["iterations"] == json.loads(json.dumps(rows))
    assert run["summary"] == {"wall_seconds": 1.0, "collapsed": ["novelty is 0"]}


# ---- the whole command


def start(repository, workdir):
    command = [sys.executable, "-m", "masksearch_jax.evolve"]
    command.append(f"--config={repository / 'configs' / 'evolve.py'}:runlocal")
    command += [f"--config.{o}" for o in (f"workdir={workdir}", "first_sft.steps=4")]
    with open(f"{workdir}.err", "a") as said:
        return subprocess.Popen(command, cwd=repository, stdout=said, stderr=said)


def said(workdir):
    return Path(f"{workdir}.err").read_text()


def finish(process, workdir):
    assert process.wait() == 0, said(workdir)
    return figures(workdir)


def figures(workdir):
    """All that a run leaves that must not depend on when it was stopped."""
    manifests = sorted(workdir.glob("iterations/*/manifest.json"))
    kept = sorted(workdir.glob("iterations/*/data/demonstrations/train.jsonl"))
    summary = json.loads((workdir / "summary.json").read_text())
    return (
        [json.loads(p.read_text()) for p in manifests],
        [p.read_bytes() for p in kept],
        {k: summary[k] for k in ("evolution", "eval", "data", "collapsed")},
    )


def kill_at(process, workdir, pattern):
    """SIGKILL as soon as there is a file of that name."""
    while not any(workdir.glob(pattern)):
        assert process.poll() is None, said(workdir)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow  # four processes, two with children that import TensorFlow
def test_a_kill_anywhere_changes_no_figure(repository, optimised, tmp_path):
    """The run that is killed goes on from a copy of the other's first iteration."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = finish(start(repository, whole), whole)
    manifests, _, summary = expected
    assert [m["iteration"] for m in manifests] == [0, 1]
    assert manifests[1]["figures"]["acceptance"]["all"]["sampled"] == 16
    assert summary["evolution"][0]["demonstrations"] >= 30
    main = data_of((whole / "report.html").read_text())["main"]
    assert {s["place"] for s in main["series"]} == {"student 0 · sft", "student 1 · sft"}
    assert {e["place"] for e in main["evaluations"]} == {"student 0", "student 1"}
    shutil.copytree(whole, killed, symlinks=True)
    shutil.rmtree(killed / "iterations" / "1")
    for name in ("sample_1", "cache_1", "sft_1", "evaluate_1", "report"):
        (killed / "stages" / f"{name}.json").unlink()
    for pattern in ("iterations/1/pool/ramp/train.jsonl", "iterations/1/sft/checkpoints/2"):
        kill_at(start(repository, killed), killed, pattern)
    assert finish(start(repository, killed), killed) == expected


# ---- quick


@pytest.fixture
def run(repository, tmp_path):
    few = ("seed_examples=2", "pool_size=3", "hard_share=1.0")
    flags = (f"--config.workdir={tmp_path}", *(f"--config.evolve.{f}" for f in few))
    made = [dataclasses.replace(e, id=f"{s}{e.id}") for s in ("train", "rl") for e in examples(4)]
    for split, rows in (("train", [*examples(1, k=3), *made[:4]]), ("rl", made[4:])):
        write_jsonl(tmp_path / "data" / "ramp" / f"{split}.jsonl", rows)
    return evolve.Run(parse(repository, *flags), Usage(tmp_path))


def parse(repository, *flags):
    config = f"--config={repository / 'configs' / 'evolve.py'}"
    return cli.parse(evolve.EvolveRun, ["evolve", config, *flags])


def with_evolve(run, **changes):
    section = dataclasses.replace(run.cfg.evolve, **changes)
    return evolve.Run(dataclasses.replace(run.cfg, evolve=section), run.usage)


def ids(pool):
    return [e.id for e in pool.new], [e.id for e in pool.hard]


def test_who_is_given_which_examples(run):
    assert ids(evolve.choose_pool(run, 0)) == (["traine0", "traine1"], [])  # e0 has three masks
    assert ids(evolve.choose_pool(run, 1)) == (["rle0", "rle1", "rle2"], [])
    for n, pool, accepted in ((0, "train", ["traine0"]), (1, "rl", ["rle1"])):
        given = evolve.choose_pool(run, n).examples
        write_jsonl(run.iteration(n) / evolve.POOL, given)
        made = [demonstration(name, 0, "x") for name in accepted]
        write_jsonl(run.iteration(n) / evolve.ACCEPTED, made)
        write_jsonl(run.iteration(n) / evolve.REJECTED, [])
        assert given[0].id.startswith(pool)
    assert ids(evolve.choose_pool(run, 2)) == (["rle3"], ["rle0", "rle2"])
    failed = [Rejection("rle2", "tool_failure")] * run.cfg.evolve.samples
    write_jsonl(run.iteration(1) / evolve.REJECTED, [Rejection("rle0", "tool_failure"), *failed])
    assert ids(evolve.choose_pool(run, 2)) == (["rle2", "rle3"], ["rle0"])  # rle2 was never tried
    same = with_evolve(run, split="train")  # what the teacher has solved is not sampled again
    assert ids(evolve.choose_pool(same, 1)) == (["e0", "traine2"], ["traine1"])


def test_a_control_is_trained_as_long_on_the_teachers_demonstrations(run):
    beside = Control(run.cfg, run.usage)
    for n, folder in ((0, "iterations"), (1, "control"), (2, "control")):
        assert beside.iteration(n) == run.folder / folder / str(n)
        assert beside.student(n) == str(run.folder / folder / str(n) / "sft/checkpoints")
    assert beside.sft(2) == dataclasses.replace(run.sft(2), curriculum="0:ramp_sft_upto2")


def test_checkpoints_elsewhere_are_in_folders_that_name_no_step(run):
    """/kept/1 is step 1 of /kept to all that read checkpoints."""
    assert run.student(1) == str(run.folder / "iterations" / "1" / "sft/checkpoints")
    elsewhere = dataclasses.replace(run.cfg.checkpoint, folder="/kept")
    run.cfg = dataclasses.replace(run.cfg, checkpoint=elsewhere)
    assert run.student(1) == "/kept/student_1"


def test_a_collapse_stops_the_run_or_warns(run):
    for changes, found in (({"on_collapse": "stop"}, ["x"]), ({"on_collapse": "warn"}, [])):
        this = with_evolve(run, **changes)
        this.records = {"ramp": {}, "sample_0": {"collapsed": []}, "sample_1": {"collapsed": ["x"]}}
        assert this.collapsed() == found


@pytest.mark.parametrize("count", [0, 1])
def test_a_student_of_which_hardly_anything_is_kept_has_collapsed(run, capsys, monkeypatch, count):
    """Of fewer than two demonstrations no measure of diversity says anything."""
    this = with_evolve(run, on_collapse="stop", iterations=2)
    first = [demonstration(f"e{i}", 0, f"text {i} of many", searches=1 + i % 3) for i in range(30)]
    write_jsonl(this.iteration(0) / evolve.NEW, first)
    assert evolve.collapse(this, 1, first[:2]) == []
    found = evolve.collapse(this, 1, first[:count])
    assert found == [
        f"{count} kept, fewer than the 2 demonstrations whose diversity can be measured"
    ]

    def teach(cfg, may_be_empty):
        assert may_be_empty == (cfg.teacher == "local")
        made = first if cfg.teacher == "scripted" else first[:count]
        write_jsonl(Path(cfg.folder) / "demonstrations" / "train.jsonl", made)
        write_jsonl(Path(cfg.folder) / "demonstrations" / "train.rejected.jsonl", [])
        return {"tried": 30, "rejected": {}}

    done = []
    monkeypatch.setattr(evolve.build_trajectories, "run", teach)
    monkeypatch.setattr(evolve, "write_summary", lambda run: None)
    work = dict.fromkeys(this.stages(), dict) | {
        f"sample_{n}": lambda n=n: evolve.sample(this, n) for n in range(3)
    }
    monkeypatch.setattr(
        evolve.Run,
        "stages",
        lambda _: {name: lambda name=name: done.append(name) or work[name]() for name in work},
    )
    evolve.run(this.cfg)
    assert done[-2:] == ["sample_1", "report"]
    assert f"stopped: {found[0]}" in capsys.readouterr().out


def test_a_run_that_goes_on_has_a_new_report(repository, tmp_path, monkeypatch):
    """With more iterations; where there is nothing new, the file stays."""
    own = evolve.Run.stages

    def work(run, name):
        kind, _, n = name.partition("_")
        if kind == "evaluate":
            write_json(run.iteration(n) / "manifest.json", manifest(int(n), 0.5))
        return {}

    def stages(run):
        quick = {name: functools.partial(work, run, name) for name in own(run)}
        return quick | {"report": functools.partial(evolve.make_report, run)}

    monkeypatch.setattr(evolve.Run, "stages", stages)
    monkeypatch.setattr(evolve, "split_cpu", lambda devices: None)

    def shown(*flags):
        evolve.run(parse(repository, f"--config.workdir={tmp_path}", *flags))
        page = (tmp_path / "report.html").read_text()
        return page, len(data_of(page)["main"]["runs"][0]["iterations"])

    first = shown("--config.evolve.iterations=1")
    assert first[1] == 2
    assert shown("--config.evolve.iterations=1") == first
    more = ("--config.evolve.iterations=2", "--config.survival.changed=accept")
    assert shown(*more)[1] == 3


def test_the_stages_in_order(run):
    names = list(with_evolve(run, iterations=1).stages())
    first, second = ([f"{s}_{n}" for s in ("cache", "sft", "evaluate")] for n in (0, 1))
    rounds = ["sample_0", "tokenizer", *first, "sample_1", *second]
    assert names == ["ramp", "index", *rounds, "report"]


def test_the_students_articles_are_not_the_teachers(repository):
    cfg = parse(repository)
    assert cfg.evolve.split == "rl"
    assert cfg.ramp.rl_fraction > 0
    assert cfg.rollout.corrections == 0


def test_a_run_that_another_process_makes_is_left_alone(repository, tmp_path):
    cfg = parse(repository, f"--config.workdir={tmp_path}")
    with held(tmp_path) as other, pytest.raises(BeingWrittenError, match=f"process {other.pid} on"):
        evolve.run(cfg)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_an_evaluation_that_cannot_be_is_refused_before_anything_is_built(repository, tmp_path):
    for wrong in ("suites=", "methods=agent,agent"):
        flags = (f"--config.workdir={tmp_path / 'run'}", f"--config.eval.{wrong}")
        with pytest.raises(ConfigError, match=rf"config\.eval\.{wrong.partition('=')[0]} "):
            evolve.run(parse(repository, *flags))
        assert not (tmp_path / "run").exists()


def test_all_stages_have_the_tools_of_the_run(run, monkeypatch):
    run = evolve.Run(dataclasses.replace(run.cfg, tools=("calculate",)), run.usage)
    asked = []

    def note(cfg=None, *_, **settings):
        asked.append(settings["tools"].split(",") if settings else list(cfg.tools))

    monkeypatch.setattr(evolve.train_sft, "run", note)
    monkeypatch.setattr(evolve.evaluate, "run", note)
    monkeypatch.setattr(evolve.steps, "make_cache", note)
    monkeypatch.setattr(evolve.steps, "make_tokenizer", lambda *given: asked.append([*given[-1]]))
    for n in range(2):
        asked.append(list(evolve.teaching(run, n).tools))
        for stage in (evolve.make_cache, evolve.train, evolve.score):
            stage(run, n)
    evolve.make_tokenizer(run)
    assert asked == [["calculate"]] * 9
