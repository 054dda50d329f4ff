"""The whole recipe at toy size: what it leaves, and that stopping it anywhere changes nothing."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.crash_runs import curve
from masksearch_jax import evaluate, quickstart, train_dapo, train_sft, viewer
from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.files import BeingWrittenError
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import Demonstration, Passage, QAExample, Segment
from masksearch_jax.recipes import steps
from masksearch_jax.recipes.stage_folder import Usage
from masksearch_jax.runtime import cli
from masksearch_jax.testing.pages import data_of
from tests.mains.train_runs import changed
from tests.parallel.lock_holder import held

SMALL = (
    "rollout.slots=4", "rollout.max_new_tokens=48", "dapo.overlong_buffer=16",
    "qa_dapo.overlong_buffer=16", "qa_sft.steps=3", "qa_dapo.steps=1",
    "eval.examples=4", "eval.bootstrap=50",
    "checkpoint.every=1", "report_trajectories=2",
    "model.hidden_size=64", "model.intermediate_size=64", "model.head_dim=16",
)  # fmt: skip


# A shell's background job ignores Ctrl-C, and so would all that it starts. (`preexec_fn` would fork
# this process, which has JAX's threads.)
HEED_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def flags_of(repository, workdir, *overrides):
    flags = [f"--config.{o}" for o in (f"workdir={workdir}", *SMALL, *overrides)]
    return [f"--config={repository / 'configs' / 'quickstart.py'}:runlocal", *flags]


def start(repository, workdir, *overrides):
    """The command as a user starts it; what it says goes to WORKDIR.err and WORKDIR.out."""
    command = [sys.executable, "-c", HEED_CTRL_C, "-m", "masksearch_jax.quickstart"]
    command += flags_of(repository, workdir, *overrides)
    files = [open(f"{workdir}.{s}", "w") for s in ("out", "err")]  # noqa: SIM115, the child's
    try:
        return subprocess.Popen(command, cwd=repository, stdout=files[0], stderr=files[1])
    finally:
        for file in files:
            file.close()


def said(workdir, stream="err"):
    return Path(f"{workdir}.{stream}").read_text()


def finish(process, workdir):
    """The summary of a run that must end well."""
    assert process.wait() == 0, said(workdir)
    return json.loads((workdir / "summary.json").read_text())


def stop(process, workdir, reached, number):
    """Sends the signal once `reached(WORKDIR)`; the exit status.

    Again where nothing comes of it: TensorFlow's import drops a KeyboardInterrupt that it meets.
    """
    while not reached(workdir):
        assert process.poll() is None, said(workdir)
        time.sleep(0.02)
    for _ in range(5):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=10)
    return process.wait()


def curves(workdir):
    """Losses, rewards and counts of all trainings, without what depends on the clock."""
    return {name: curve(workdir / name) for name in quickstart.TRAININGS[:4]}


def stages_of(workdir):
    """Stages of the run of a folder, in order."""
    return [*json.loads((workdir / "summary.json").read_text())["stages"], "report"]


CONTROL = "control=True"


@pytest.fixture(scope="module")
def whole(repository, optimised, tmp_path_factory):
    """The folder and the summary of a run with a control that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("quickstart") / "whole"
    return workdir, finish(start(repository, workdir, CONTROL), workdir)


def test_the_log_says_how_many_searches_demonstrations_took(miniature, tmp_path, capsys):
    shutil.copytree(miniature.data, tmp_path / "data")
    wanted = {"demonstrations": 30, "question_demonstrations": 20}
    cfg = dataclasses.replace(miniature.cfg, workdir=str(tmp_path), search=miniature.search)
    made = quickstart.make_demonstrations(
        quickstart.Run(dataclasses.replace(cfg, **wanted), Usage(tmp_path))
    )
    said = re.search(
        r"searches: (.*); rank of the source passage in the first: (.*)", capsys.readouterr().err
    )
    searches, ranks = (dict(part.split(": ") for part in m.split(", ")) for m in said.groups())
    assert sum(map(int, searches.values())) == made["data"]["demonstrations"]["out"] == 50
    assert sum(map(int, ranks.values())) == 30  # of masked paragraphs


@pytest.mark.slow
def test_every_figure_is_in_the_summary(whole):
    workdir, summary = whole
    assert list(summary["stages"]) == [
        "ramp", "index", "demonstrations", "tokenizer", "cache", "evaluate_init",
        *(f"{part}{name}" for name in quickstart.TRAININGS[:4] for part in ("", "evaluate_")),
        "control", "evaluate_control", "export",
    ]  # fmt: skip
    assert all(stage["seconds"] > 0 for stage in summary["stages"].values())
    assert summary["wall_seconds"] >= sum(s["seconds"] for s in summary["stages"].values())
    assert 2**28 < summary["peak_memory_bytes"] < 2**32
    assert list(summary["eval"]) == ["init", *quickstart.TRAININGS[:4], "control"]
    measured = ("em", "f1", "format_rate", "searches", "source_hit")
    for name, suites in summary["eval"].items():
        hidden = {"source_hidden"} if name != "init" else set()
        assert suites.keys() == {"ramp", "questions"} | hidden
        for suite, conditions in suites.items():
            all_of_them = {"search", "no_search", "random"}
            assert conditions.keys() == ({"search"} if suite in hidden else all_of_them)
            recall = "recall" if suite == "questions" else "span_recall"
            for metrics in conditions.values():
                assert metrics.keys() >= {recall, *measured}
                assert all(
                    m.keys() == {"value", "low", "high", "n", "lost"} for m in metrics.values()
                )
    assert summary["eval_by_type"].keys() == summary["eval"].keys()
    by_masks = summary["eval_by_type"]["qa_dapo"]["ramp"]["search"]
    assert set(by_masks) <= {"k1", "k2", "k3", "k4"}
    assert sum(m["f1"]["n"] for m in by_masks.values()) == 4
    assert summary["time"].keys() == set(quickstart.TRAININGS)
    assert list(summary["updates"]) == list(quickstart.TRAININGS)
    sft = ("ramp_sft", "qa_sft", "control_sft")
    assert [summary["updates"][name] for name in sft] == [6, 3, 6 + 3]
    assert summary["data"].keys() == {
        "corpus", "questions", "clean", "ramp", "index", "demonstrations", "cache"
    }  # fmt: skip
    assert all({"in", "out", "dropped"} <= counts.keys() for counts in summary["data"].values())
    assert summary["export"]["tensors"] > 0
    data = data_of((workdir / "report.html").read_text())
    assert len(data["main"]["rows"]) == len(data["texts-0"]) == 2  # report_trajectories


@pytest.mark.slow
def test_every_training_tells_how_its_agent_is_to_be_asked(whole):
    workdir, summary = whole
    manifest = json.loads((workdir / "cache" / "manifest.json").read_text())
    assert manifest["prompt_style"] == "minimal"
    for name in quickstart.TRAININGS:
        record = json.loads((workdir / name / "run.json").read_text())
        assert record["config"]["prompt"] == {"style": "minimal"}, name
        assert record["config"]["search"]["index"] == str(workdir / "index"), name
        assert record["config"]["rollout"] == summary["config"]["rollout"], name


@pytest.mark.slow
def test_the_screen_is_short_and_names_every_stage(whole):
    workdir, _ = whole
    shown = said(workdir)
    stages = stages_of(workdir)
    headers = [line for line in shown.splitlines() if line.startswith("[")]
    assert headers == [f"[{i}/{len(stages)}] {name}" for i, name in enumerate(stages, 1)]
    slow_disk = "Waiting for previous save to complete"  # orbax warns of it
    warnings = [line for line in shown.splitlines() if "warning" in line.lower()]
    assert [line for line in warnings if slow_disk not in line] == []
    assert "Traceback" not in shown
    end = said(workdir, "out").splitlines()
    assert len(end) < 45
    assert all(len(line) <= 100 for line in end)
    assert [line.split()[0] for line in end[1 : len(stages)]] == stages[:-1]


@pytest.mark.slow
def test_the_same_command_again_changes_nothing(repository, whole):
    workdir, summary = whole
    page = (workdir / "report.html").read_bytes()
    assert finish(start(repository, workdir, CONTROL), workdir) == summary
    assert (workdir / "report.html").read_bytes() == page
    assert said(workdir).count("done before") == len(stages_of(workdir))


@pytest.mark.slow
def test_another_configuration_is_refused(repository, whole):
    workdir, _ = whole
    flags = flags_of(repository, workdir, CONTROL, "sft.steps=7")
    cfg = cli.parse(quickstart.QuickstartRun, ["quickstart", *flags])
    with pytest.raises(ConfigError, match=r"sft\.steps: 6 → 7"):
        quickstart.run(cfg)


@pytest.mark.slow
def test_a_control_trains_on_questions_alone_as_long_as_both_stages(whole):
    workdir, _ = whole
    made = {name: json.loads((workdir / name / "run.json").read_text())["config"]
            for name in quickstart.TRAININGS}  # fmt: skip
    steps_of = {name: c.get("sft", c.get("dapo"))["steps"] for name, c in made.items()}
    for kind in ("sft", "dapo"):
        assert steps_of[f"control_{kind}"] == steps_of[f"ramp_{kind}"] + steps_of[f"qa_{kind}"]
    assert made["control_sft"]["init"] == made["ramp_sft"]["init"] == ""
    assert made["control_sft"]["seed"] == made["ramp_sft"]["seed"]
    assert made["qa_sft"]["sft"]["curriculum"] == "0:ramp_sft_qa_mixed"
    assert made["control_sft"]["sft"]["curriculum"] == "0:qa_sft_mixed"
    assert made["control_dapo"]["dapo"]["curriculum"] == "0:qa_mixed"
    rates = json.loads((workdir / "cache" / "manifest.json").read_text())["mixtures"]
    assert rates["ramp_sft_qa_mixed"]["qa_sft_atlas"] == 0.8
    assert made["qa_sft"]["init"] == str(workdir / "ramp_dapo" / "checkpoints")
    main = data_of((workdir / "report.html").read_text())["main"]
    assert "control: QA alone" in {e["place"] for e in main["evaluations"]}
    assert {"control SFT", "control DAPO"} <= {s["place"] for s in main["series"]}


def header(name):
    return lambda workdir: f"] {name}\n" in said(workdir)


def lines(name, count):
    path = f"{name}/metrics.jsonl"
    return lambda workdir: (
        (workdir / path).exists() and (workdir / path).read_text().count("\n") >= count
    )


def exists(pattern):
    return lambda workdir: any(workdir.glob(pattern))


def both(first, second):
    return lambda workdir: first(workdir) and second(workdir)


# Stage → when to stop in it. A stage that takes no time is stopped at its start or in the next.
MOMENTS = {
    "ramp": header("ramp"),
    "demonstrations": exists("data/demonstrations/*"),
    "cache": exists("cache/*"),
    "evaluate_init": exists("eval/init/*.partial.jsonl"),
    "ramp_sft": lines("ramp_sft", 3),
    "ramp_dapo": lines("ramp_dapo", 1),
    "export": header("export"),
}
KILLS = {"ramp_sft": lines("ramp_sft", 4), "ramp_dapo": header("ramp_dapo")}


@pytest.mark.slow  # ten starts
def test_stopping_anywhere_changes_no_figure(repository, whole, tmp_path):
    """The undisturbed run has a control besides, which changes nothing of the others."""
    undisturbed, expected = whole
    workdir = tmp_path / "stopped"
    for name, moment in MOMENTS.items():
        # Its header first: files of an earlier session would stop this one while it still imports.
        reached = both(header(name), moment)
        status = stop(start(repository, workdir), workdir, reached, signal.SIGINT)
        assert status == 130, (name, said(workdir))
        end = "interrupted; the same command goes on from what is saved"
        assert end in said(workdir).splitlines()[-3:], (name, said(workdir))  # a library may add
        assert "Traceback" not in said(workdir), name
        if name in KILLS:
            status = stop(start(repository, workdir), workdir, KILLS[name], signal.SIGKILL)
            assert status == -signal.SIGKILL
    found = finish(start(repository, workdir), workdir)
    for key in ("eval", "eval_by_type"):
        assert found[key] == {n: v for n, v in expected[key].items() if n != "control"}, key
    for key in ("data", "export", "versions"):
        assert found[key] == expected[key], key
    assert curves(workdir) == curves(undisturbed)
    assert found["stages"].keys() == expected["stages"].keys() - {"control", "evaluate_control"}
    ours, theirs = (
        json.loads((w / "data" / "counts.json").read_text()) for w in (workdir, undisturbed)
    )
    assert ours == theirs


@pytest.mark.slow
def test_a_corpus_of_ones_own(repository, optimised, tmp_path):
    """Wikipedia's shape, no questions: RAMP alone is evaluated, and a bad line is counted."""
    path = tmp_path / "own.jsonl"
    text = "{} was founded in {} by King Olav the {}th on the river Glomma in the land of Norway."
    rows = [{"id": i, "title": f"Town {i}", "text": text.format(f"Town {i}", 1000 + i, i)}
            for i in range(200)]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + "{oops\n")
    workdir = tmp_path / "run"
    process = start(
        *(repository, workdir, f"corpus.path={path}", "corpus.limit=0"),
        *("ramp.heldout_fraction=0.2", "sft.steps=2", "dapo.steps=1"),
    )
    summary = finish(process, workdir)
    assert summary["data"]["corpus"] == {"in": 201, "out": 200, "dropped": {"not JSON": 1}}
    listed = workdir / "data" / "dropped.txt"
    assert f"rows that could not be read: {listed}\n" in said(workdir)
    assert listed.read_text().startswith(f"{path}:201: not JSON")
    assert list(summary["eval"]) == ["init", "ramp_sft", "ramp_dapo"]
    assert all(suites.keys() <= {"ramp", "source_hidden"} for suites in summary["eval"].values())
    assert said(workdir).count("left out: there are no questions") == 4
    card = (workdir / "hf" / "README.md").read_text()
    assert "RAMP: SFT, then DAPO |" in card


# ---- quick


@pytest.fixture
def run(repository, tmp_path):
    cfg = to_dataclass(
        quickstart.QuickstartRun, cli.load_config(f"{repository / 'configs' / 'quickstart.py'}")
    )
    cfg = dataclasses.replace(cfg, workdir=str(tmp_path))
    return quickstart.Run(cfg, Usage(tmp_path))


@pytest.mark.parametrize("patience", [20, 0])
def test_a_stage_that_never_updates_is_no_success_unless_nobody_asks(
    run, monkeypatch, capsys, patience
):
    monkeypatch.setattr(train_dapo, "run", lambda cfg: {"reward": 0.5, "all_updates": 0})
    dapo = dataclasses.replace(run.cfg.dapo, patience=patience)
    stage = functools.partial(
        quickstart.run_dapo, run, "ramp_dapo", "ramp_sft", dapo, run.cfg.dapo_optim
    )
    if patience:
        with pytest.raises(train_dapo.NothingLearnedError, match="30 steps are done and none upda"):
            stage()
        return
    assert stage()["updates"] == {"ramp_dapo": 0}
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("  nothing was learned: 30 steps are done and none updated the weights")


def test_the_control_counts_the_updates_of_both_its_trainings(run, monkeypatch):
    monkeypatch.setattr(train_sft, "run", lambda cfg, **_: {"all_updates": cfg.sft.steps})
    monkeypatch.setattr(train_dapo, "run", lambda cfg: {"all_updates": cfg.dapo.steps - 9})
    run.stage("control", lambda: quickstart.run_control(run))
    quickstart.write_summary(run)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["updates"] == {"control_sft": 2800, "control_dapo": 45}


def test_words_that_only_demonstrations_have_are_tokens(tmp_path):
    segments = tuple(Segment("policy", f"<think>{text}</think>") for text in ["Read subject."] * 9)
    shown = Demonstration("d", "e", "ramp_k1", "scripted", segments, ())
    passage = Passage("p", "Oslo", "Oslo lies in Norway.")
    spelled = []
    for name, demonstrations in (("without", []), ("with", [shown])):
        data = tmp_path / name
        write_jsonl(data / "passages.jsonl", [passage])
        write_jsonl(data / "demonstrations" / "train.jsonl", demonstrations)
        steps.make_tokenizer(data, data, data / "tokenizer", 320)
        spelled.append(len(Vocab.load(data / "tokenizer").encode(" subject")))
    assert spelled == [8, 1]


def cell(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 8}


def test_the_evaluation_is_a_table():
    by = {"search": {"span_recall": cell(0.8)}, "no_search": {"span_recall": cell(0.2)}}
    hidden = {"search": {"span_recall": cell(0.5)}}
    results = {"init": {"ramp": by}, "ramp_sft": {"ramp": by, "source_hidden": hidden}}
    assert quickstart.eval_lines(results) == [
        "                                    search                no_search",
        "ramp          span_recall init      0.800 [0.700, 0.900]  0.200 [0.100, 0.300]",
        "ramp          span_recall ramp_sft  0.800 [0.700, 0.900]  0.200 [0.100, 0.300]",
        "source_hidden span_recall ramp_sft  0.500 [0.400, 0.600]",
    ]


def test_an_unfinished_run_has_a_summary_and_a_report(run):
    run.stage("index", lambda: steps.counted("index", 4, 3, {"empty text": 1}))
    run.stage("evaluate_init", lambda: {"eval": {"ramp": {"search": {"em": cell(0.5)}}}})
    quickstart.write_summary(run)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["stages"].keys() == {"index", "evaluate_init"}
    assert summary["data"] == {"index": {"in": 4, "out": 3, "dropped": {"empty text": 1}}}
    assert summary["eval"] == {"init": {"ramp": {"search": {"em": cell(0.5)}}}}
    assert summary["eval_by_type"] == {}
    assert summary["export"] == {}
    main = data_of(viewer.render([run.folder]))["main"]
    assert [step["said"] for step in main["runs"][0]["data"]] == ["kept 3; left out: 1 empty text"]


def test_a_cache_that_cannot_be_built_stops_the_run(run, capfd):
    with pytest.raises(UserError, match="build_cache ended with status 1"):
        quickstart.make_cache(run)
    assert f"error: tokenizer '{run.tokenizer}' is not a local folder" in capfd.readouterr().err


def write_questions(run):
    for split in ("train", "rl", "heldout"):
        asked = [QAExample(split, "d", "Which?", ("x",))]
        write_jsonl(run.data / "questions" / f"{split}.jsonl", asked)


def test_the_model_evaluated_first_is_the_one_that_sft_starts_from(run):
    assert run.checkpoints("init") == ""
    assert run.checkpoints("qa_sft") == os.path.join(run.folder, "qa_sft", "checkpoints")
    assert run.checkpoints("control") == os.path.join(run.folder, "control_dapo", "checkpoints")


def test_without_questions_the_recipe_ends_with_the_first_stage(run):
    assert not run.has_questions
    assert run.last == "ramp_dapo"
    write_questions(run)
    assert run.last == "qa_dapo"
    (run.data / "questions" / "rl.jsonl").unlink()
    assert not run.has_questions


def test_a_run_that_another_process_makes_is_left_alone(repository, tmp_path):
    cfg = cli.parse(quickstart.QuickstartRun, ["quickstart", *flags_of(repository, tmp_path)])
    with held(tmp_path) as other, pytest.raises(BeingWrittenError, match=f"process {other.pid} on"):
        quickstart.run(cfg)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_an_evaluation_that_cannot_be_is_refused_before_anything_is_built(repository, tmp_path):
    for wrong in ("suites=", "methods=agent,agent", "suites=ramp,ramp=x"):
        argv = ["quickstart", *flags_of(repository, tmp_path / "run", f"eval.{wrong}")]
        with pytest.raises(ConfigError, match=rf"config\.eval\.{wrong.partition('=')[0]} "):
            quickstart.run(cli.parse(quickstart.QuickstartRun, argv))
        assert not (tmp_path / "run").exists()


def test_a_text_without_any_item_of_the_suites_is_told(run, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluate, "run", lambda cfg, model: asked.append(cfg.eval.suites))
    monkeypatch.setattr(quickstart, "by_condition", lambda found: ({}, {}))
    for suites in (("questions",), ("source_hidden",), ("questions", "source_hidden")):
        run.cfg = changed(run.cfg, "eval", suites=suites)
        if suites == ("questions",):
            said = r"config\.eval\.suites is questions, and the text has no questions; .*source_"
            with pytest.raises(ConfigError, match=said):
                quickstart.evaluate_model(run, "init")
        else:
            quickstart.evaluate_model(run, "init")
    assert asked == [("source_hidden",)] * 2  # of random weights too, where nothing else is asked


CONTROLS = ["control", "evaluation control: QA alone"]  # as the report calls these stages


@pytest.fixture
def at_once(monkeypatch):
    """Stages of quickstart without their work, in their order, and the names of those made."""
    made, own = [], quickstart.stages

    def work(name):
        def stage(run):
            made.append(name)
            if name == "ramp":
                write_questions(run)
            if name == "export":
                (run.folder / "hf").mkdir(exist_ok=True)
                (run.folder / "hf" / "made").write_text(str(made.count(name)))
            return {"eval": {"ramp": {"search": {"em": cell(0.5)}}}, "eval_by_type": {}}

        return stage

    def stages(cfg):
        return {name: work(name) for name in own(cfg)} | {"report": quickstart.run_report}

    monkeypatch.setattr(quickstart, "stages", stages)
    monkeypatch.setattr(quickstart, "split_cpu", lambda devices: None)
    return made


def test_what_a_run_shows_is_made_again_where_it_goes_on(repository, tmp_path, at_once):
    """The report with each stage; the model's folder with what it ends with, its tokenizer too."""

    def go(*overrides):
        argv = ["quickstart", *flags_of(repository, tmp_path, *overrides)]
        at_once.clear()
        quickstart.run(cli.parse(quickstart.QuickstartRun, argv))
        files = (tmp_path / "report.html").read_text(), (tmp_path / "hf" / "made").stat()
        (shown,) = data_of(files[0])["main"]["runs"]
        return [*at_once], files, [stage["name"] for stage in shown["stages"]]

    made, first, shown = go()
    assert (made[-1], len(made), len(shown)) == ("export", 15, 15)
    assert go()[:2] == ([], first)  # nothing new: the same files
    more, second, shown = go("control=True", "survival.changed=accept")
    assert more == ["control", "evaluate_control"]
    assert second[0] != first[0]
    assert (len(shown), [s for s in shown if "control" in s]) == (17, CONTROLS)
    assert second[1] == first[1]  # of the model that the recipe ends with
    for name in ("qa_dapo", "tokenizer"):
        (tmp_path / "stages" / f"{name}.json").unlink()
        assert go("control=True")[0] == [name, "export"]


def test_a_report_that_a_stop_left_undone_is_made(repository, tmp_path, at_once, monkeypatch):
    """It shows the stage before the stop, though a summary with that was not written."""
    argv = ["quickstart", *flags_of(repository, tmp_path)]
    quickstart.run(cli.parse(quickstart.QuickstartRun, argv))
    argv += ["--config.control=True", "--config.survival.changed=accept"]
    cfg = cli.parse(quickstart.QuickstartRun, argv)
    write = quickstart.write_summary

    def stopped(run):
        if "evaluate_control" in run.records:
            raise KeyboardInterrupt
        write(run)

    with monkeypatch.context() as patch:
        patch.setattr(quickstart, "write_summary", stopped)
        with pytest.raises(KeyboardInterrupt):
            quickstart.run(cfg)
    at_once.clear()
    quickstart.run(cfg)
    assert at_once == []
    (shown,) = data_of((tmp_path / "report.html").read_text())["main"]["runs"]
    assert [s["name"] for s in shown["stages"]][-3:-1] == CONTROLS
    assert "control" in json.loads((tmp_path / "summary.json").read_text())["eval"]


def test_the_control_is_a_stage_where_it_is_asked_for(run):
    without = list(quickstart.stages(run.cfg))
    both = list(quickstart.stages(dataclasses.replace(run.cfg, control=True)))
    assert [s for s in both if s not in without] == ["control", "evaluate_control"]
    assert both[-2:] == without[-2:] == ["export", "report"]
