"""Cross-encoders: parity with transformers, and what is refused."""

import json

import jax
import numpy as np
import pytest
import tokenizers
import torch
from jax.sharding import Mesh

from masksearch_jax.models.cross_encoder_folder import PairScorer
from masksearch_jax.models.hf_config import HfError
from tests.models.bert_folders import write_cross_encoder, write_encoder

PAIRS = [
    ("the river", "ember flows through the red town"),
    ("tree", "fruit tree of a town " * 20),
    ("a b c " * 20, "red"),
    ("", ""),
    ("x \ud800", "green"),
    *((f"a {word}", "the river of c") for word in ("red", "b", "query")),
]


def by_transformers(model, folder, pairs, bound=48):
    """Each pair's logit, one by one and without padding."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(bound)
    scores = []
    for pair in pairs:
        read = tokenizer.encode(*(text.replace("\ud800", "?") for text in pair))
        given = {"input_ids": read.ids, "token_type_ids": read.type_ids}
        with torch.no_grad():
            out = model(**{name: torch.tensor([row]) for name, row in given.items()})
        scores.append(out.logits[0, 0].item())
    return scores


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "relu", "layer_norm_eps": 1e-5}])
def test_scores_are_those_of_transformers(tmp_path, changes):
    model = write_cross_encoder(tmp_path, **changes)
    scorer = PairScorer(tmp_path)
    found, expected = scorer.score(PAIRS), by_transformers(model, tmp_path, PAIRS)
    assert np.ptp(expected) > 0.05  # which are no constant
    assert np.abs(found - expected).max() <= 1e-4
    with jax.set_mesh(Mesh(np.array(jax.devices()[:2]), ("data",))):  # of a run on other devices
        assert np.abs(scorer.score(PAIRS[:1]) - expected[:1]).max() <= 1e-4
    assert scorer.score([]).shape == (0,)


@pytest.mark.slow  # imports sentence-transformers
def test_a_folder_is_read_as_sentence_transformers_reads_and_saves_it(tmp_path):
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    write_cross_encoder(tmp_path / "made")
    path = tmp_path / "made" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 20}))
    theirs = library.CrossEncoder(str(tmp_path / "made"), device="cpu")
    theirs.save(str(tmp_path / "saved"))
    pairs = [pair for pair in PAIRS if all(text.isprintable() for text in pair)]
    expected = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    for name in ("made", "saved"):
        assert np.abs(PairScorer(tmp_path / name).score(pairs) - expected).max() <= 1e-4


def test_its_weights_are_its_fingerprint(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_cross_encoder(tmp_path / name, seed=seed)
    marks = [PairScorer(tmp_path / name).fingerprint for name in "abc"]
    assert marks[0] == marks[1] != marks[2]


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: change(f, architectures=["BertModel"]), r"\['BertModel'\], must be BertForSeq"),
        (lambda f: change(f, architectures=None), r"\[\], must be BertForSequenceClassification"),
        (lambda f: change(f, model_type="xlm-roberta"), "'xlm-roberta', must be 'bert'"),
        (lambda f: change(f, num_hidden_layers=1), "tensors have no place"),
        (lambda f: (f / "tokenizer.json").unlink(), "cannot read the tokenizer"),
        (lambda f: write_cross_encoder(f, num_labels=2), "has 2 labels, must have one"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path, harm, message):
    write_cross_encoder(tmp_path)
    harm(tmp_path)
    with pytest.raises(HfError, match=message) as caught:
        PairScorer(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_encoder_without_a_head_is_refused(tmp_path):
    write_encoder(tmp_path)
    change(tmp_path, architectures=["BertForSequenceClassification"])
    with pytest.raises(HfError, match="lacks the tensor classifier"):
        PairScorer(tmp_path)
