"""The data factory: parts, processes, stops and starts; leaks; and how hard a model finds spans."""

import dataclasses
import importlib.util
import itertools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.types import SPLITS, Passage, QAExample, RampExample, Span
from masksearch_jax.corpus.passages import read_passages, write_passages
from masksearch_jax.corpus.tally import ShareError
from masksearch_jax.models import likelihood
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.ramp import build as ramp_build
from masksearch_jax.ramp import leakage, masking, survey
from masksearch_jax.ramp.examples import RampStats, build_examples
from masksearch_jax.ramp.spacy_spans import SpacyError
from masksearch_jax.search import bm25
from masksearch_jax.viewer import examples as page

RAMP = RampConfig(cities=20, min_words=5, max_words=120, heldout_fraction=0.2, rl_fraction=0.25)
CLEAN = survey.CleanConfig(prose=True, duplicates=0.8)
NAMES = ["Lind", "Rehn", "Boyle", "Marsh", "Quill", "Tarn", "Voss", "Wick", "Yarrow", "Zeller"]


def town(i):
    rng = random.Random(i)
    a, b, c = (rng.choice(NAMES) for _ in range(3))
    text = (
        f"Town{i} was founded in {1100 + i} by George {a} on the river {b}brook, and its harbour "
        f"was opened in {1811 + i % 150} by Marie {c}. It has {20_000 + 37 * i:,} inhabitants, "
        f"and lies {i + 12} km from the city of {rng.choice(NAMES)}ville in the north."
    )
    return Passage(f"t{i}", f"Town{i}", text)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eighty towns; one is there twice, one with a small change, four are no clean prose."""
    towns = [town(i) for i in range(80)]
    odd = [
        Passage("same", "Copy", towns[3].text.upper()),
        Passage("near", "Near", towns[60].text + " See it."),
        Passage("list", "List", "* one\n* two"),
        Passage("nul", "Nul", towns[5].text + "\x00"),
        Passage("mask", "Mask", towns[6].text + " [mask]"),
        Passage("huge", "Huge", "word " * 200_000),
    ]
    path = tmp_path_factory.mktemp("factory") / "passages.jsonl"
    write_passages(path, [*towns, *odd])
    return path


def test_passages_without_a_title_are_split_and_parted_by_id(tmp_path):
    write_passages(
        tmp_path / "p.jsonl", [dataclasses.replace(town(i), title="") for i in range(80)]
    )
    build(tmp_path / "p.jsonl", tmp_path / "out")
    made = {
        split: {
            e.passage_id for e in read_jsonl(tmp_path / "out/ramp" / f"{split}.jsonl", RampExample)
        }
        for split in ("train", "rl", "heldout")
    }
    assert all(len(ids) > 4 for ids in made.values())
    assert sum(map(len, made.values())) == len(set.union(*made.values())) == 80
    parts = sorted((tmp_path / "out" / "work").glob("part-*.jsonl"))
    assert len(parts) == 4
    assert all(part.stat().st_size for part in parts)


def build(source, folder, *, clean=CLEAN, cfg=RAMP, workers=1, part=20, **options):
    rules = survey.PassageRules(clean, cfg, **options.pop("rules", {}))
    work = ramp_build.WorkConfig(workers=workers, part=part)
    return ramp_build.build(source, folder, rules, work, **options)


def examples(folder):
    return {split: read_jsonl(folder / "ramp" / f"{split}.jsonl", RampExample) for split in SPLITS}


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return folder, *build(source, folder)


@pytest.mark.parametrize("spoilt", ["\x00", " [mask]", " more" * 120])
def test_a_copy_of_what_is_not_masked_is_masked(tmp_path, spoilt):
    whole = town(1)
    refused = dataclasses.replace(whole, id="refused", title="Other", text=whole.text + spoilt)
    write_passages(tmp_path / "p.jsonl", [refused, whole, dataclasses.replace(whole, id="again")])
    clean = dataclasses.replace(CLEAN, duplicates=0.2)
    _, stats = build(tmp_path / "p.jsonl", tmp_path / "out", clean=clean)
    made = examples(tmp_path / "out")
    assert {e.passage_id for split in made.values() for e in split} == {"t1"}
    assert stats.used == 1


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("spoilt", ["", "\x00"])
def test_no_copy_of_a_passage_that_must_not_be_trained_on_is_masked(tmp_path, place, spoilt):
    gold = dataclasses.replace(town(1), id="gold", title="Gold", text=town(1).text + spoilt)
    copy = dataclasses.replace(town(1), text=f"{town(1).text} See there.")
    passages = [copy, town(2)]
    passages.insert(place, gold)
    write_passages(tmp_path / "p.jsonl", passages)
    evaluation = leakage.Evaluation(frozenset({"gold"}), frozenset(), 13)
    clean = dataclasses.replace(CLEAN, leakage="drop")
    rules = {"evaluation": evaluation}
    tally, _ = build(tmp_path / "p.jsonl", tmp_path / "out", clean=clean, rules=rules)
    made = examples(tmp_path / "out")
    assert {e.passage_id for split in made.values() for e in split} == {"t2"}
    reason = "control_characters" if spoilt else "gold_title"
    assert tally.dropped == {reason: 1, "near_duplicate": 1}


def test_every_passage_is_masked_or_counted_with_an_example(built):
    folder, tally, stats = built
    assert tally.seen == 86
    reasons = ["duplicate", "near_duplicate", "list", "control_characters", "too_long"]
    assert tally.dropped == dict.fromkeys([*reasons, "reserved_text"], 1)
    assert tally.example["list"] == "list"
    assert tally.example["duplicate"] == "passage number 81"
    assert stats.paragraphs == tally.kept == 80 == stats.used
    made = examples(folder)
    assert sum(map(len, made.values())) == 160 - stats.dropped.get("same_masks_again", 0)
    titles = [{e.title for e in made[split]} for split in SPLITS]
    assert sum(map(len, titles)) == len(set.union(*titles)) == 80
    assert {split: len(made[split]) for split in made} == {
        split: sum(by_k.values()) for split, by_k in stats.examples.items()
    }
    assert sum(stats.types.values()) == sum(e.k for split in made.values() for e in split)


def test_a_stopped_build_goes_on_and_ends_the_same(source, built, tmp_path):
    folder, tally, stats = built

    class Stopped(Exception):
        pass

    def stop(done, total):
        assert total == 4
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        build(source, tmp_path, progress=stop)
    finished = sorted((tmp_path / "work").glob("part-*.json"))
    before = [path.stat().st_mtime_ns for path in finished]
    assert len(finished) == 2
    assert not (tmp_path / "ramp").exists()
    assert build(source, tmp_path) == (tally, stats)
    assert [path.stat().st_mtime_ns for path in finished] == before
    assert examples(tmp_path) == examples(folder)


def test_a_build_that_goes_on_with_other_parts_masks_nothing_twice(source, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "stopped", part=20, progress=stop)
    assert build(source, tmp_path / "stopped", part=30) == build(
        source, tmp_path / "at_once", part=30
    )
    assert examples(tmp_path / "stopped") == examples(tmp_path / "at_once")


@pytest.mark.slow
def test_several_processes_make_the_same(source, built, tmp_path):
    folder, tally, stats = built
    assert build(source, tmp_path, workers=2) == (tally, stats)
    assert examples(tmp_path) == examples(folder)


@pytest.mark.parametrize(("most", "part"), [(40, 20), (39, 20), (3, 20), (10, 7), (10, 80), (1, 3)])
def test_max_examples_are_made_in_parts_of_any_size(source, tmp_path, most, part):
    cfg = dataclasses.replace(RAMP, max_examples=most)
    _, stats = build(source, tmp_path, cfg=cfg, part=part)
    made = list(itertools.chain(*examples(tmp_path).values()))
    assert len(made) == most == sum(sum(by_k.values()) for by_k in stats.examples.values())
    assert stats.used == len({e.passage_id for e in made})
    assert stats.used + stats.dropped["beyond_max_examples"] == stats.paragraphs == 80


def test_what_a_part_lacks_of_max_examples_another_gives(tmp_path):
    """Paragraphs without a span are as long as others, and of articles of their own."""
    nothing = "there was nothing at all to be seen on the way to it or back from it "
    bare = [Passage(f"n{i}", f"None{i}", nothing * 3) for i in range(60)]
    write_passages(tmp_path / "p.jsonl", [*bare, *map(town, range(20))])
    cfg, clean = dataclasses.replace(RAMP, max_examples=1000), survey.CleanConfig()
    _, stats = build(tmp_path / "p.jsonl", tmp_path / "all", cfg=cfg, clean=clean, part=10)
    assert (stats.used, stats.dropped["no_spans"]) == (20, 60)
    most = sum(map(len, examples(tmp_path / "all").values())) - 1
    assert 30 < most < 40
    cfg = dataclasses.replace(RAMP, max_examples=most)
    for _ in range(2):  # the second finds it done
        build(tmp_path / "p.jsonl", tmp_path / "out", cfg=cfg, clean=clean, part=10)
        assert sum(map(len, examples(tmp_path / "out").values())) == most


def test_a_build_fails_that_leaves_out_more_than_its_share(source, tmp_path):
    clean = dataclasses.replace(CLEAN, max_drop=0.05)
    with pytest.raises(ShareError, match=r"passages to mask: 6 of 86 .*clean\.max_drop=0\.05"):
        build(source, tmp_path, clean=clean)


# ---- leaks


def evaluation(**changes):
    asked = [QAExample("q", "d", "Who opened the harbour?", ("x",), ("t7", "t8"))]
    copied = Passage("t8", "Other", town(9).text)
    passages = [town(7), copied, town(30)]
    return leakage.evaluation(asked, passages, **({"n": 25} | changes))


def test_overlap_by_title_and_by_text():
    found = evaluation()
    assert found.overlap(town(7)) == "gold_title"
    assert found.overlap(town(9)) == "gold_text"
    assert found.overlap(town(30)) == ""  # no question names it
    assert found.overlap(town(40)) == ""
    chinese = Passage("z", "河", "恩伯河是瓦尔德里亚北部的一条河流，全长84公里。")
    asked = [QAExample("q", "d", "哪条河？", ("x",), ("z",))]
    grams = leakage.evaluation(asked, [chinese], 6)
    assert grams.overlap(Passage("y", "别", f"有人说{chinese.text}")) == "gold_text"
    assert grams.overlap(Passage("y", "别", "恩伯河很长。")) == ""


def test_leaks_are_dropped_or_tagged(source, built, tmp_path):
    clean = dataclasses.replace(CLEAN, leakage="drop")
    tally, _ = build(source, tmp_path, clean=clean, rules={"evaluation": evaluation()})
    assert (tally.dropped["gold_title"], tally.dropped["gold_text"]) == (1, 1)
    titles = {e.title for made in examples(tmp_path).values() for e in made}
    assert titles == {f"Town{i}" for i in range(80)} - {"Town7", "Town9"}
    tagged = list(ramp_build.leaks(built[0], evaluation()))
    assert {(t["id"].partition("@")[0], t["reason"]) for t in tagged} == {
        ("t7", "gold_title"),
        ("t9", "gold_text"),
    }


# ---- strategies


def span(text, word, kind="TERM"):
    start = text.index(word)
    return Span(start, start + len(word), word, kind)


def test_weights_by_type_and_rarity():
    text = "Ada met Bo in 1731"
    found = [span(text, "Ada", "PERSON"), span(text, "1731", "DATE")]
    assert masking.texts([*found, found[0]]) == {"Ada", "1731"}
    assert masking.by_type_and_rarity(found, {"Ada": 2}) == {found[0]: 1.5, found[1]: 1.5}
    rng = random.Random(0)
    drawn = sum(
        masking.mask(text, found, 1, rng, {found[0]: 3.0, found[1]: 1.0})[1][0] is found[0]
        for _ in range(4000)
    )
    assert abs(drawn / 4000 - 0.75) < 0.03


def test_ppl_masks_what_is_hard_but_possible():
    text = "Ada met Bo and Cy in Rome"
    found = [span(text, w) for w in ("Ada", "Bo", "Cy", "Rome")]
    asked = masking.questions(text, found)
    assert asked[1] == ("Ada met [mask] and Cy in Rome\n\nAda met ", "Bo")
    kept, refused = masking.by_difficulty(found, [0.1, 2.0, 3.0, 9.0], 0.5, 6.0)
    assert kept == {found[1]: 2.0, found[2]: 3.0}
    assert refused == {"too_easy": 1, "too_hard": 1}
    passage = Passage("1", "T", text + " as they had done in the year before that one")
    cfg = dataclasses.replace(RAMP, strategy="ppl", heldout_fraction=0.0, rl_fraction=0.0)
    seen = []

    def scorer(asked):
        seen.extend(target for _, target in asked)
        return [2.0 if target == "Bo" else 9.0 for _, target in asked]

    made, stats = build_examples([passage], cfg, lambda line: None, scorer=scorer)
    assert [[s.text for s in e.spans] for e in made["train"]] == [["Bo"]]
    assert stats.refused["too_hard"] == len(seen) - 1
    with pytest.raises(ValueError, match="'ppl' needs a model"):
        build_examples([passage], cfg, lambda line: None)


def test_token_rows_give_a_token_across_the_border_to_the_target():
    def encode(text):  # "ab" is one token
        return [*text.replace("ab", "\x00").encode()]

    assert masking.token_rows([("xa", "bc"), ("x", "y")], encode) == [
        ([120], [0, 99]),
        ([120], [121]),
    ]


@pytest.mark.slow
def test_losses_are_those_of_the_logits():
    config = ModelConfig(
        family="qwen2", vocab_size=50, hidden_size=16, intermediate_size=32, num_layers=2,
        num_heads=2, num_kv_heads=1, head_dim=8, rope_theta=1e4, rope_scaling=None, norm_eps=1e-6,
        qkv_bias=True, qk_norm=False, tie_embeddings=True, max_position=512,
    )  # fmt: skip
    compute = ComputeConfig("float32", "float32", "xla", "none", 64)
    model = Transformer(config, compute, nnx.Rngs(0))
    rows = [([1, 2, 3], [4, 5]), ([6], [7]), ([9] * 150, [3, 2, 1])]
    found = likelihood.losses(model, rows, batch=2, longest=140)
    for (context, target), loss in zip(rows, found, strict=True):
        ids = jnp.asarray([[*context, *target][-140:]])
        positions = jnp.arange(ids.shape[1])[None]
        logits = model.logits(model.hidden(ids, positions, jnp.ones_like(ids)))[0]
        logprobs = jax.nn.log_softmax(logits)[:-1]
        picked = logprobs[jnp.arange(ids.shape[1] - 1), ids[0, 1:]][-len(target) :]
        np.testing.assert_allclose(loss, -picked.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="0 of target"):
        likelihood.losses(model, [([1], [])], 2, 140)


def test_counts_are_json(built):
    stats = built[2]
    again = RampStats.from_json(json.loads(json.dumps(dataclasses.asdict(stats))))
    assert again == stats
    assert (stats + stats).examples["train"] == {
        k: 2 * n for k, n in stats.examples["train"].items()
    }


def test_a_page_shows_a_sample_of_each_number_of_masks(built, tmp_path):
    folder = built[0]
    path = tmp_path / "examples.html"
    assert page.write(path, ramp_build.examples(folder), 3) == {1: 3, 2: 3, 3: 3, 4: 3}
    text = path.read_text(encoding="utf-8")
    assert text.count("<article>") == 12
    assert text.count("<mark>") == 3 * (1 + 2 + 3 + 4)
    shown = RampExample("a@0", "a", "<T>", "", "x & <b>", (Span(0, 1, "x", "TERM"),))
    assert (
        "<h3>&lt;T&gt; <small>a@0</small></h3><p><mark>x<sup>TERM</sup></mark> &amp; &lt;b&gt;"
        in (page.page({1: [shown]}))
    )
    drawn = [
        example.id
        for seed in range(300)
        for example in page.sample((e for e in _numbered(10)), 2, seed)[1]
    ]
    assert all(30 <= drawn.count(str(i)) <= 90 for i in range(10))


def _numbered(count):
    return [
        RampExample(str(i), "p", "T", "", "x", (Span(0, 1, "x", "TERM"),)) for i in range(count)
    ]


def test_chinese_paragraphs_end_to_end(shared_data, tmp_path):
    source = tmp_path / "zh.jsonl"
    given = read_passages(shared_data / "wiki_zh" / "paragraphs.jsonl.gz", limit=400)
    write_passages(source, given)
    rules = survey.PassageRules(CLEAN, dataclasses.replace(RAMP, min_words=20, max_words=200), "zh")
    ramp_build.learn_gazetteer(source, (), rules, tmp_path / "known.json")
    rules = dataclasses.replace(rules, gazetteer=str(tmp_path / "known.json"))
    tally, stats = ramp_build.build(source, tmp_path, rules, ramp_build.WorkConfig(part=200))
    assert tally.seen == 400
    assert tally.kept > 300
    assert stats.used > 0.85 * tally.kept
    made = list(ramp_build.examples(tmp_path))
    for example in made:
        assert masking.unmask(example.masked, [s.text for s in example.spans]) == example.paragraph
        assert all(s.text not in example.title for s in example.spans)
    bm25.build(read_passages(source), tmp_path / "index", language="zh")
    tool = bm25.BM25.open(tmp_path / "index")
    hits = tool.search([e.masked for e in made[:100]], 3)
    same = [e.passage_id in {p.id for p in found} for e, found in zip(made, hits, strict=False)]
    assert sum(same) > 90


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # spaCy's own
def test_the_entities_of_a_spacy_pipeline_are_masked(tmp_path):
    """A pipeline whose entities are told, in a folder, as one that is trained would be."""
    import spacy

    entities = {
        "Ola Nordmann": "PERSON",
        "the Glomma": "LOC",
        "Bergen": "GPE",
        "1906": "DATE",
        "25,000 kroner": "MONEY",
        "Norwegian": "NORP",  # none of ours
        "the Labour Party's": "ORG",
        "Trondheim": "GPE",  # the article's title
    }
    pipeline = spacy.blank("en")
    patterns = [{"label": label, "pattern": text} for text, label in entities.items()]
    pipeline.add_pipe("entity_ruler").add_patterns(patterns)
    pipeline.to_disk(tmp_path / "pipeline")
    text = (
        "Ola Nordmann left the Glomma and Trondheim for Bergen in 1906 with 25,000 kroner and a "
        "Norwegian shirt, as the Labour Party's leader had told him to do on a cold morning."
    )
    source = tmp_path / "passages.jsonl"
    write_passages(source, [Passage("p", "Trondheim", text)])
    cfg = dataclasses.replace(
        RAMP, extractor="spacy", spacy_model=str(tmp_path / "pipeline"), min_words=20
    )
    rules = survey.PassageRules(survey.CleanConfig(), cfg)
    (found,) = ramp_build.extractor_of(rules).find([Passage("p", "Trondheim", text)])
    assert {s.text: s.type for s in found.spans} == {
        "Ola Nordmann": "PERSON",
        "Glomma": "PLACE",
        "Bergen": "PLACE",
        "1906": "DATE",
        "25,000 kroner": "NUMBER",
        "Labour Party": "ORG",
    }
    assert found.refused == {"label_NORP": 1, "title": 1}
    ramp_build.build(source, tmp_path / "built", rules, ramp_build.WorkConfig())
    assert {s for e in ramp_build.examples(tmp_path / "built") for s in e.spans} <= {*found.spans}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_missing_spacy_pipeline_is_named(tmp_path):
    cfg = dataclasses.replace(RAMP, extractor="spacy", spacy_model=str(tmp_path))
    with pytest.raises(SpacyError, match=r"no installed pipeline or folder; installed: \w+"):
        ramp_build.extractor_of(survey.PassageRules(CLEAN, cfg))


def test_a_missing_spacy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpacyError, match=r"not installed: pip install 'masksearch_jax\[spacy\]'"):
        ramp_build.extractor_of(
            survey.PassageRules(CLEAN, dataclasses.replace(RAMP, extractor="spacy"))
        )
