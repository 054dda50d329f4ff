"""The plot and the page of a study: what they show, and that names are no HTML."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from masksearch_jax.viewer import study

CELL = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8}
RESULTS = {
    "ramp": {
        "span_recall": {
            "a<b": {"mean": CELL, "by_seed": [0.5], "difference": None},
            "other": {
                "mean": CELL | {"value": 0.6},
                "by_seed": [0.55, 0.65],
                "difference": CELL | {"value": 0.1},
            },
        }
    }
}
CURVE = {"steps": [2, 4], "mean": [0.25, 0.5], "low": [0.0, 0.25], "high": [0.5, 0.75]}
CHANGE = {"first": 1.0, "last": 1.5, "low": 0.25, "high": 0.75}
CURVES = [
    {"stage": "ramp_sft", "arms": ["a<b", "other"], "metrics": {"loss": CURVE}, "lengthened": {}},
    {"stage": "ramp_dapo", "arms": ["a<b"], "metrics": {"reward": CURVE, "loss": CURVE},
     "lengthened": {"length": CHANGE, "reward": CHANGE, "has_grown": True}},
    {"stage": "ramp_dapo", "arms": ["other"], "metrics": {"reward": CURVE | {"steps": [1, 2]}},
     "lengthened": {"length": CHANGE | {"low": 0.0}, "reward": CHANGE, "has_grown": False}},
]  # fmt: skip
TOLD = {
    "study": "reward", "reference": "a<b", "seeds": 1, "seeds_asked": 3, "results": RESULTS,
    "question": "Is a<b?", "said": "1 of 3 seeds are done; over items", "notes": ["a<b has none"],
    "ran": ["model: a<b (qwen2)"],
    "arms": {
        "a<b": {"stages": [], "overrides": []},
        "other": {"stages": ["ramp_sft", "qa_sft"], "overrides": ["sft.steps=3"]},
    },
    "made": {"text-0": {"seconds": 2.4, "of": ["a<b/0"]}}, "curves": CURVES,
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def test_the_plot_has_a_dot_and_an_interval_for_each_arm():
    picture = ElementTree.fromstring(study.plot(RESULTS, "a<b", "reward"))
    dots = picture.findall(f"{SVG}circle")
    assert [d.get("cx") for d in dots] == ["176.0", "201.0"]  # 0.5 and 0.6 of 250 pixels, from 51
    texts = [t.text for t in picture.findall(f"{SVG}text")]
    assert texts[0] == "ramp, span_recall"
    assert texts[-2:] == ["a<b", "other"]
    bars = [p.get("d") for p in picture.findall(f"{SVG}path")]
    assert sum(bar.startswith("M113.5 ") and bar.endswith("H238.5") for bar in bars) == 2


def test_the_plot_reaches_as_far_as_a_count_does():
    cells = {"a": {"mean": CELL | {"value": 4.0, "high": 5.0}, "difference": None}}
    picture = ElementTree.fromstring(study.plot({"s": {"answer_tokens": cells}}, "a", "t"))
    assert [d.get("cx") for d in picture.findall(f"{SVG}circle")] == ["223.0"]  # 4 of 5


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.0, 2.397, [0, 0.5, 1, 1.5, 2, 2.5]),
        (-0.3, 1.0, [-0.5, 0, 0.5, 1]),
        (0.0, 350.0, [0, 100, 200, 300, 400]),
        (3.0, 3.0, [2.6, 2.8, 3.0, 3.2, 3.4]),
    ],
)
def test_an_axis_has_round_values_that_cover_what_is_drawn(low, high, ticks):
    assert study.round_ticks(low, high) == ticks


def test_the_page_says_the_figures_and_what_they_are_over():
    page = study.page(TOLD, "<svg></svg>")
    said = re.findall(r"<p.*?>(.*)</p>", page)[:3]
    assert said == [
        "Is a&lt;b?",
        "1 of 3 seeds are done; over items. Differences are paired, to the arm a&lt;b.",
        "a&lt;b has none",
    ]
    assert page.count('<td class="whole">8') == 3  # items of two means and a difference
    assert "a<b" not in page
    assert "<p>model: a&lt;b (qwen2)</p>" in page.partition("<h2>What was run</h2>")[2]
    shown = ["0.600 [0.250, 0.750]", "0.550, 0.650", "+0.100 [+0.250, +0.750]"]
    assert "".join(f'<td class="whole">{cell}' for cell in shown) in page
    assert "ramp_sft → qa_sft" in page
    assert "<code>sft.steps=3</code>" in page
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|src=|href=", page)


def test_a_stages_charts_have_a_line_in_a_band_for_the_arms_that_share_it():
    first, second = study.drawn(CURVES)
    assert (first["name"], first["arms"]) == ("RAMP SFT", ["a<b, other"])
    assert (second["name"], second["arms"]) == ("RAMP DAPO", ["a<b", "other"])
    reward, loss = second["charts"]
    assert (reward["title"], reward["unit"]) == ("Reward", "mean per trajectory")
    assert [line["label"] for line in loss["lines"]] == ["a<b"]
    assert reward["lines"][1] == {
        "label": "other", "colour": 1, "x": [1, 2], "y": CURVE["mean"],
        "low": CURVE["low"], "high": CURVE["high"],
    }  # fmt: skip


def test_the_page_says_whether_answers_grew():
    page = study.page(TOLD, "<svg></svg>")
    rows = re.findall(r"<tr>(.*1\.000 → 1\.500.*)", page)
    cells = [re.findall(r'<td class="whole">([^<]*)', row) for row in rows]
    assert [c[3] for c in cells] == ["+0.250 to +0.750", "+0.000 to +0.750"]
    assert [c[-1] for c in cells] == ["yes", "no: it did not show"]


def test_a_study_that_trains_nothing_has_no_curves():
    page = study.page(TOLD | {"curves": []}, "<svg></svg>")
    assert "Over updates" not in page
    assert "uPlot" not in page.partition("</style>")[2]


@pytest.mark.slow
def test_a_browser_draws_the_curves(browser, tmp_path):
    path = tmp_path / "study.html"
    of = [f"arm_with_a_name/{i}" for i in range(40)]  # a text is shared by all arms and seeds
    made = {"made": {"text-0123456789abcdef": {"seconds": 2.4, "of": of}}}
    path.write_text(study.page(TOLD | made, "<svg></svg>"), encoding="utf-8")
    said = []
    page = browser.new_page(viewport={"width": 1200, "height": 4000})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("figure canvas", timeout=180_000)
    assert page.locator("figure").count() == 3
    assert page.locator("#curves h3").all_inner_texts() == ["RAMP SFT", "RAMP DAPO"]
    shown = page.locator("figure .readout").all_inner_texts()[1]
    assert shown.split() == ["last", "0.5000", "0.5000"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    page.set_viewport_size({"width": 390, "height": 800})
    for _ in range(3600):  # the page forbids the `eval` of `wait_for_function`
        if page.evaluate("document.documentElement.scrollWidth") <= 390:
            break
        page.wait_for_timeout(50)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # the charts follow
    page.close()
    assert said == []
