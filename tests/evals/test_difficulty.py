"""What makes a span hard: bins of spans, intervals over paragraphs, and their picture."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from masksearch_jax.evals import difficulty
from masksearch_jax.evals.difficulty import SpanFacts
from masksearch_jax.evals.metrics import bootstrap
from masksearch_jax.evals.results import Bootstrap

HOW = Bootstrap(200, 0)


def span(example, recall=0.0, rank=None, kind="DATE"):
    return SpanFacts(example, 1, kind, 1, None, rank, recall)


def test_intervals_are_over_paragraphs():
    ranks = [1 if value < 0.4 else None for value in np.random.default_rng(0).random(50)]
    spans = [span(f"e{i}", rank=rank) for i, rank in enumerate(ranks) for _ in range(4)]
    (cell,) = difficulty.told(spans, HOW)["type"]
    alone = bootstrap([float(rank == 1) for rank in ranks], *HOW)
    assert cell["source_first"] == pytest.approx(alone._asdict() | {"n": 200})
    assert cell["n"] == 200


def test_a_label_is_text_in_the_picture():
    picture = difficulty.plot(difficulty.told([span("e", kind="A & <b>")], HOW), "hard")
    shown = [t.text for t in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "A & <b>" in shown
