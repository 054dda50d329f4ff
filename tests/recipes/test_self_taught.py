"""A student's own trajectories beside the teacher's: an arm that has none is no arm of its own."""

import dataclasses
from pathlib import Path

import pytest

from configs import quickstart as config
from masksearch_jax import build_trajectories, quickstart
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.types import Demonstration, RampExample, Segment, Span
from masksearch_jax.recipes import self_taught
from masksearch_jax.recipes.self_taught import NothingAcceptedError
from masksearch_jax.recipes.stage_folder import Usage

EXAMPLE = RampExample("e", "p", "t", "A [mask].", "A b.", (Span(2, 3, "b", "TERM"),))
NEW = dataclasses.replace(EXAMPLE, id="new")


def shown(name, text):
    return Demonstration(name, "e", "ramp_k1", "scripted", (Segment("policy", text),), ())


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """Samples for a run whose teacher showed one demonstration, a student that says as told."""
    cfg = to_dataclass(quickstart.QuickstartRun, config.get_config("tiny,runlocal"))
    run = quickstart.Run(dataclasses.replace(cfg, workdir=str(tmp_path / "text")), Usage(tmp_path))
    for split, rows in (("rl", []), ("train", [EXAMPLE])):
        write_jsonl(run.data / "ramp" / f"{split}.jsonl", rows)
    write_jsonl(run.data / build_trajectories.DEMONSTRATIONS, [shown("teacher", "b")])

    def sampled(*accepted, least=1, examples=1):
        def build(cfg, may_be_empty):
            assert may_be_empty  # what comes of none is decided here
            write_jsonl(Path(cfg.folder) / build_trajectories.DEMONSTRATIONS, accepted)
            return {"tried": 4, "rejected": {"out_of_tokens": 3, "spans_wrong": 1}}

        monkeypatch.setattr(build_trajectories, "run", build)
        record = self_taught.sample(run, tmp_path / "samples", examples, 4, least)
        found = read_jsonl(
            tmp_path / "samples" / "data" / build_trajectories.DEMONSTRATIONS, Demonstration
        )
        return record["data"]["own trajectories"], [d.id for d in found]

    return sampled


def test_own_trajectories_are_merged_with_the_teachers(sample):
    counts, found = sample(shown("own", "c"), shown("same", "b"))
    assert found == ["teacher", "own"]
    assert (counts["in"], counts["dropped"]["known before"]) == (4, 1)


@pytest.mark.parametrize(
    ("accepted", "dropped"), [([], ""), ([shown("same", "b")], ", 1 known before")]
)
def test_a_student_without_a_trajectory_of_its_own_is_no_arm(sample, tmp_path, accepted, dropped):
    with pytest.raises(NothingAcceptedError) as error:
        sample(*accepted)
    assert str(error.value) == (
        "4 trajectories of 1 examples were sampled, and 0 of them are demonstrations that the "
        "teacher has not shown, below config.own_least, 1: self_sft would learn from the teacher "
        f"alone; without: 3 out_of_tokens, 1 spans_wrong{dropped}; train the stage before for "
        "longer, or raise config.own_examples or config.own_samples"
    )
    assert not (tmp_path / "samples" / "data").exists()


def test_where_nobody_asks_the_teacher_alone_is_learned_from(sample, capsys):
    _, found = sample(least=0)
    assert found == ["teacher"]
    assert "0 of 4 own trajectories accepted" in capsys.readouterr().err


def test_examples_that_the_teacher_has_shown_do_not_fill_up_new_ones(sample, tmp_path, capsys):
    """`rl` has one example of two that are wanted; the other split is what the teacher showed."""
    write_jsonl(tmp_path / "text" / "data" / "ramp" / "rl.jsonl", [NEW])
    sample(shown("own", "c"), examples=2)
    pool = read_jsonl(tmp_path / "samples" / "pool" / "ramp" / "train.jsonl", RampExample)
    assert [e.id for e in pool] == [NEW.id]
    assert "1 examples are sampled, and 2 were wanted" in capsys.readouterr().err
