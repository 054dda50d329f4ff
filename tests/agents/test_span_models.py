"""`build_ramp` with models, end to end: `ppl` from weights on disk, `llm` from an endpoint."""

import collections
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from masksearch_jax.core.config import CheckpointConfig, ComputeConfig, ModelConfig
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import RampExample
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.models import hf
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.ramp import masking, spans
from masksearch_jax.runtime import storage
from masksearch_jax.testing.services import Answer, Endpoint
from masksearch_jax.training import train_state
from masksearch_jax.training.checkpoint import Checkpointer
from tests.mains.commands import TOWNS, build, failure, passages

FLOAT32 = ComputeConfig("float32", "float32", "xla", "none", 64)
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
    "num_kv_heads": 1, "head_dim": 16, "vocab_size": 400,
}  # fmt: skip
MODEL = to_dataclass(ModelConfig, common.MODELS["tiny"] | SIZES)


@pytest.fixture
def place(tmp_path):
    """A folder with a corpus of a dozen towns."""
    write_passages(tmp_path / "towns.jsonl", passages())
    return tmp_path


FIXED = {"corpus__questions": "", "clean__duplicates": 0.0, "ramp__gazetteer": 0}


def build_with(repository, place, **settings):
    return build(repository, place, **(FIXED | settings))


def failed(capsys, repository, place, expected=1, **settings):
    """What a build that must fail with this status says; it is not taken for whole."""
    given = {"corpus__path": place / "towns.jsonl", "folder": place / "out"} | FIXED | settings
    status, said = failure(capsys, repository, "build_ramp", "build_ramp.py", **given)
    assert status == expected
    assert not (place / "out" / "counts.json").exists()
    return said


def examples(folder):
    splits = ("train", "rl", "heldout")
    return [e for s in splits for e in read_jsonl(folder / "ramp" / f"{s}.jsonl", RampExample)]


# ---- ppl


@pytest.fixture(scope="module")
def model():
    return Transformer(MODEL, FLOAT32, nnx.Rngs(0))


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """A random model with its tokenizer in HF format, and the same model as a checkpoint."""
    folder = tmp_path_factory.mktemp("weights")
    train_bpe([p.text for p in passages()] * 3, folder / "tokenizer", 400)
    hf.save(model, folder / "hf", tokenizer_dir=folder / "tokenizer")
    state = train_state.init_state(model, optax.sgd(0.1))
    with Checkpointer(folder / "checkpoints", CheckpointConfig(1, 1), MODEL) as checkpointer:
        checkpointer.save(1, state, {"step": 1})
    return folder


@pytest.fixture(scope="module")
def known(model, weights):
    """Passage id → its spans with nats per token, by the logits of one row at a time."""
    vocab = Vocab.load(weights / "tokenizer")
    positions = jnp.arange(384)[None]

    @jax.jit
    def logprobs(ids):
        logits = model.logits(model.hidden(ids, positions, jnp.ones_like(ids)))[0]
        return jax.nn.log_softmax(logits)

    found = {}
    for passage in passages():
        kept = masking.disjoint(spans.RulesExtractor().find([passage])[0].spans)
        asked = masking.questions(passage.text, kept)
        found[passage.id] = {}
        for span, (context, target) in zip(
            kept, masking.token_rows(asked, vocab.encode), strict=True
        ):
            ids = np.zeros((1, 384), np.int32)
            ids[0, : len(context) + len(target)] = [*context, *target]
            before = np.arange(len(target)) + len(context) - 1
            found[passage.id][span] = -float(np.asarray(logprobs(ids))[before, target].mean())
    return found


def bounds(known):
    """Two values that leave a third of the spans on either side, between any two losses."""
    ranked = sorted(loss for by_span in known.values() for loss in by_span.values())
    third = len(ranked) // 3
    return [math.fsum(ranked[i : i + 2]) / 2 for i in (third, 2 * third)]


@pytest.mark.parametrize("kind", ["hf", "checkpoints"])
def test_spans_are_masked_by_how_hard_the_stored_model_finds_them(
    weights,
    known,
    place,
    repository,
    kind,
):
    low, high = bounds(known)
    settings = {
        "ramp__strategy": "ppl", "ramp__min_nll": low, "ramp__max_nll": high,
        "ppl__init": weights / kind,
        "ppl__tokenizer": "" if kind == "hf" else weights / "tokenizer",
        "ppl__batch": 4, "ppl__max_len": 512, "ppl__compute__dtype": "float32",
    }  # fmt: skip
    made = build_with(repository, place, **settings)
    allowed = {
        name: {s for s, loss in by_span.items() if low <= loss <= high}
        for name, by_span in known.items()
    }
    found = examples(place / "out")
    assert {e.passage_id for e in found} == {name for name, kept in allowed.items() if kept}
    for example in found:
        assert set(example.spans) <= allowed[example.passage_id]
    every = [loss for by_span in known.values() for loss in by_span.values()]
    refused = made["ramp"]["refused_spans"]
    assert refused["too_easy"] == sum(loss < low for loss in every) > 0
    assert refused["too_hard"] == sum(loss > high for loss in every) > 0
    assert made["ramp"]["dropped"].get("no_span_within_nll", 0) == sum(
        not kept for kept in allowed.values()
    )
    assert "paid" not in made


def test_a_model_that_was_trained_further_is_asked_again(weights, place, repository):
    stored = place / "hf"
    shutil.copytree(weights / "hf", stored)
    settings = {
        "ramp__strategy": "ppl", "ramp__min_nll": 0.0, "ramp__max_nll": 99.0, "ppl__init": stored,
        "ppl__batch": 4, "ppl__compute__dtype": "float32", "ramp__max_masks": 1,
    }  # fmt: skip
    build_with(repository, place, **settings)
    counts = place / "out" / "counts.json"
    before = counts.stat().st_mtime_ns
    moved = shutil.move(stored, place / "moved")
    build_with(repository, place, **(settings | {"ppl__init": moved}))
    assert counts.stat().st_mtime_ns == before
    hf.save(Transformer(MODEL, FLOAT32, nnx.Rngs(1)), stored, tokenizer_dir=weights / "tokenizer")
    assert storage.fingerprint(str(stored)) != storage.fingerprint(str(moved))
    build_with(repository, place, **settings)
    assert counts.stat().st_mtime_ns != before


def test_a_model_that_is_not_there_is_named(weights, place, repository, capsys):
    for settings, message in (
        ({"ppl__init": "away"}, "config.ppl.init is 'away', which is not a local folder"),
        (
            {"ppl__init": weights / "checkpoints"},
            "of its tokenizer as config.ppl.tokenizer",
        ),
    ):
        assert message in failed(capsys, repository, place, 2, ramp__strategy="ppl", **settings)


# ---- llm


def reply_to(body):
    """Names two spans of each town, one of them in a way of its own; Paris only as prose."""
    asked = body["messages"][1]["content"]
    town = next(t for t in TOWNS if f"Article: {t}" in asked)
    i = TOWNS.index(town)
    if town == "Oslo" and len(body["messages"]) == 2:
        return Answer("The spans are King Harald and so on.")
    if town == "Paris":
        return Answer("I see no spans.")
    named = [(str(1100 + 7 * i), "DATE"), ("Glomma", "PLACE"), ("Narnia", "PLACE"), (town, "PLACE")]
    rows = [{"text": text, "type": kind} for text, kind in named]
    return Answer(json.dumps({"spans": rows}))


def llm_settings(endpoint, place, **changes):
    address = endpoint.url
    given = {
        "base_url": address, "model": "m", "cache": place / "replies.sqlite", "max_tokens": 10,
        "concurrency": 2, "backoff": 0.01,
    }  # fmt: skip
    return {"ramp__extractor": "llm"} | {f"llm__{k}": v for k, v in (given | changes).items()}


def check_examples(folder):
    found = examples(folder)
    assert {e.passage_id for e in found} == {
        f"town:{i}" for i, t in enumerate(TOWNS) if t != "Paris"
    }
    for example in found:
        i = int(example.passage_id.partition(":")[2])
        assert {(s.text, s.type) for s in example.spans} <= {
            (str(1100 + 7 * i), "DATE"),
            ("Glomma", "PLACE"),
        }


def test_spans_are_those_that_the_endpoint_names(place, repository, capsys):
    busy = iter([Answer(status=429), Answer(status=500)])
    with Endpoint(lambda body: next(busy, None) or reply_to(body)) as endpoint:
        settings = llm_settings(endpoint, place)
        made = build_with(repository, place, **settings)
        asked = len(endpoint.requests)
        assert build_with(repository, place, **settings, llm__timeout=7.0) == made
        assert len(endpoint.requests) == asked
    check_examples(place / "out")
    refused = made["ramp"]["refused_spans"]
    assert (refused["unreadable_reply"], refused["not_in_text"]) == (1, 11)
    assert made["ramp"]["dropped"]["no_spans"] == 1
    # One reply each, one more for Oslo and two for Paris, shown back with what is wrong.
    paid = made["paid"]
    assert paid["calls"] == len(endpoint.paid) == 12 + 1 + 2
    assert (paid["prompt_tokens"], paid["completion_tokens"]) == (7 * 15, 3 * 15)
    assert (paid["retries"], paid["repairs"]) == (2, 3)


def test_a_spent_budget_stops_and_a_larger_one_goes_on(
    place,
    repository,
    capsys,
):
    """In parts of a few towns: what is masked stays, and no reply is paid for twice."""
    with Endpoint(reply_to) as endpoint:
        settings = llm_settings(endpoint, place, budget=90) | {"work__part": 3}
        said = failed(capsys, repository, place, **settings)
        assert "budget" in said
        assert 0 < len(endpoint.paid) <= 9
        finished = sorted((place / "out" / "work").glob("part-*.json"))
        build_with(repository, place, **(settings | {"llm__budget": 0}))
        assert len(endpoint.paid) == 15
    assert finished
    asked = collections.Counter(json.dumps(body["messages"]) for body in endpoint.paid)
    assert set(asked.values()) == {1}
    check_examples(place / "out")


def test_a_refused_key_stops_the_build(place, repository, capsys):
    with Endpoint(lambda body: Answer(status=401)) as endpoint:
        assert "401" in failed(capsys, repository, place, **llm_settings(endpoint, place))


def test_passages_that_got_no_reply_are_asked_about_again(place, repository, capsys):
    """2 of 12: their part is masked again, and a build with such a loss says so."""
    lost = ("Oslo", "Rome")

    def busy(body):
        said = body["messages"][1]["content"]
        return Answer(status=400) if any(f"Article: {t}" in said for t in lost) else reply_to(body)

    with Endpoint(busy) as endpoint:
        settings = llm_settings(endpoint, place) | {"work__part": 3}
        said = failed(capsys, repository, place, **settings)
        assert "no reply for 2 of 12 passages, more than config.max_failed=0.01" in said
        assert "HTTP 400: scripted 400" in said
        made = build_with(repository, place, **settings, max_failed=0.2)
        assert made["ramp"]["dropped"]["llm_failed"] == 2
    with Endpoint(reply_to) as endpoint:
        settings = llm_settings(endpoint, place) | {"work__part": 3}
        made = build_with(repository, place, **settings)
        asked = [b["messages"][1]["content"] for b in endpoint.requests]
        assert all(any(f"Article: {t}" in text for t in lost) for text in asked)
        assert asked
    assert "llm_failed" not in made["ramp"]["dropped"]
    check_examples(place / "out")


def test_passages_that_nobody_asked_about_are_in_no_share_of_failures(place, repository, capsys):
    """Two examples are wanted of twelve passages: two of the few that are asked get no reply."""
    asked, lost = {}, 2

    def busy(body):
        number = asked.setdefault(body["messages"][1]["content"], len(asked))
        return Answer(status=400) if number < lost else reply_to(body)

    with Endpoint(busy) as endpoint:
        settings = llm_settings(endpoint, place) | {"ramp__max_examples": 2, "max_failed": 0.2}
        said = failed(capsys, repository, place, **settings)
    assert lost <= 0.2 * 12  # of all passages the share is small
    assert f"no reply for {lost} of {len(asked)} passages, more than config.max_failed=0.2" in said


@pytest.mark.parametrize("status", [402, 404])
def test_an_endpoint_of_no_use_stops_the_build(place, repository, capsys, status):
    with Endpoint(lambda body: Answer(status=status)) as endpoint:
        said = failed(capsys, repository, place, **llm_settings(endpoint, place))
    assert f"HTTP {status}: scripted {status}" in said
