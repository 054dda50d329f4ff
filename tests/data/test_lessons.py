"""Batches under a curriculum that listens: shares of earlier lessons, measured rates, rests."""

from __future__ import annotations

import collections
import json
import re

import numpy as np
import pytest

from masksearch_jax.core.curriculum_config import LessonsConfig
from masksearch_jax.core.types import QAExample, to_json
from masksearch_jax.data.batches import PromptBatches, prompt_batches
from masksearch_jax.data.cache import CacheError, Manifest, write_split
from masksearch_jax.data.gate import figure_of

TASKS = ("ramp_k1", "ramp_k2")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    cache = tmp_path_factory.mktemp("cache")
    tasks = {}
    for task in TASKS:
        records = (
            {
                "id": f"{task}-{i}",
                "ids": np.arange(3, dtype=np.int32),
                "example": json.dumps(to_json(QAExample(f"{task}-{i}", "d", "Who?", ("x",)))),
            }
            for i in range(40)
        )
        split = write_split(cache, task, "train", records, kind="prompt", max_len=9, made_from=task)
        tasks[task] = {"train": split}
    tasks["ramp_k3"] = {}
    Manifest(
        folder=cache,
        made_from="s",
        tokenizer="f00d",
        vocab_size=10,
        eos_id=0,
        pad_id=0,
        prompt_style="minimal",
        tasks=tasks,
        mixtures={
            "both": dict.fromkeys(TASKS, 1.0),
            "all": dict.fromkeys((*TASKS, "ramp_k3"), 1.0),
        },
    ).save()
    return Manifest.load(cache)


def prompts(manifest: Manifest, curriculum: str, groups: int = 20, **lessons) -> PromptBatches:
    config = LessonsConfig(**lessons)
    return prompt_batches(manifest, curriculum, groups=groups, seed=0, lessons=config)


def names(batch) -> list[str]:
    return [prompt.example.id for prompt in batch]


def counts(batch) -> dict[str, int]:
    return dict(collections.Counter(name.partition("-")[0] for name in names(batch)))


def test_a_share_of_a_lesson_comes_from_those_before(manifest):
    given = prompts(manifest, "0:ramp_k1,1:ramp_k2", keep_earlier=0.25)
    assert counts(next(given)) == {"ramp_k1": 20}
    assert counts(next(given)) == {"ramp_k1": 5, "ramp_k2": 15}
    alone = prompts(manifest, "0:ramp_k1,1:ramp_k2")
    next(alone)
    assert counts(next(alone)) == {"ramp_k2": 20}


def test_a_task_without_records_is_told(manifest, capsys):
    assert counts(next(prompts(manifest, "0:both,1:all"))) == {"ramp_k1": 10, "ramp_k2": 10}
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "  mixture 'all' has no records of ramp_k3 in split 'train': its lessons"
    )


def test_a_lesson_without_records_is_refused_with_those_that_have_some(manifest):
    said = (
        "curriculum: mixture 'ramp_k3' has no 'prompt' records in split 'train'; "
        "choices: both, all, ramp_k1, ramp_k2"
    )
    with pytest.raises(CacheError, match=f"^{re.escape(said)}$"):
        prompts(manifest, "0:both,1:ramp_k3")


def test_measured_rates_change_the_next_batch_and_go_on_after_a_resume(manifest):
    measured = {figure_of("k1"): 1.0, figure_of("k2"): 0.5}
    given = prompts(manifest, "0:both", by="adaptive", least=0.25)
    assert counts(next(given)) == {"ramp_k1": 10, "ramp_k2": 10}
    given.gate.listen(1, measured)
    assert counts(next(given)) == {"ramp_k1": 4, "ramp_k2": 16}
    state = json.loads(json.dumps(given.get_state()))
    rest = [names(next(given)) for _ in range(2)]
    again = prompts(manifest, "0:both", by="adaptive", least=0.25)
    again.set_state(state)
    assert [names(next(again)) for _ in range(2)] == rest


def test_a_gated_lesson_goes_on_after_a_resume(manifest):
    given = prompts(manifest, "0:ramp_k1,1:ramp_k2", by="gated", threshold=0.5)
    for step in range(3):
        assert counts(next(given)) == {"ramp_k1": 20}
        given.gate.listen(step + 1, {figure_of("k1"): 0.2 * step})
    given.gate.listen(3, {figure_of("k1"): 0.6})
    state = given.get_state()
    assert counts(next(given)) == {"ramp_k2": 20}
    again = prompts(manifest, "0:ramp_k1,1:ramp_k2", by="gated", threshold=0.5)
    again.set_state(json.loads(json.dumps(state)))
    assert counts(next(again)) == {"ramp_k2": 20}


def test_prompts_that_rest_are_passed_over_until_all_do(manifest):
    whole = names(next(prompts(manifest, "0:ramp_k1")))
    given = prompts(manifest, "0:ramp_k1")
    given.is_resting = set(whole[::2]).__contains__
    drawn = names(next(given))
    assert drawn[:10] == whole[1::2]
    assert not set(drawn) & set(whole[::2])
    assert len(set(drawn)) == 20
    given.is_resting = lambda name: True
    assert len(names(next(given))) == 20


def test_prompts_that_rest_only_make_up_for_those_that_lack(manifest):
    given = prompts(manifest, "0:ramp_k1")
    awake = {f"ramp_k1-{i}" for i in range(15)}
    given.is_resting = lambda name: name not in awake
    drawn = names(next(given))
    assert awake <= set(drawn)
    assert len(set(drawn)) == 20


def test_measured_rates_keep_no_order_of_stretches_that_are_over(manifest):
    given = prompts(manifest, "0:both", by="adaptive")
    for step in range(20):
        next(given)
        given.gate.listen(step + 1, {figure_of("k1"): 0.05 * step})
    assert len(given.gate.stretches) == 21
    assert given._order._order.cache_info().currsize == 2
