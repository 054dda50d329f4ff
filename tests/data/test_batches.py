"""The cache and the batches read from it: contents, order, positions, and damage found out."""

import collections
import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from masksearch_jax.core.types import QAExample, RampExample, Span, to_json
from masksearch_jax.data.batches import prompt_batches, sft_batches
from masksearch_jax.data.cache import (
    CacheError,
    Manifest,
    Records,
    decode,
    encode,
    finished_split,
    write_split,
)
from masksearch_jax.data.curriculum import Lesson, Order, parse_curriculum
from tests.data.records import sft_records

PAD, SEQ_LEN, CONTEXT = 999, 64, 0.25
CURRICULUM = "0:upto1,3:both,7:upto1"


def examples(count: int):
    for i in range(count):
        span = Span(2, 6, f"é{i:03d}", "TERM")
        yield RampExample(f"r{i}", "p", "T", "A [mask].", f"A é{i:03d}.", (span,))


def write(cache, sft=(("a", 50), ("b", 31)), prompts=(("r", 40), ("q", 10))):
    tasks = {}
    for seed, (task, count) in enumerate(sft, 1):
        made = sft_records(task, count, seed)
        split = write_split(
            cache, task, "train", made, kind="sft", max_len=39, made_from=f"{task}{count}"
        )
        tasks[task] = {"train": split}
    for task, count in prompts:
        found = (
            list(examples(count))
            if task == "r"
            else [QAExample(f"q{i}", "d", "Who?", ("x", "y")) for i in range(count)]
        )
        made = (
            {"id": e.id, "ids": np.arange(3, dtype=np.int32), "example": json.dumps(to_json(e))}
            for e in found
        )
        tasks[task] = {
            "train": write_split(
                cache, task, "train", made, kind="prompt", max_len=9, made_from=task
            )
        }
    mixtures = {"upto1": {"a": 1.0}, "both": {"a": 1.0, "b": 1.0}, "ask": {"r": 3.0, "q": 1.0}}
    Manifest(
        folder=cache,
        made_from="s",
        tokenizer="f00d",
        vocab_size=10**7,
        eos_id=0,
        pad_id=PAD,
        prompt_style="minimal",
        tasks=tasks,
        mixtures={n: r for n, r in mixtures.items() if set(r) <= set(tasks)},
    ).save()
    return Manifest.load(cache)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cache"))


def batches(manifest, curriculum=CURRICULUM, *, seed=0, rows=4, **kwargs):
    return sft_batches(
        manifest,
        curriculum,
        batch_size=rows,
        seq_len=SEQ_LEN,
        seed=seed,
        context_loss_weight=CONTEXT,
        **kwargs,
    )


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], strict=True)


def segments(batch):
    """(row, ids, targets, positions, weights) of every segment of a batch."""
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, ids.max() + 1):
            at = ids == segment
            yield tuple(batch[k][row][at] for k in ("ids", "targets", "positions", "loss_weights"))


# ---- records


def test_a_record_comes_back_with_its_dtypes():
    record = {"id": "é", "ids": np.array([3, -1], np.int32), "agent": np.array([True, False])}
    found = decode(encode(record))
    assert found["id"] == "é"
    for key in ("ids", "agent"):
        np.testing.assert_array_equal(found[key], record[key], strict=True)


def test_records_hold_text_and_vectors_only():
    with pytest.raises(TypeError, match="1-D arrays, not ndarray"):
        encode({"ids": np.zeros((2, 2))})


def test_shards_read_as_one_source_in_order(tmp_path):
    made = list(sft_records("a", 25, 1))
    split = write_split(
        tmp_path, "a", "train", made, kind="sft", max_len=99, made_from="", records_per_shard=10
    )
    assert [count for _, _, count in split.shards] == [10, 10, 5]
    records = Records(tmp_path / "a-train", split)
    assert [r["id"] for r in records] == [r["id"] for r in made]
    assert records.lengths.tolist() == [len(r["ids"]) for r in made]
    np.testing.assert_array_equal(records[17]["ids"], made[17]["ids"])
    assert split.tokens == sum(len(r["ids"]) for r in made)
    assert split.agent_tokens == sum(int(r["agent"].sum()) for r in made)


def test_too_long_records_are_dropped_counted_and_named(tmp_path):
    made = list(sft_records("a", 60, 1))
    long = {r["id"]: len(r["ids"]) for r in made if len(r["ids"]) > 20}
    split = write_split(tmp_path, "a", "train", made, kind="sft", max_len=20, made_from="")
    assert (split.records, split.dropped) == (60 - len(long), len(long))
    listed = (tmp_path / "a-train" / "dropped.jsonl").read_text().splitlines()
    assert {row["id"]: row["tokens"] for row in map(json.loads, listed)} == long
    assert len(listed) == len(long) > 20
    assert split.longest <= 20 == split.max_len
    write_split(tmp_path, "a", "train", made, kind="sft", max_len=10**6, made_from="")
    assert not (tmp_path / "a-train" / "dropped.jsonl").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from sft_records("a", 3, 1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_split(tmp_path, "a", "train", broken(), kind="sft", max_len=99, made_from="")
    assert list(tmp_path.iterdir()) == []
    assert finished_split(tmp_path, "a", "train", "") is None


def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path):
    """A file size limit stands in for a full disk; it needs a process of its own."""
    code = f"""
import resource, signal
from masksearch_jax.data.cache import write_split
from tests.data.records import sft_records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
try:
    write_split({str(tmp_path)!r}, "a", "train", sft_records("a", 3000, 1), kind="sft",
                max_len=99, made_from="")
except OSError as error:
    print(type(error).__name__, error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert re.match(r"OSError \[Errno \d+\].*/\.a-train\.partial/data-00000", done.stdout), (
        done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_can_be_opened(tmp_path):
    split = write_split(tmp_path, "a", "train", [], kind="sft", max_len=9, made_from="")
    assert (len(Records(tmp_path / "a-train", split)), split.shards) == (0, ())


def test_the_manifest_is_the_same_after_saving(manifest):
    again = Manifest.load(manifest.folder, tokenizer="f00d", prompt_style="minimal")
    assert again == manifest


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"tokenizer": "beef"}, "tokenizer 'f00d', the run has 'beef'"),
        ({"prompt_style": "chat"}, "prompt style 'minimal', the run has 'chat'"),
    ],
)
def test_a_cache_of_another_tokenizer_or_style_is_refused(manifest, wanted, message):
    with pytest.raises(CacheError, match=message):
        Manifest.load(manifest.folder, **wanted)


def test_a_cache_without_manifest_or_of_another_format_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_cache"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(CacheError, match="format 99"):
        Manifest.load(tmp_path)


def test_unknown_names_come_with_the_nearest(manifest):
    with pytest.raises(CacheError, match=r"'upto2'; nearest is 'upto1'"):
        manifest.rates("upto2")
    with pytest.raises(CacheError, match=r"no task 'c'"):
        manifest.open("c", "train")
    with pytest.raises(CacheError, match=r"task 'a' has no split 'test'.*\['train'\]"):
        manifest.open("a", "test")


@pytest.mark.parametrize("damage", ["cut", "missing", "replaced"])
def test_damaged_shards_are_found_on_opening(tmp_path, damage):
    manifest = write(tmp_path)
    path = tmp_path / "a-train" / "data-00000.array_record"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CacheError, match=r"a-train/data-00000.*build it again"):
        manifest.open("a", "train")
    assert finished_split(tmp_path, "a", "train", manifest.tasks["a"]["train"].made_from) is None


# ---- curriculum and order


def test_curriculum_is_parsed():
    lessons = parse_curriculum("0:x, 20:y", ["x", "y"])
    assert lessons == (Lesson(0, "x"), Lesson(20, "y"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not STEP:MIXTURE"),
        ("ramp", "'ramp' is not STEP:MIXTURE"),
        ("0:ramp,-3:ramp", "'-3:ramp' is not STEP:MIXTURE"),
        ("5:ramp", "steps must rise from 0, '5:ramp'"),
        ("0:ramp,0:ramp", "steps must rise from 0, '0:ramp'"),
        ("0:ramp,9:ramb", "no mixture or task 'ramb'; nearest is 'ramp'"),
    ],
)
def test_a_wrong_curriculum_is_quoted(text, message):
    with pytest.raises(CacheError, match=message):
        parse_curriculum(text, ["ramp", "qa"])


def test_every_epoch_is_another_permutation(manifest):
    found = Order(manifest, "0:a", "train", "sft", 5)
    size = len(found.records["a"])
    epochs = [[found.record(0, epoch * size + i)["id"] for i in range(size)] for epoch in range(3)]
    assert all(sorted(e) == sorted(epochs[0]) and len(set(e)) == size for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_mixture_keeps_its_rates_all_the_way(manifest):
    found = Order(manifest, "0:ask", "train", "prompt", 0)
    tasks = [found.record(0, i)["id"][0] for i in range(400)]
    for end in (4, 40, 400):
        assert abs(collections.Counter(tasks[:end])["r"] - 0.75 * end) <= 1


def test_order_depends_on_the_seed_and_nothing_else(manifest):
    def ids(seed):
        found = Order(manifest, "0:both", "train", "sft", seed)
        return [found.record(0, i)["id"] for i in range(30)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


# ---- packing


def test_packed_rows_hold_whole_records(manifest):
    known = {int(r["ids"][0]): r for t in ("a", "b") for r in manifest.open(t, "train")}
    used = 0
    for batch in take(batches(manifest, "0:both"), 20):
        for ids, targets, positions, weights in segments(batch):
            record = known[int(ids[0])]
            np.testing.assert_array_equal(ids, record["ids"])
            np.testing.assert_array_equal(targets[:-1], record["ids"][1:])
            np.testing.assert_array_equal(positions, np.arange(len(ids)))
            np.testing.assert_array_equal(weights[:-1], np.where(record["agent"][1:], 1, CONTEXT))
            assert weights[-1] == 0, "the last token of a segment has no next one"
            used += len(ids)
        padding = batch["segment_ids"] == 0
        assert (batch["ids"][padding] == PAD).all()
        assert (batch["loss_weights"][padding] == 0).all()
        assert all((np.diff(row[row > 0]) >= 0).all() for row in batch["segment_ids"])
    assert used > 0.85 * 20 * 4 * SEQ_LEN, "rows should be well filled"


def test_batches_have_the_promised_types(manifest):
    batch = next(batches(manifest))
    kinds = {k: (v.dtype, v.shape) for k, v in batch.items()}
    names = ("ids", "targets", "positions", "segment_ids")
    expected = {k: (np.dtype(np.int32), (4, SEQ_LEN)) for k in names}
    assert kinds == expected | {"loss_weights": (np.dtype(np.float32), (4, SEQ_LEN))}


# ---- positions


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows_of_one_global_batch(manifest, count):
    whole = take(batches(manifest), 10)
    parts = [
        take(batches(manifest, process_index=p, process_count=count), 10) for p in range(count)
    ]
    glued = [
        {k: np.concatenate([part[k] for part in step]) for k in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(glued, whole)


@pytest.mark.parametrize("stop", [0, 2, 3, 8])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_position_restores_on_another_number_of_processes(manifest, stop, prefetch):
    whole = take(batches(manifest), 12)
    iterator = batches(manifest, process_index=1, process_count=2, prefetch=prefetch)
    take(iterator, stop)
    state = json.loads(json.dumps(iterator.get_state()))
    other = batches(manifest, prefetch=prefetch)
    take(other, 3)
    other.set_state(state)
    assert_same(take(other, 12 - stop), whole[stop:])
    if hasattr(iterator, "close"):
        iterator.close(), other.close()


def test_lessons_begin_at_their_step(manifest):
    firsts = [
        {int(ids[0]) // 1_000_000 for ids, *_ in segments(batch)}
        for batch in take(batches(manifest), 10)
    ]
    assert firsts[:3] == [{1}] * 3
    assert firsts[3:7] == [{1, 2}] * 4
    assert firsts[7:] == [{1}] * 3


def test_a_later_lesson_may_change_and_the_past_may_not(manifest, tmp_path):
    iterator = batches(manifest, "0:upto1,9:both")
    take(iterator, 4)
    state = iterator.get_state()
    batches(manifest, "0:upto1,5:both").set_state(state)
    for other in (
        batches(manifest, "0:both"),
        batches(manifest, "0:upto1", seed=1),
        batches(write(tmp_path, sft=(("a", 51), ("b", 31))), "0:upto1"),
    ):
        with pytest.raises(CacheError, match="position of step 4 counts in another order"):
            other.set_state(state)


def test_wrong_requests_are_refused(manifest):
    with pytest.raises(CacheError, match="batch_size=4 must be a multiple of the 3"):
        batches(manifest, process_count=3)
    with pytest.raises(CacheError, match="holds 'prompt' records"):
        batches(manifest, "0:ask")
    with pytest.raises(
        CacheError, match="no 'sft' records in split 'heldout'; it has them in 'train'"
    ):
        batches(manifest, split="heldout")
    empty = dataclasses.replace(manifest.tasks["a"]["train"], records=0, dropped=7)
    short = dataclasses.replace(manifest, tasks={"a": {"train": empty}}, mixtures={})
    with pytest.raises(CacheError, match=r": 7 were too long .* a larger config\.max_len"):
        batches(short, "0:a")
    tasks = {"a": {"train": empty}, "b": manifest.tasks["b"]}
    short = dataclasses.replace(manifest, tasks=tasks, mixtures={"upto1": {}})
    with pytest.raises(CacheError, match=r"'upto1' has no .*: 7 were too long .*config\.max_len"):
        batches(short, "0:upto1")
    with pytest.raises(CacheError, match=r"a-train has a record of \d+ tokens, seq_len is 9"):
        sft_batches(manifest, "0:a", batch_size=1, seq_len=9, seed=0, context_loss_weight=1.0)
    longest = int(manifest.open("a", "train").lengths.max())
    batches(manifest, "0:a", context=longest)
    with pytest.raises(CacheError, match=rf"{longest} tokens, and .* context is of {longest - 1} "):
        batches(manifest, "0:a", context=longest - 1)


# ---- prompts for RL


def names(prompts):
    return [p.example.id for p in prompts]


def test_prompts_come_with_their_examples(manifest):
    prompts = next(prompt_batches(manifest, "0:ask", groups=8, seed=0))
    assert {type(p.example) for p in prompts} == {RampExample, QAExample}
    known = {e.id: e for e in examples(40)}
    for prompt in prompts:
        assert prompt.ids.tolist() == [0, 1, 2]
        if isinstance(prompt.example, RampExample):
            assert prompt.example == known[prompt.example.id]


def test_no_prompt_comes_twice_before_all_have_come(manifest):
    iterator = prompt_batches(manifest, "0:r", groups=8, seed=3)
    drawn = names(next(iterator)) + names(iterator.extra(2)) + names(iterator.extra(6))
    drawn += names(next(iterator)) + names(iterator.extra(16))
    assert sorted(drawn) == sorted(e.id for e in examples(40))


def test_a_step_that_draws_a_prompt_twice_is_told_once(tmp_path, capsys):
    manifest = long_prompts(tmp_path, [4] * 6)
    iterator = prompt_batches(manifest, "0:r", groups=4, seed=0)
    assert len({*names(next(iterator)), *names(iterator.extra(2))}) == 6
    assert capsys.readouterr().err == ""
    next(iterator)
    iterator.extra(2)
    assert len(set(names(iterator.extra(3)))) == 3
    assert capsys.readouterr().err == (
        "  step 2 draws 3 of 9 prompts again: mixture 'r' has 6 prompts, which refills and the end "
        "of an epoch go through; a larger mixture, fewer dapo.groups or dapo.max_refills repeat "
        "none (later steps are not told)\n"
    )
    next(iterator)
    iterator.extra(6)
    assert capsys.readouterr().err == ""
    for process, told in ((0, True), (1, False)):
        one = prompt_batches(
            manifest, "0:r", groups=4, seed=0, process_index=process, process_count=2
        )
        next(one)
        one.extra(4)
        assert bool(capsys.readouterr().err) == told


def test_the_first_prompts_of_all_lessons_are_seen_without_drawing(manifest):
    iterator = prompt_batches(manifest, "0:r,2:q", groups=2, seed=0)
    state = iterator.get_state()
    ahead = names(iterator.first(2))
    assert iterator.get_state() == state
    assert ahead[:2] == names(next(iterator))
    next(iterator)
    assert ahead[2:] == names(next(iterator))


def test_extra_prompts_do_not_advance_the_curriculum(manifest):
    iterator = prompt_batches(manifest, "0:r,2:q", groups=2, seed=0)
    kinds = []
    for _ in range(3):
        kinds.append({n[0] for n in names(next(iterator)) + names(iterator.extra(10))})
    assert kinds == [{"r"}, {"r"}, {"q"}]
    assert iterator.get_state()["step"] == 3


def long_prompts(folder, lengths):
    """A cache of one task whose prompts have these lengths."""
    made = [
        {
            "id": e.id,
            "ids": np.arange(length, dtype=np.int32),
            "example": json.dumps(to_json(e)),
        }
        for e, length in zip(examples(len(lengths)), lengths, strict=True)
    ]
    split = write_split(folder, "r", "train", iter(made), kind="prompt", max_len=99, made_from="r")
    manifest = Manifest(
        folder=folder,
        made_from="s",
        tokenizer="f00d",
        vocab_size=10**7,
        eos_id=0,
        pad_id=PAD,
        prompt_style="minimal",
        tasks={"r": {"train": split}},
        mixtures={},
    )
    manifest.save()
    return Manifest.load(folder)


def test_prompts_without_room_to_answer_are_left_out_and_named(tmp_path):
    manifest = long_prompts(tmp_path, [4, 9, 5, 8, 6, 7])
    whole = prompt_batches(manifest, "0:r", groups=4, seed=0, max_len=10)
    assert whole.left_out() == []
    assert names(next(whole)) == names(next(prompt_batches(manifest, "0:r", groups=4, seed=0)))
    short = prompt_batches(manifest, "0:r", groups=4, seed=0, max_len=8)
    assert short.left_out() == ["r1", "r3"]
    assert sorted(names(next(short))) == ["r0", "r2", "r4", "r5"]
    with pytest.raises(CacheError, match=r"counts in another order"):
        short.set_state(whole.get_state())
    with pytest.raises(CacheError, match=r"r.train has no prompt of fewer than 4 tokens"):
        prompt_batches(manifest, "0:r", groups=4, seed=0, max_len=4)


def test_a_mixture_of_fewer_prompts_than_groups_is_refused(tmp_path):
    manifest = long_prompts(tmp_path, [4, 9, 5, 8, 6, 7])
    prompt_batches(manifest, "0:r", groups=6, seed=0)
    with pytest.raises(CacheError, match=r"mixture 'r' has 6 prompts; config\.dapo\.groups is 7"):
        prompt_batches(manifest, "0:r", groups=7, seed=0)
    with pytest.raises(CacheError, match=r"mixture 'r' has 4 prompts; config\.dapo\.groups is 6"):
        prompt_batches(manifest, "0:r", groups=6, seed=0, max_len=8)


def test_prompt_positions_restore_on_another_number_of_processes(manifest):
    def run(iterator):
        return names(next(iterator)) + names(iterator.extra(4)) + names(next(iterator))

    whole = prompt_batches(manifest, "0:ask,3:q", groups=4, seed=0)
    next(whole), whole.extra(2)
    state = json.loads(json.dumps(whole.get_state()))
    expected = run(whole)
    halves = []
    for index in range(2):
        half = prompt_batches(
            manifest, "0:ask,3:q", groups=4, seed=0, process_index=index, process_count=2
        )
        half.set_state(state)
        halves.append(run(half))
    for left, right in ((0, 2), (2, 4), (4, 6)):
        glued = halves[0][left:right] + halves[1][left:right]
        assert glued == expected[2 * left : 2 * right]
