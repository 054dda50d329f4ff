"""The plot and the page of a study: what they show, and that names are no HTML."""

import xml.etree.ElementTree as ElementTree

from masksearch_jax.viewer import study

CELL = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
RESULTS = {
    "ramp": {
        "span_recall": {
            "a<b": {"mean": CELL, "difference": None},
            "other": {"mean": CELL | {"value": 0.6}, "difference": CELL | {"value": 0.1}},
        }
    }
}
TOLD = {
    "study": "reward", "reference": "a<b", "seeds": 1, "seeds_asked": 3, "results": RESULTS,
    "arms": {
        "a<b": {"stages": [], "overrides": []},
        "other": {"stages": ["ramp_sft", "qa_sft"], "overrides": ["sft.steps=3"]},
    },
    "made": {"text-0": {"seconds": 2.4, "of": ["a<b/0"]}},
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def test_the_plot_has_a_dot_and_an_interval_for_each_arm():
    picture = ElementTree.fromstring(study.plot(RESULTS, "a<b", "reward"))
    dots = picture.findall(f"{SVG}circle")
    assert [d.get("cx") for d in dots] == ["330.0", "366.0"]  # 0.5 and 0.6 of 360 pixels, from 150
    texts = [t.text for t in picture.findall(f"{SVG}text")]
    assert texts[0] == "ramp, span_recall"
    assert texts[-2:] == ["a<b", "other"]
    bars = [p.get("d") for p in picture.findall(f"{SVG}path")]
    assert sum(bar.startswith("M240.0 ") and bar.endswith("H420.0") for bar in bars) == 2


def test_the_plot_reaches_as_far_as_a_count_does():
    cells = {"a": {"mean": CELL | {"value": 4.0, "high": 5.0}, "difference": None}}
    picture = ElementTree.fromstring(study.plot({"s": {"answer_tokens": cells}}, "a", "t"))
    assert [d.get("cx") for d in picture.findall(f"{SVG}circle")] == ["438.0"]  # 4 of 5


def test_the_page_says_the_figures_and_what_they_are_over():
    page = study.page(TOLD, "<svg></svg>")
    assert "1 of 3 seeds are done. Intervals are of 95%, over items alone: there is one" in page
    assert "paired, to the arm a&lt;b." in page
    assert "a<b" not in page
    assert '<td class="number">0.600 [0.250, 0.750]<td class="number">+0.100 [+0.250' in page
    assert "ramp_sft → qa_sft" in page
    assert "<code>sft.steps=3</code>" in page
    assert "http" not in page
