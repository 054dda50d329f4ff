"""What makes a span hard: bins of spans, intervals over paragraphs, and their picture."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from masksearch_jax.core.types import QAExample, RampExample, Span
from masksearch_jax.evals import difficulty
from masksearch_jax.evals.difficulty import SpanFacts
from masksearch_jax.evals.metrics import bootstrap
from masksearch_jax.evals.results import Bootstrap, Scored
from masksearch_jax.evals.rows import Row

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


def test_rarity_counts_different_paragraphs_that_hold_the_text():
    """Masked or not, as whole words, each paragraph once however many examples it has."""

    def example(name, paragraph, masked):
        start = paragraph.index(masked)
        spans = (Span(start, start + len(masked), masked, "PLACE"),)
        hidden = paragraph.replace(masked, "[mask]", 1)
        return RampExample(name, name.partition("@")[0], "T", hidden, paragraph, spans)

    everything = [
        example("a@0", "Ann left Iran for Rome.", "Iran"),
        example("a@1", "Ann left Iran for Rome.", "Rome"),
        example("b@0", "Bo came to Iran from Bonn.", "Bonn"),
        example("c@0", "Iranian shahs saw Paris.", "Paris"),
        QAExample("q", "d", "Where is Iran?", ("Iran",)),
    ]
    scored = Scored("a", {"span_recall": 1.0}, {}, [("Iran", 1.0)])
    rows = [Row(("ramp", "agent"), one, "", scored) for one in everything[:4]]
    found = difficulty.spans_of(rows, everything, dict.fromkeys(("a@0", "a@1", "b@0", "c@0")), None)
    assert [fact.rarity for fact in found] == [2, 1, 1, 1]
