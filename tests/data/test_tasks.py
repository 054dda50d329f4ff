"""The seqio catalogue and the cache built from it: features, rates, equality, resuming, errors."""

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from masksearch_jax import build_cache
from masksearch_jax.core import markup
from masksearch_jax.core.config import PromptConfig
from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import (
    Demonstration,
    QAExample,
    RampExample,
    Segment,
    Span,
    Turn,
    from_json,
    to_json,
)
from masksearch_jax.data import batches, methods, prompt
from masksearch_jax.data.cache import Manifest
from masksearch_jax.data.folder import RecordError
from masksearch_jax.runtime import cli
from masksearch_jax.tools.registry import instructions_of

seqio, tasks = build_cache._import_seqio()
import tensorflow as tf  # noqa: E402
from seqio import test_utils as seqio_test  # noqa: E402

RAMP = [f"ramp_k{k}" for k in (1, 2, 3, 4)]
RAMP_SFT = [f"ramp_sft_k{k}" for k in (1, 2, 3, 4)]
TOWNS = ("Bodø", "Lima", "Oslo", "Rome", "Pécs", "Bern", "Cork")


def ramp_example(name: str, k: int) -> RampExample:
    """A paragraph that names k towns, each masked."""
    rng = np.random.default_rng([len(name), *name.encode()])
    paragraph, masked, spans = "In order:", "In order:", []
    for town in rng.choice(TOWNS, k):
        start = len(paragraph) + 1
        spans.append(Span(start, start + len(town), str(town), "PLACE"))
        paragraph, masked = f"{paragraph} {town}", f"{masked} [mask]"
    return RampExample(name, f"p{name}", "Order", f"{masked}.", f"{paragraph}.", tuple(spans))


def demonstration(example: RampExample | QAExample) -> Demonstration:
    ramp = isinstance(example, RampExample)
    answer = example.paragraph if ramp else example.answers[0]
    segments = (
        Segment("prompt", "not this prompt"),
        Segment("policy", "<think>Look it up.</think><search>towns in order</search>"),
        Segment("tool", f"<information>Order: {answer} <|endoftext|></information>"),
        Segment("policy", f"<answer>{answer}</answer>"),
    )
    task = f"ramp_k{example.k}" if ramp else example.dataset
    return Demonstration(f"d-{example.id}", example.id, task, "scripted", segments, ())


def at_once(example: RampExample, method: str) -> Demonstration:
    """A demonstration of one turn; of rag after what a retrieval has shown."""
    shown = (Segment("tool", "<information>Order: Oslo <|endoftext|></information>"),)
    said = Segment("policy", f"<think>So.</think><answer>{example.paragraph}</answer>")
    segments = (*shown, said) if method == "rag" else (said,)
    turns = (Turn(("In order:",), ("p",), ("Order",), 0.0),) if method == "rag" else ()
    return Demonstration("d", example.id, "ramp_k2", "scripted", segments, turns, method)


def write_jsonl(path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(to_json(r), ensure_ascii=False) + "\n" for r in made))


def make_folder(folder, count=24):
    """`count` RAMP examples of 1 to 4 masks, a quarter as many questions, all demonstrated."""
    for split, size in (("train", count), ("heldout", 8)):
        ramp = [ramp_example(f"{split}{i}", 1 + i % 4) for i in range(size)]
        asked = [
            QAExample(f"q{split}{i}", "two-hop", f"Which town is {i}th?", ("Oslo", "oslo"))
            for i in range(size // 4)
        ]
        write_jsonl(folder / "ramp" / f"{split}.jsonl", ramp)
        write_jsonl(folder / "questions" / f"{split}.jsonl", asked)
        if split == "train":
            made = map(demonstration, [*ramp, *asked])
            write_jsonl(folder / "demonstrations" / "train.jsonl", made)
            train_bpe((e.paragraph for e in ramp), folder / "tokenizer", 320)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def vocab(folder):
    return Vocab.load(folder / "tokenizer")


@pytest.fixture
def names(folder):
    return tasks.register(folder, folder / "tokenizer", "minimal")


def config(folder, cache, **changes):
    values = {
        "folder": str(folder),
        "cache": str(cache),
        "tasks": "",
        "tokenizer": str(folder / "tokenizer"),
        "prompt": PromptConfig("minimal"),
        "max_len": 400,
        "max_prompt_len": 100,
    }
    return build_cache.BuildCacheRun(**(values | changes))


def rows(name, split="train"):
    data = seqio.TaskRegistry.get(name).get_dataset(split=split, shuffle=False)
    return list(data.as_numpy_iterator())


def read(folder, kind, split, cls):
    lines = (folder / kind / f"{split}.jsonl").read_text().splitlines()
    return [from_json(cls, json.loads(line)) for line in lines]


# ---- the catalogue


def test_tasks_and_mixtures_are_registered(names):
    assert names[:10] == [*RAMP, "qa_two_hop", "qa_sft_two_hop", *RAMP_SFT]
    lessons = [f"ramp{sft}_upto{k}" for sft in ("", "_sft") for k in (1, 2, 3, 4)]
    others = ["ramp_mixed", "ramp_sft_mixed", "qa_mixed", "qa_sft_mixed"]
    both = ["ramp_qa_mixed", "ramp_sft_qa_mixed", "ramp_sft_qa_two_hop"]
    assert sorted(names[10:]) == sorted([*lessons, *others, *both])
    assert set(names) <= set(seqio.TaskRegistry.names()) | set(seqio.MixtureRegistry.names())


@pytest.mark.parametrize(
    ("mixture", "parts"),
    [
        ("ramp_mixed", RAMP),
        ("ramp_upto3", RAMP[:3]),
        ("ramp_sft_upto2", RAMP_SFT[:2]),
        ("ramp_qa_mixed", [*RAMP, "qa_two_hop"]),
        ("ramp_sft_qa_two_hop", [*RAMP_SFT, "qa_sft_two_hop"]),
    ],
)
def test_mixtures_take_their_tasks_at_equal_rates(names, mixture, parts):
    found = seqio.get_mixture_or_task(mixture)
    assert {t.name: found.get_rate(t) for t in found.tasks} == dict.fromkeys(parts, 1.0)


def test_questions_have_their_share_of_a_mixture_with_ramp(names, folder):
    tasks.register(folder, folder / "tokenizer", "minimal", qa_share=0.5)
    for mixture, parts, asked in (
        ("ramp_qa_mixed", RAMP, "qa_two_hop"),
        ("ramp_sft_qa_mixed", RAMP_SFT, "qa_sft_two_hop"),
        ("ramp_sft_qa_two_hop", RAMP_SFT, "qa_sft_two_hop"),
    ):
        found = seqio.get_mixture_or_task(mixture)
        rates = {t.name: found.get_rate(t) for t in found.tasks}
        assert rates == dict.fromkeys(parts, 0.125) | {asked: 0.5}
    alone = seqio.get_mixture_or_task("ramp_mixed")
    assert {alone.get_rate(t) for t in alone.tasks} == {1.0}
    with pytest.raises(ValueError, match=r"qa_share is 1\.0; it must be in \[0, 1\)"):
        tasks.register(folder, folder / "tokenizer", "minimal", qa_share=1.0)


def test_a_mixture_draws_from_all_its_tasks(names):
    data = seqio.get_mixture_or_task("ramp_mixed").get_dataset(
        split="train", shuffle=False, seed=0, num_epochs=None, passthrough_features=["example"]
    )
    drawn = [
        len(json.loads(row["example"])["spans"])
        for row in itertools.islice(data.as_numpy_iterator(), 400)
    ]
    for k in (1, 2, 3, 4):
        assert 60 <= drawn.count(k) <= 140, "each of four tasks is due 100 of 400"


def test_examples_become_prompts_and_answers(names, folder, vocab):
    known = [e for e in read(folder, "ramp", "heldout", RampExample) if e.k == 2]
    expected = [
        {
            "inputs": vocab.encode(f"{e.masked}\n"),
            "targets": vocab.encode(e.paragraph),
            "id": e.id,
            "example": json.dumps(to_json(e), ensure_ascii=False),
        }
        for e in known
    ]
    task = seqio.TaskRegistry.get("ramp_k2")
    types = {"inputs": tf.int32, "targets": tf.int32, "id": tf.string, "example": tf.string}
    given = task.get_dataset(split="heldout", shuffle=False)
    seqio_test.assert_dataset(given, expected, expected_dtypes=types)
    assert len(expected) == task.num_input_examples("heldout") == 2
    limits = {"inputs": 3, "targets": 5}
    trimmed = [row | {k: row[k][:most] for k, most in limits.items()} for row in expected]
    seqio_test.assert_dataset(task.get_dataset(limits, "heldout", shuffle=False), trimmed)


def test_demonstrations_become_tokens_and_whose_they_are(names, folder, vocab):
    for task, source in (("ramp_sft_k2", "ramp_k2"), ("qa_sft_two_hop", "two-hop")):
        kinds = (("ramp", RampExample), ("questions", QAExample))
        asked = {e.id: e for kind, cls in kinds for e in read(folder, kind, "train", cls)}
        expected = []
        for d in read(folder, "demonstrations", "train", Demonstration):
            if d.task != source:
                continue
            example = asked[d.example_id]
            text = example.masked if isinstance(example, RampExample) else example.question
            parts = [(vocab.encode(f"{text}\n"), 0)]
            for segment in d.segments[1:]:
                by_agent = int(segment.author == "policy")
                parts.append((vocab.encode(segment.text, literal=True), by_agent))
            parts.append(([vocab.eos_ids[0]], 1))
            expected.append(
                {
                    "targets": list(itertools.chain(*(ids for ids, _ in parts))),
                    "agent": [a for ids, a in parts for _ in ids],
                    "id": d.id,
                }
            )
        given = seqio.get_mixture_or_task(task).get_dataset(None, "train", shuffle=False)
        types = {"targets": tf.int32, "agent": tf.int32, "id": tf.string}
        assert len(expected) == 6
        seqio_test.assert_dataset(given, expected, expected_dtypes=types)


@pytest.mark.parametrize("style", ["minimal", "chat"])
@pytest.mark.parametrize("method", methods.SINGLE_TURN)
def test_a_single_turn_is_asked_as_evaluation_asks_it(folder, vocab, tmp_path, style, method):
    """The prompt is that of `evaluate`, and what is learned after it reads as the answer."""
    example = ramp_example("once", 2)
    own = tmp_path / "own"
    shutil.copytree(folder / "tokenizer", own / "tokenizer")
    write_jsonl(own / "ramp" / "train.jsonl", [example])
    demonstration = at_once(example, method)
    write_jsonl(own / "demonstrations" / "train.jsonl", [demonstration])
    tasks.register(own, own / "tokenizer", style)
    (row,) = seqio.get_mixture_or_task("ramp_sft_k2").get_dataset(None, "train", shuffle=False)
    ids, agent = row["targets"].numpy(), row["agent"].numpy()
    shown = demonstration.segments[0].text if method == "rag" else ""
    asked = methods.prompt_ids(method, example, style, vocab, shown)
    np.testing.assert_array_equal(ids[: len(asked)], asked)
    np.testing.assert_array_equal(agent, np.arange(len(ids)) >= len(asked))
    assert np.flatnonzero(ids == vocab.eos_ids[0]).tolist() == [len(ids) - 1]
    said = methods.opening(method, style) + vocab.decode(ids[len(asked) : -1])
    assert markup.extract_answer(said) == example.paragraph
    assert ("<think>" in said) == (style == "chat")
    assert shown in vocab.decode(asked)
    assert example.masked in vocab.decode(asked)


def test_one_injected_record_passes_through_the_steps_of_its_task_alone(names, vocab):
    """seqio's own harness: raw records in, features out, with the task's vocabulary."""
    example = ramp_example("injected", 3)
    raw = {"heldout": json.dumps(to_json(example))}
    row = seqio_test.test_preprocessing_single("ramp_k3", raw)
    assert row["inputs"].tolist() == seqio_test.encode_str(
        "ramp_k3", f"{example.masked}\n", "inputs"
    )
    assert row["targets"].tolist() == seqio_test.encode_str("ramp_k3", example.paragraph)
    assert json.loads(row["example"]) == json.loads(raw["heldout"])
    assert list(seqio_test.test_preprocessing("ramp_k1", raw)) == []
    asked = QAExample("q", "two-hop", "Which [mask] is it?", ("Oslo", "Bern"))
    row = seqio_test.test_preprocessing_single("qa_two_hop", {"train": json.dumps(to_json(asked))})
    assert vocab.decode(row["inputs"]) == "Which [ mask ] is it?\n"
    assert row["targets"].tolist() == seqio_test.encode_str("qa_two_hop", "Oslo")
    made = demonstration(ramp_example("train1", 2))
    row = seqio_test.test_preprocessing_single("ramp_sft_k2", {"train": json.dumps(to_json(made))})
    assert row["id"] == made.id.encode()
    assert row["targets"].shape == row["agent"].shape


def test_questions_become_prompts_and_first_answers(names, vocab):
    found = rows("qa_two_hop", "heldout")
    assert [vocab.decode(r["inputs"]) for r in found] == [f"Which town is {i}th?\n" for i in (0, 1)]
    assert {vocab.decode(r["targets"]) for r in found} == {"Oslo"}


def test_the_chat_style_uses_the_template(folder, vocab):
    tasks.register(folder, folder / "tokenizer", "chat")
    example = read(folder, "ramp", "train", RampExample)[0]
    text = vocab.decode(rows("ramp_k1")[0]["inputs"])
    assert text == prompt.render(example, "chat", vocab)
    assert text.startswith("<|im_start|>user\n")
    assert vocab.decode(rows("ramp_sft_k1")[0]["targets"]).startswith(text)
    tools = instructions_of(("calculate",))
    tasks.register(folder, folder / "tokenizer", "chat", tools=tools)
    text = vocab.decode(rows("ramp_k1")[0]["inputs"])
    assert text == prompt.render(example, "chat", vocab, tools)
    assert "- calculate: " in text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", r"and tokenizer '.*' has no chat template; give another folder as config\.tokenizer"),
        ("{{ nothing.at.all }}", r"and the chat template of '.*' fails: UndefinedError: 'nothing'"),
    ],
)
def test_a_style_that_the_tokenizer_cannot_write_is_refused(folder, tmp_path, template, said):
    shutil.copytree(folder / "tokenizer", tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text(template)
    vocab = Vocab.load(tmp_path / "t")
    prompt.check_style("minimal", vocab)
    with pytest.raises(ConfigError, match=rf"config\.prompt\.style is 'chat', {said}"):
        prompt.check_style("chat", vocab)
    cfg = config(folder, tmp_path / "cache", tokenizer=str(tmp_path / "t"))
    with pytest.raises(ConfigError, match=said):
        build_cache.run(dataclasses.replace(cfg, prompt=PromptConfig("chat")))
    assert not (tmp_path / "cache").exists()


def test_a_template_with_the_date_builds_a_cache_once(small, tmp_path, monkeypatch):
    place = tmp_path / "dated"
    shutil.copytree(small.tokenizer, place)
    template = "{{ strftime_now('%d %b %Y %f') }}{{ messages[0].content }}"
    (place / "chat_template.jinja").write_text(template)
    dated = dataclasses.replace(
        small, tokenizer=str(place), prompt=PromptConfig("chat"), max_prompt_len=1000
    )
    assert build_cache.run(dated)["splits_reused"] == 0
    assert build_cache.run(dated)["splits_reused"] == 3


def test_the_agent_mask_covers_policy_segments_and_the_end(names, folder, vocab):
    made = read(folder, "demonstrations", "train", Demonstration)
    for name, task in (("ramp_sft_k1", "ramp_k1"), ("qa_sft_two_hop", "two-hop")):
        known = [d for d in made if d.task == task]
        found = rows(name)
        assert [r["id"].decode() for r in found] == [d.id for d in known]
        for row, demo in zip(found, known, strict=True):
            runs = [
                (bool(agent), vocab.decode(i for _, i in group))
                for agent, group in itertools.groupby(
                    zip(row["agent"], row["targets"], strict=True), key=lambda pair: pair[0]
                )
            ]
            _, first, tool, last = demo.segments
            assert [agent for agent, _ in runs] == [False, True, False, True]
            assert runs[1][1] == first.text
            assert runs[2][1] == tool.text
            assert runs[3][1] == f"{last.text}<|endoftext|>"
            ends = np.flatnonzero(row["targets"] == vocab.eos_ids[0])
            assert ends.tolist() == [len(row["targets"]) - 1], "a document's control token is text"


def test_seqio_can_pack_the_sequences(names):
    data = seqio.get_dataset(
        "ramp_sft_mixed",
        task_feature_lengths={"targets": 256},
        feature_converter=seqio.LMFeatureConverter(pack=True),
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
    )
    batch = next(iter(data))
    assert batch["decoder_target_tokens"].shape == (256,)
    assert int(tf.reduce_max(batch["decoder_segment_ids"])) > 1


def test_an_iterator_over_a_mixture_restores_exactly(names, tmp_path):
    def iterator():
        return iter(
            seqio.get_mixture_or_task("ramp_mixed").get_dataset(
                split="train", shuffle=False, num_epochs=None
            )
        )

    whole = iterator()
    for _ in range(5):
        next(whole)
    path = tf.train.Checkpoint(data=whole).save(str(tmp_path / "position"))
    expected = [next(whole)["targets"].numpy().tolist() for _ in range(10)]
    other = iterator()
    tf.train.Checkpoint(data=other).restore(path).assert_consumed()
    assert [next(other)["targets"].numpy().tolist() for _ in range(10)] == expected


def test_the_vocabulary_round_trips_in_the_graph(names, vocab):
    feature = seqio.TaskRegistry.get("ramp_k1").output_features["inputs"].vocabulary
    text = "Pécs [mask] <answer>1</answer>"
    assert feature.encode(text) == vocab.encode(text)
    assert feature.encode_tf(tf.constant(text)).numpy().tolist() == vocab.encode(text)
    assert feature.encode_tf(tf.constant([text, "", "a"])).to_list() == vocab.encode_batch(
        [text, "", "a"]
    )
    assert feature.decode_tf(tf.constant(vocab.encode(text))).numpy().decode() == text
    assert feature == tasks.SeqioVocab(vocab)


def test_registering_again_changes_nothing_and_another_folder_replaces(names, folder, tmp_path):
    assert tasks.register(folder, folder / "tokenizer", "minimal") == names
    write_jsonl(tmp_path / "ramp" / "train.jsonl", [ramp_example("x", 1), ramp_example("y", 3)])
    found = tasks.register(tmp_path, folder / "tokenizer", "minimal")
    assert found[:2] == ["ramp_k1", "ramp_k3"]
    assert sorted(found[2:]) == ["ramp_mixed", "ramp_upto1", "ramp_upto2", "ramp_upto3"]
    assert "ramp_k2" not in seqio.TaskRegistry.names()
    assert list(seqio.TaskRegistry.get("ramp_k1").splits) == ["train"]


def test_what_cannot_be_registered_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no records.*ramp/train\.jsonl"):
        tasks.register(tmp_path, folder / "tokenizer", "minimal")
    write_jsonl(tmp_path / "ramp" / "train.jsonl", [ramp_example("x", 1)])
    with (tmp_path / "ramp" / "train.jsonl").open("a") as file:
        file.write('{"id": "y"}\n')
    with pytest.raises(RecordError, match=r"ramp/train\.jsonl:2: not a RampExample"):
        tasks.register(tmp_path, folder / "tokenizer", "minimal")


# ---- the cache


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache") / "records"
    return cache, build_cache.run(config(folder, cache))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("ramp_k3", "heldout"),
        ("qa_two_hop", "train"),
        ("ramp_sft_k4", "train"),
        ("qa_sft_two_hop", "train"),
    ],
)
def test_cached_records_equal_what_seqio_gives(built, names, name, split):
    found, expected = list(Manifest.load(built[0]).open(name, split)), rows(name, split)
    assert len(found) == len(expected) > 0
    for record, row in zip(found, expected, strict=True):
        assert record["id"] == row["id"].decode()
        if "sft" in name:
            np.testing.assert_array_equal(record["ids"], row["targets"], strict=True)
            np.testing.assert_array_equal(record["agent"], row["agent"] == 1, strict=True)
        else:
            np.testing.assert_array_equal(record["ids"], row["inputs"], strict=True)
            assert record["example"] == row["example"].decode()


def test_the_manifest_describes_the_build(built, vocab, names):
    cache, summary = built
    manifest = Manifest.load(cache, tokenizer=vocab.fingerprint, prompt_style="minimal")
    assert (manifest.vocab_size, manifest.eos_id) == (vocab.size, vocab.eos_ids[0])
    assert manifest.pad_id == vocab.pad_id
    assert list(manifest.tasks) == names[:10]
    assert list(manifest.mixtures) == names[10:]
    assert manifest.mixtures["ramp_sft_upto2"] == {"ramp_sft_k1": 1.0, "ramp_sft_k2": 1.0}
    assert summary["tasks"]["ramp_k1"]["train"]["records"] == 6
    assert summary["tasks"]["qa_two_hop"]["heldout"]["records"] == 2
    assert summary["splits_reused"] == 0


def test_training_reads_the_cache(built):
    manifest = Manifest.load(built[0])
    batch = next(
        batches.sft_batches(
            manifest,
            "0:ramp_sft_upto1,200:ramp_sft_qa_mixed",
            batch_size=2,
            seq_len=400,
            seed=0,
            context_loss_weight=0.2,
        )
    )
    assert set(np.unique(batch["loss_weights"])) == {np.float32(0), np.float32(0.2), np.float32(1)}
    prompts = next(batches.prompt_batches(manifest, "0:ramp_mixed", groups=8, seed=0))
    assert sorted(p.example.k for p in prompts) == [1, 1, 2, 2, 3, 3, 4, 4]


def copy_of(cache, tmp_path):
    target = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(cache), str(target)], check=True)
    return target


def test_a_finished_build_is_not_repeated(built, folder, tmp_path):
    cache = copy_of(built[0], tmp_path)
    before = {p: p.stat().st_mtime_ns for p in cache.rglob("*")}
    assert build_cache.run(config(folder, cache))["splits_reused"] == 15
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*")} == before


def test_a_stopped_build_goes_on_where_it_stopped(built, folder, tmp_path):
    cache = copy_of(built[0], tmp_path)
    (cache / "manifest.json").unlink()
    (cache / "ramp_k1-train" / "split.json").unlink()
    shard = cache / "ramp_sft_k2-train" / "data-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:100])
    assert build_cache.run(config(folder, cache))["splits_reused"] == 13
    assert len(json.loads((cache / "run.json").read_text())["sessions"]) == 2
    fresh, again = Manifest.load(built[0]), Manifest.load(cache)
    assert (again.tasks, again.mixtures) == (fresh.tasks, fresh.mixtures)


@pytest.fixture
def small(folder, tmp_path):
    """Six examples of one mask, six demonstrations and a question: three splits."""
    made = [ramp_example(f"{i:02}", 1) for i in range(6)]
    write_jsonl(tmp_path / "data" / "ramp" / "train.jsonl", made)
    write_jsonl(tmp_path / "data" / "demonstrations" / "train.jsonl", map(demonstration, made))
    question = QAExample("q", "d", "Which?", ("A",))
    write_jsonl(tmp_path / "data" / "questions" / "heldout.jsonl", [question])
    return config(tmp_path / "data", tmp_path / "cache", tokenizer=str(folder / "tokenizer"))


def test_changed_inputs_are_built_again(small, tmp_path):
    assert build_cache.run(small)["splits_reused"] == 0
    path = tmp_path / "data" / "demonstrations" / "train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    summary = build_cache.run(small)
    assert summary["splits_reused"] == 2
    assert summary["tasks"]["ramp_sft_k1"]["train"]["records"] == 4
    chat = dataclasses.replace(small, prompt=PromptConfig("chat"), max_prompt_len=1000)
    assert build_cache.run(chat)["splits_reused"] == 0
    assert Manifest.load(tmp_path / "cache").prompt_style == "chat"


def test_what_is_too_long_is_dropped_and_named(small, capsys):
    summary = build_cache.run(dataclasses.replace(small, max_len=1, max_prompt_len=1))
    listed = Path(small.cache) / "ramp_sft_k1-train" / "dropped.jsonl"
    said = capsys.readouterr().err
    assert f"ramp_sft_k1 train: 6 of 6 dropped, longer than 1 tokens; their ids: {listed}\n" in said
    assert "d-00" not in said
    named = [json.loads(line)["id"] for line in listed.read_text().splitlines()]
    assert named == [f"d-{i:02}" for i in range(6)]
    assert summary["tasks"]["ramp_k1"]["train"]["dropped"] == 6
    assert summary["mixtures"]["ramp_sft_mixed"] == []


def test_a_demonstration_of_nothing_is_refused(folder, tmp_path):
    write_jsonl(tmp_path / "ramp" / "train.jsonl", [ramp_example("x", 1)])
    stray = demonstration(ramp_example("stray", 1))
    write_jsonl(tmp_path / "demonstrations" / "train.jsonl", [stray])
    with pytest.raises(RecordError, match=r"train\.jsonl:1: .*'stray', which is not among the 1"):
        tasks.register(tmp_path, folder / "tokenizer", "minimal")


@pytest.mark.slow
def test_the_command_builds_quietly(folder, tmp_path, repository):
    settings = "\n".join(
        f"    c.{k} = {v!r}"
        for k, v in vars(config(folder, tmp_path / "cache")).items()
        if k != "prompt"
    )
    path = tmp_path / "settings.py"
    path.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config(arg=''):\n"
        f"    c = ConfigDict()\n{settings}\n    c.prompt = ConfigDict({{'style': 'minimal'}})\n"
        "    return c\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "masksearch_jax.build_cache", f"--config={path}"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ramp_sft_k4 train: 6 records" in done.stdout
    noise = [line for line in done.stderr.splitlines() if not re.match(r"  \w+ \w+: ", line)]
    assert noise == []


def test_only_the_tasks_asked_for_are_written(folder, built, tmp_path):
    _, everything = built
    found = build_cache.run(config(folder, tmp_path / "some", tasks="ramp_k[12]"))
    assert set(found["tasks"]) == {"ramp_k1", "ramp_k2"} < set(everything["tasks"])
    manifest = Manifest.load(tmp_path / "some")
    assert manifest.rates("ramp_mixed") == {"ramp_k1": 1.0, "ramp_k2": 1.0}
    one = build_cache.run(config(folder, tmp_path / "one", tasks="ramp_sft_k1|ramp_k2-heldout"))
    splits = {task: list(found) for task, found in one["tasks"].items()}
    assert splits == {"ramp_k2": ["heldout"], "ramp_sft_k1": ["train"]}
    with pytest.raises(ConfigError, match=r"'ramp_k9', matches none of ramp_k1 \(train, heldout"):
        build_cache.run(config(folder, tmp_path / "none", tasks="ramp_k9"))


def test_without_seqio_a_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqio", None)
    with pytest.raises(ConfigError, match=r"^seqio is not installed; pip install '.*\[data\]'$"):
        build_cache._import_seqio()


def test_a_cache_lies_in_the_folder_of_its_data(repository):
    """So that data in another folder does not replace the cache of the first."""
    spec = f"--config={repository}/configs/build_cache.py"

    def asked(*flags):
        return cli.parse(build_cache.BuildCacheRun, ["build_cache", spec, *flags]).cache

    assert asked() == "runs/ramp/cache"
    assert asked("--config.folder=mine") == "mine/cache"
    assert asked("--config.folder=mine", "--config.cache=elsewhere") == "elsewhere"


def test_tasks_that_lose_all_records_are_named_and_a_cache_of_none_fails(folder, tmp_path, capsys):
    cfg = config(folder, tmp_path / "cache", max_len=1, tasks="ramp_sft_k.*|qa_sft_.*|ramp_k.*")
    build_cache._print_summary(cfg, build_cache.run(cfg))
    found = capsys.readouterr()
    assert "ramp_sft_k1 train is empty: all " in found.err
    assert " are longer than config.max_len=1 or config.max_prompt_len=100 allow" in found.err
    assert found.out.splitlines()[-1].startswith(f"{tmp_path / 'cache'}: ")
    cfg = config(folder, tmp_path / "none", max_len=1, tasks="ramp_sft_k.*")
    with pytest.raises(UserError, match=r"none has no record: all are longer than config\.max_l"):
        build_cache._print_summary(cfg, build_cache.run(cfg))
