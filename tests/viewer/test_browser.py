"""The report in a browser: read, filtered and steered by keys, mouse and touch."""

from __future__ import annotations

import json

import pytest

from masksearch_jax import viewer

pytestmark = pytest.mark.slow  # a browser starts

ITEMS = 650  # of each of two methods and two evaluations: 2,600 trajectories


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, write_run):
    folder = write_run(tmp_path_factory.mktemp("browser") / "run", ITEMS)
    path = folder / "report.html"
    path.write_text(viewer.render([folder]), encoding="utf-8")
    return path


@pytest.fixture
def open_page(browser, page_file):
    """Opens the report at an address in it; at the end, nothing may have been said or loaded."""
    said, asked, contexts = [], [], []

    def open_(address: str = "", **options):
        context = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
        context.set_default_timeout(180_000)  # a busy machine is no failure of the page
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{page_file.as_uri()}{address}")
        page.wait_for_selector("h1, h2", state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert {url.partition("#")[0] for url in asked if not url.startswith("blob:")} == {
        page_file.as_uri()
    }


def count(page, selector: str) -> int:
    return page.locator(selector).count()


def test_thousands_of_trajectories_are_a_small_page(page_file, open_page):
    assert page_file.stat().st_size < 10e6
    page = open_page("#trajectories")
    page.wait_for_selector(".row")
    assert "2,612 trajectories" in page.locator(".list > .faint").inner_text()
    assert count(page, "*") < 1500
    assert count(page, ".row") < 40


def test_failures_come_first_and_filters_narrow(open_page):
    page = open_page("#trajectories")
    first = page.locator(".row .score").first
    assert first.inner_text() == "0.00"
    page.get_by_label("Order", exact=True).select_option("best")
    assert first.inner_text() == "1.00"
    page.get_by_label("Suite", exact=True).select_option("rl/ramp")
    shown = page.locator(".list > .faint")
    assert shown.inner_text() == "12 of 2,612 trajectories"
    page.get_by_label("RL group", exact=True).select_option("10/1")
    assert shown.inner_text() == "2 of 2,612 trajectories"
    page.get_by_label("Score ≥", exact=True).fill("0.5")
    assert shown.inner_text() == "1 of 2,612 trajectories"
    page.get_by_role("button", name="Clear").click()
    page.locator("#search").fill("chad 649 AFRICA")
    page.wait_for_selector(".list > .faint:text-matches('^4 of')")


def test_a_link_opens_its_trajectory_and_keys_read_on(open_page):
    page = open_page("#trajectories")
    page.wait_for_selector(".row")
    page.locator(".rows").focus()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url(lambda url: "#t-" in url)
    address = page.evaluate("location.hash")
    title = page.locator(".detail h2").inner_text()
    page.keyboard.press("j")
    page.wait_for_url(lambda url: not url.endswith(address))
    assert page.locator(".detail h2").inner_text() != title
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "rows"
    again = open_page(address)
    again.wait_for_selector(".detail h2")
    assert again.locator(".detail h2").inner_text() == title
    assert again.locator(".document.source .badge").inner_text() == "source passage"


def focused(page) -> str:
    return page.evaluate("controlName(document.activeElement)")


def test_escape_closes_and_back_returns_to_the_list(open_page):
    page = open_page("#trajectories", viewport={"width": 700, "height": 900})
    page.locator(".row").nth(3).click()
    page.wait_for_selector(".reading .detail h2")
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Escape")  # from within
    assert page.evaluate("document.activeElement.className") == "rows"
    page.wait_for_url("**#trajectories")
    page.locator(".row").nth(3).click()
    page.wait_for_selector(".reading .detail h2")
    page.keyboard.press("j")
    page.go_back()
    page.wait_for_url("**#trajectories")
    assert count(page, ".reading") == 0
    assert page.locator("[role=option][aria-selected=true]").get_attribute("id") == "row-4"
    missing = open_page("#t-nowhere", viewport={"width": 390, "height": 800})
    said = missing.locator(".detail [role=status]").inner_text()
    assert said.startswith("There is no trajectory #t-nowhere here.")
    missing.keyboard.press("Tab")
    missing.get_by_role("button", name="← List").click()
    assert missing.locator(".row").first.is_visible()


def test_what_made_evaluations_stands_apart_from_the_suites(open_page):
    page = open_page("#evaluation")
    made = page.locator("section", has=page.get_by_role("heading", name="What made them"))
    assert made.locator("> details").count() > 0
    assert made.get_by_label("Measure", exact=True).count() == 0


def test_a_control_keeps_the_focus_when_its_part_is_drawn_anew(open_page):
    page = open_page("#evaluation")
    page.locator("summary", has_text="Paired differences").click()
    for label in ("Measure", "Less"):
        control = page.get_by_label(label, exact=True).first
        control.focus()
        control.dispatch_event("change")
        assert focused(page) == label
    page.evaluate("location.hash = '#curves'")
    page.wait_for_selector(".legend button")
    name = page.locator(".legend button").first.inner_text()
    page.locator(".legend button").first.press("Enter")
    assert focused(page) == name
    assert page.locator(".legend button").first.get_attribute("aria-pressed") == "false"
    page.evaluate("location.hash = '#trajectories'")
    page.get_by_role("button", name="Clear").press("Enter")
    assert focused(page) == "Clear"


def test_hostile_text_is_text(open_page, hostile):
    page = open_page("#trajectories")
    page.wait_for_selector(".detail .document")
    assert "<script>alert(1)</script>" in page.locator(".detail .document").nth(1).inner_text()
    assert count(page, "img") == 0


def test_tokens_show_who_wrote_them_and_both_logprobs(open_page):
    page = open_page("#trajectories")
    page.get_by_label("Suite", exact=True).select_option("rl/ramp")
    page.locator(".row").first.click()
    page.locator("details.tokens > summary").click()
    page.wait_for_selector(".t")
    classes = [t.get_attribute("class") for t in page.locator(".t").all()]
    assert classes == ["t prompt"] * 4 + ["t policy"] * 3 + ["t tool"] * 3 + ["t policy"] * 2
    page.locator(".stream").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    said = page.locator(".tokens .readout").inner_text()
    for part in (
        "position 5",
        "id 105",
        "policy",
        "in the loss",
        "logprob of the sampler -0.5000",
        "logprob of the trainer -0.6250",
        "trainer less sampler -0.1250",
        "advantage 0.5",
    ):
        assert part in said  # fmt: skip
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    saved = json.loads(download.value.path().read_text())
    assert saved["ids"] == list(range(100, 112))
    assert saved["reward"]["coverage"] == 0.5


def test_an_evaluation_trains_on_no_token(open_page):
    page = open_page("#trajectories")
    page.get_by_label("Suite", exact=True).select_option("ramp")
    page.locator(".row").first.click()
    page.locator("details.tokens > summary").click()
    page.wait_for_selector(".t")
    colours = page.get_by_label("Colour", exact=True).locator("option").all_inner_texts()
    assert colours == ["who wrote it", "logprob of the sampler"]
    page.locator(".stream").focus()
    page.keyboard.press("ArrowRight")
    assert "the loss" not in page.locator(".tokens .readout").inner_text()


def test_judges_leaked_items_and_difficulty_are_shown(open_page):
    page = open_page("#evaluation")
    judged = page.get_by_role("region", name="Held-out RAMP: judged").locator("tbody tr")
    shown = judged.first.locator("td").all_inner_texts()
    assert [text.split()[0] for text in shown] == ["0.250", "0.500", "1", "4"]
    assert "by strict" in judged.first.inner_text()
    leaked = page.get_by_role("region", name="Held-out RAMP: without leaked items")
    shown = leaked.locator("tbody tr").first.locator("td").all_inner_texts()
    assert [text.split()[0] for text in shown] == ["0.125", "0.000", "4"]
    assert "2 of 9 items left out" in leaked.inner_text()
    page.locator("summary", has_text="What makes a span hard").first.click()
    hard = page.get_by_role("region", name="What makes a span hard: before training")
    shown = hard.locator("tbody tr").nth(1).locator("td").all_inner_texts()
    assert [text.split()[0] for text in shown] == ["3", "0.750", "0.800", "0.500"]
    page.evaluate("location.hash = '#trajectories'")
    page.get_by_label("Suite", exact=True).select_option("ramp")
    page.locator(".row").first.click()
    assert "judged by strict" in page.locator(".detail .scores").last.inner_text()


def test_curves_are_read_and_zoomed_by_keys(open_page):
    page = open_page("#curves")
    plot, readout = page.locator(".plot").first, page.locator(".readout").first
    page.wait_for_selector(".plot canvas")
    plot.focus()
    page.keyboard.press("Home")
    assert readout.inner_text().split() == ["step", "1", "8"]
    page.keyboard.press("ArrowRight")
    assert readout.inner_text().split() == ["step", "2", "4"]
    page.keyboard.press("+")
    zoomed = page.evaluate("[...charts].map((c) => c.range)")
    assert zoomed[0] is not None
    assert zoomed[0] == zoomed[1]  # the other charts of the kind follow
    page.keyboard.press("0")
    assert page.evaluate("[...charts][0].range") is None
    page.get_by_label("Over", exact=True).select_option("seconds")
    page.wait_for_selector(".plot canvas")
    page.locator(".plot").first.focus()
    assert "after 1 min 10 s" in page.locator(".readout").first.inner_text()


def test_a_chart_that_is_drawn_after_it_has_the_focus_is_read(open_page):
    page = open_page("#curves")
    page.wait_for_selector(".plot canvas")
    drawn = """(select) => {  // charts are drawn when a frame has shown them: not yet
        select.value = "seconds";
        select.dispatchEvent(new Event("change"));
        const isDrawn = document.querySelector(".plot canvas") !== null;
        document.querySelector(".plot").focus();
        return isDrawn;
    }"""
    assert page.get_by_label("Over", exact=True).evaluate(drawn) is False
    page.wait_for_selector(".plot canvas")
    assert "after 1 min 10 s" in page.locator(".readout").first.inner_text()


def test_a_breakdown_says_of_how_many_items_each_figure_is(open_page):
    page = open_page("#evaluation")
    page.locator("summary", has_text="by masks").click()
    rows = page.locator("[aria-label='By masks'] tbody tr")
    same, apart = (rows.nth(i).inner_text().split() for i in range(2))
    assert same[:3] == ["1", "n", "4"]
    assert [apart[i + 1] for i, word in enumerate(apart) if word == "n"] == ["1", "326"]


def test_paired_differences_are_of_the_items_that_both_have(open_page):
    page = open_page("#evaluation")
    page.locator("summary", has_text="Paired differences").click()
    page.get_by_label("Less", exact=True).select_option("before training, agent")
    cells = page.locator("tr", has=page.get_by_text("after RAMP SFT, agent", exact=True)).last
    assert "+0.500" in cells.inner_text()
    assert "325 / 0" in cells.inner_text()
    assert "650" in cells.inner_text()


def test_a_choice_within_a_part_that_was_just_opened_leaves_it_open(open_page):
    page = open_page("#evaluation")
    are_open = page.evaluate("""() => {
        const parts = () => [...document.querySelectorAll("details")];
        const name = (part) => part.querySelector("summary").textContent;
        const part = parts().find((p) => p.querySelector("select"));
        part.querySelector("summary").click();
        part.querySelector("select").dispatchEvent(new Event("change"));  // before `toggle`
        return parts().find((p) => name(p) === name(part)).open;
    }""")
    assert are_open


def test_the_config_marks_what_was_decided(open_page):
    page = open_page("#config")
    assert (
        page.locator("tr", has_text="seed").first.locator(".badge").inner_text() == "command line"
    )
    assert page.locator("tr", has_text="sft.steps").locator(".badge").inner_text() == "config file"
    page.get_by_label("Only what was decided").check()
    assert count(page, "table.config tbody tr") == 3


def test_dark_is_remembered(open_page):
    page = open_page(color_scheme="light")
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    page.wait_for_selector("h1")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("view", ["overview", "evaluation", "curves", "trajectories", "config"])
def test_a_phone_scrolls_down_alone(open_page, view):
    phone = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
    page = open_page(f"#{view}", **phone)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    if view == "trajectories":
        page.locator(".row").first.tap()
        page.wait_for_selector(".detail h2")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("button", name="← List").tap()
        assert page.locator(".row").first.is_visible()
    if view == "curves":
        page.wait_for_selector(".plot canvas")
        page.locator(".plot .u-over").first.tap()
        assert "step" in page.locator(".readout").first.inner_text()
