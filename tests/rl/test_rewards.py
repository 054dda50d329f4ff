"""Scores of answers: slots, rewards and their hacks, SQuAD measures, intervals, curves."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.scoring import (
    Overlap,
    align_fills,
    best_overlap,
    fill_slots,
    is_exact_match,
    normalise,
    overlap,
    penalised_span_recall,
    span_recall,
)
from masksearch_jax.core.types import QAExample, RampExample, Segment, Span, Trajectory, Turn
from masksearch_jax.rl.rewards import (
    RewardTerms,
    check_reward,
    qa_reward,
    ramp_reward,
    read_answer,
    reward,
)
from masksearch_jax.runtime import metric_writer as run_metrics

PARAGRAPH = "Marie Curie was born in Warsaw in 1867 and discovered polonium with Pierre Curie."
CFG = DapoConfig(
    reward="recall",
    steps=1,
    groups=1,
    group_size=2,
    minibatches=1,
    micro_batch=2,
    length_penalty=0.1,
    accuracy_threshold=0.5,
    max_refills=1,
    overlong_buffer=0,
    overlong_penalty=0.0,
    curriculum="0:ramp_k1",
)
QA = QAExample("q1", "atlas", "Where was she born?", ("Warsaw", "Warsaw, Poland"))


def ramp(paragraph: str = PARAGRAPH, *golds: str) -> RampExample:
    """An example with the first occurrence of each gold text masked."""
    spans, masked, end = [], "", 0
    for gold in golds or ("Warsaw", "1867", "polonium"):
        start = paragraph.index(gold, end)
        spans.append(Span(start, start + len(gold), gold, "TERM"))
        masked += paragraph[end:start] + "[mask]"
        end = start + len(gold)
    return RampExample("r1", "p1", "t", masked + paragraph[end:], paragraph, tuple(spans))


EXAMPLE = ramp()


def filled(*fills: str) -> str:
    pieces = EXAMPLE.masked.split("[mask]")
    return "".join(a + b for a, b in zip(pieces, [*fills, ""], strict=True))


def policy(*texts: str) -> tuple[Segment, ...]:
    return tuple(Segment("policy", text) for text in texts)


def answered(text: str) -> tuple[Segment, ...]:
    return policy(f"<think>plan</think><answer>{text}</answer>")


def trajectory(segments: tuple[Segment, ...], searches: int = 0) -> Trajectory:
    turn = Turn(("query",), (), (), 0.0)
    none = np.zeros(0, np.int32)
    return Trajectory(
        "r1", 0, none, none.astype(np.float32), none.astype(bool), none, 0, segments,
        (turn,) * searches, "answered",
    )  # fmt: skip


# ---- slots


def test_a_faithful_copy_is_cut_at_the_unmasked_text():
    assert align_fills(EXAMPLE.masked, filled("Paris", "in 1900", "x")) == ["Paris", "in 1900", "x"]
    spaced = "  " + PARAGRAPH.replace(" ", "\n ") + " "
    assert align_fills(EXAMPLE.masked, spaced) == ["Warsaw", "1867", "polonium"]


@pytest.mark.parametrize(
    ("answer", "fills"),
    [
        (PARAGRAPH.upper(), ["WARSAW", "1867", "POLONIUM"]),
        ("Marie Curie born in Warsaw in 1867 and discovered polonium with Pierre", None),
        (
            "Marie Curie , was born in New Warsaw in the year 1867 and found polonium with him.",
            None,
        ),
    ],
)
def test_an_unfaithful_copy_is_aligned_by_what_was_copied(answer, fills):
    got = align_fills(EXAMPLE.masked, answer)
    if fills is not None:
        assert got == fills
    assert span_recall(EXAMPLE, answer) == 1.0


def test_a_fill_that_holds_a_word_of_the_text_keeps_it():
    masked = "[mask] of France visited the city of [mask] , then left ."
    answer = "the Duke of Burgundy of France visited city of Bank of Hope , then left ."
    assert align_fills(masked, answer) == ["the Duke of Burgundy", "Bank of Hope"]


def test_a_fill_that_holds_its_separator_is_cut_by_the_gold_text():
    example = ramp("In Paris, Texas, USA it rains.", "Paris, Texas", "USA")
    assert align_fills(example.masked, example.paragraph) == ["Paris", "Texas, USA"]
    assert fill_slots(example, example.paragraph) == ["Paris, Texas", "USA"]
    assert fill_slots(example, "In Rome, USA it rains.") == ["Rome", "USA"]


def test_slots_without_copied_neighbours_are_not_found():
    assert align_fills(EXAMPLE.masked, "Warsaw 1867 polonium") == [None, None, None]
    assert align_fills("[mask] [mask]", "New York") == ["New", "York"]
    assert align_fills("x [mask] [mask] y", "X a b Y") == [None, None]
    missing_middle = "Marie Curie was born in Warsaw and discovered polonium with Pierre Curie."
    assert align_fills(EXAMPLE.masked, missing_middle) == [None, None, "polonium"]


@pytest.mark.parametrize(
    ("masked", "golds", "answer"),
    [
        ("They drew [mask] of [mask].", ("maps", "Europe"), "They drew maps of Europe"),
        ("He joined the [mask].", ("U.S. Army",), "he joined the U.S. Army"),
        ("The correlation was [mask].", ("0.86",), "the correlation was 0.86."),
        ("The correlation was [mask].", ("0.86",), "the correlation was 0.86. That is all."),
        ("The correlation was [mask].", ("0.86",), "the correlation was 0.86"),
        ("Not [mask], but [mask].", ("1,5", "St. Ives"), "not 1,5, but St. Ives."),
        ('"[mask]" is a song.', ("Ash",), "Ash is a song."),
        ('He said "[mask]" and left.', ("no",), "He said “no” and left."),
        ("He said ‘[mask]’ to [mask].", ("no", "O'Hara"), "he said 'no' to O’Hara."),
        ("It was [mask] who left.", ("O’Hara",), "It was O'Hara who left."),
        ("The [mask] [mask] line opened.", ("1920s", "IND"), "the 1920s IND line opened."),
        ("Bob (“[mask]” [mask]) sings.", ("Rob", "Lee"), "bob (Rob Lee) sings."),
        ("作為[mask][mask]的一部份興建。", ("1920年代末", "IND"), "作為1920年代末IND的一部份興建"),
    ],
)
def test_a_small_slip_in_the_copy_costs_nothing(masked, golds, answer):
    paragraph, spans = "", []
    for text, gold in zip(masked.split("[mask]"), (*golds, ""), strict=True):
        paragraph += text
        if gold:
            spans.append(Span(len(paragraph), len(paragraph) + len(gold), gold, "TERM"))
        paragraph += gold
    example = RampExample("r", "p", "t", masked, paragraph, tuple(spans))
    assert span_recall(example, answer) == 1.0
    assert penalised_span_recall(example, answer, 0.6) == 1.0
    assert span_recall(example, masked) == 0.0
    assert span_recall(example, masked.rstrip("。.")) == 0.0


def test_what_is_expected_tells_no_more_than_where_a_fill_ends():
    example = ramp("They drew maps of Europe.", "maps", "Europe")
    assert fill_slots(example, "they drew plans of Asia") == ["plans", "Asia"]
    assert fill_slots(example, "they drew plans of maps of Asia") == ["plans of maps", "Asia"]
    assert fill_slots(example, "they drew Europe of maps") == ["Europe", "maps"]
    guesses = "they drew maps of Asia Africa America Australia Antarctica Europe"
    assert span_recall(example, guesses) == pytest.approx((1 + 3 / 6) / 2)
    adjacent = ramp("The first IND line opened.", "first", "IND")
    assert fill_slots(adjacent, "the first BMT line opened.") == ["first", "BMT"]
    assert fill_slots(adjacent, "the last IND line opened.") == ["last", "IND"]
    assert fill_slots(adjacent, "the IND first line opened.") == [None, None]


words = st.text(st.sampled_from("ab ,.\n[]"), max_size=40)


@settings(max_examples=150)
@given(words, words)
def test_any_text_gives_one_fill_per_slot(masked, answer):
    masked = masked + "[mask]" + answer + "[mask]"
    fills = align_fills(masked, answer)
    assert len(fills) == masked.count("[mask]")
    text = " ".join(answer.split())
    assert all(f is None or (f and " ".join(f.split()) in text) for f in fills)


@settings(max_examples=150)
@given(
    st.lists(st.text(st.sampled_from("abé ,.-"), max_size=12), min_size=2, max_size=5),
    st.lists(st.from_regex(r"[a-cé1](?:[a-c, .-]{0,6}[a-cé1])?", fullmatch=True), min_size=4),
)
def test_the_paragraph_itself_always_scores_one(parts, golds):
    golds = golds[: len(parts) - 1]
    assume(len(golds) == len(parts) - 1)
    paragraph, spans = parts[0], []
    for gold, part in zip(golds, parts[1:], strict=True):
        spans.append(Span(len(paragraph), len(paragraph) + len(gold), gold, "TERM"))
        paragraph += gold + part
    example = RampExample("r", "p", "t", "[mask]".join(parts), paragraph, tuple(spans))
    assert span_recall(example, paragraph) == 1.0


def test_adversarial_text_is_bounded():
    masked = "[mask] " + "a b " * 300 + "[mask] a [mask]"
    assert len(align_fills(masked, "a b " * 900 + "c")) == 3
    assert align_fills(EXAMPLE.masked, "in " * 100_000) == [None] * 3


# ---- reward hacks


def test_span_recall_is_the_mean_over_slots():
    assert span_recall(EXAMPLE, filled("Warsaw", "1868", "polonium")) == pytest.approx(2 / 3)
    two = ramp(PARAGRAPH, "Marie Curie", "Warsaw")
    answer = two.masked.replace("[mask]", "Curie", 1).replace("[mask]", "Warsaw")
    assert span_recall(two, answer) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        EXAMPLE.masked,
        filled("[mask]", "the [mask]", "Warsaw [mask]"),
        filled("1867", "polonium", "Warsaw"),
        "Warsaw 1867 polonium",
        "polonium " * 50,
        filled(*["Warsaw 1867 polonium and the rest of the encyclopedia " * 4] * 3),
        filled(*[PARAGRAPH * 3] * 3),
        " ".join([PARAGRAPH] * 40),
    ],
)
def test_hacks_earn_nothing(answer):
    assert span_recall(EXAMPLE, answer) == 0.0


def test_a_list_of_guesses_earns_less_with_every_guess():
    guesses = ["Warsaw", "Rome", "Oslo", "Bern", "Lima", "Riga"]
    scores = [
        span_recall(EXAMPLE, filled(" ".join(guesses[:n]), "1867", "polonium")) for n in range(1, 7)
    ]
    np.testing.assert_allclose(scores, [(2 + min(1, 3 / n)) / 3 for n in range(1, 7)])


def test_only_one_closed_answer_by_the_policy_counts():
    two = policy(f"<answer>{PARAGRAPH}</answer><answer>x</answer>")
    in_result = (*policy("<search>q</search>"), Segment("tool", f"<answer>{PARAGRAPH}</answer>"))
    open_tag = policy(f"<answer>{PARAGRAPH}")
    empty = policy("<answer> </answer>")
    for segments in (two, in_result, open_tag, empty, ()):
        assert read_answer(trajectory(segments)) is None
        got = ramp_reward(EXAMPLE, trajectory(segments), CFG)
        assert (got.answer, got.accuracy) == (0.0, 0.0)
    assert read_answer(trajectory((*in_result, *answered("mine")))) == "mine"


def figures(terms: RewardTerms) -> tuple[float, ...]:
    """Total, answer, format, accuracy."""
    return terms.total, terms.answer, terms.format, terms.accuracy


def test_ramp_reward_mixes_answer_and_format():
    assert ramp_reward(EXAMPLE, trajectory(answered(PARAGRAPH)), CFG) == RewardTerms(
        1.0, 1.0, 1.0, 1.0
    )
    bad_form = policy(f"junk <answer>{PARAGRAPH}</answer>")
    assert figures(ramp_reward(EXAMPLE, trajectory(bad_form), CFG)) == pytest.approx(
        (0.9, 1.0, 0.0, 1.0)
    )
    wrong = answered(filled("Rome", "1868", "radium"))
    assert figures(ramp_reward(EXAMPLE, trajectory(wrong), CFG)) == pytest.approx(
        (0.1, 0.0, 1.0, 0.0)
    )
    copied = answered(EXAMPLE.masked)  # the masks are still there: no form that was asked for
    assert ramp_reward(EXAMPLE, trajectory(copied), CFG) == RewardTerms(0.0, 0.0, 0.0, 0.0)


def test_the_penalty_counts_what_a_fill_has_beyond_its_span():
    cfg = dataclasses.replace(CFG, reward="penalised", format_weight=0.0)
    assert ramp_reward(EXAMPLE, trajectory(answered(PARAGRAPH)), cfg).total == 1.0
    longer = filled("old Warsaw", "about the year 1867", "polonium")  # 1 and 2 words too many
    got = ramp_reward(EXAMPLE, trajectory(answered(longer)), cfg)
    assert got.total == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert got.accuracy == got.answer  # a list of guesses is not right
    signs = filled("Warsaw ; the , ; a", "1867", "polonium")  # 5 signs and articles, 4 are free
    assert ramp_reward(EXAMPLE, trajectory(answered(signs)), cfg).total == pytest.approx(
        (0.9 + 2) / 3
    )
    qa = qa_reward(QA, trajectory(answered("Warsaw, Poland, in the east of Europe")), cfg)
    assert qa.answer == pytest.approx(1 - 0.1 * 4 / 2)
    dump = qa_reward(QA, trajectory(answered("word " * 500 + "Warsaw")), cfg)
    assert (dump.answer, dump.accuracy) == (0.0, 0.0)


LIVE = "Of {} people who lived there, most came after {} in search of work."
TOWN = ramp(LIVE.format("4.43 million", "12 May 1867"), "4.43 million", "12 May 1867")
GUESSES = "in Rome Oslo Warsaw in 1866 1867 1868 and discovered radium polonium radon with"
PEOPLE = QAExample("q2", "atlas", "How many people live there?", ("4.43 million",))
NORTH = QAExample("q3", "atlas", "How far north is it?", ("41.3 degrees north",))
BAND = QAExample("q4", "atlas", "Which band is it?", ("!!!", "The The"))
YES = QAExample("q5", "atlas", "Is it larger?", ("yes",))
CITY = QAExample("q6", "atlas", "Where was she born?", ("Warsaw",))
DOZEN = QAExample("q8", "atlas", "How many?", ("12",))
COLD = QAExample("q9", "atlas", "How cold is it?", ("-5 degrees",))
SPELLED = QAExample("q10", "atlas", "How many?", ("twenty million",))
YEAR = QAExample("q7", "atlas", "When?", ("1867",))


@pytest.mark.parametrize(
    ("example", "answer", "recall", "f1", "penalised"),
    [  # what the measures give, with half a point off for each excess word per word of the gold
        (EXAMPLE, PARAGRAPH, 1, 1, 1),
        (EXAMPLE, GUESSES, 1, 1, 0),  # 3 guesses in each slot, nothing copied
        (EXAMPLE, filled("Rome Oslo Warsaw", "1866 1867 1868", "radium polonium radon"), 1, 1, 0),
        (EXAMPLE, filled("Oslo Warsaw", "1867", "polonium"), 1, 1, 2.5 / 3),
        (EXAMPLE, filled("the Warsaw.", "1867", "polonium"), 1, 1, 1),
        (EXAMPLE, filled("the " * 9 + "Warsaw", "1867", "polonium"), 1, 1, 2 / 3),
        (EXAMPLE, filled("[mask]", "1867", "polonium"), 2 / 3, 2 / 3, 2 / 3),
        (EXAMPLE, filled("1867", "polonium", "Warsaw"), 0, 0, 0),
        (EXAMPLE, EXAMPLE.masked, 0, 0, 0),
        (EXAMPLE, f"{PARAGRAPH} {PARAGRAPH}", 2 / 3, 2 / 3, 2 / 3),  # one slot holds half of it
        (EXAMPLE, "Warsaw 1867 polonium", 0, 0, 0),
        (TOWN, LIVE.format("4.43 million", "12 May 1867"), 1, 1, 1),
        (TOWN, LIVE.format("9.99 million", "12 May 1867"), 0.75, 0.75, 0.5),
        (TOWN, LIVE.format("4.43 billion", "12 May 1868"), 7 / 12, 7 / 12, 0),
        (TOWN, LIVE.format("million", "May"), 5 / 12, 5 / 12, 0),
        (TOWN, LIVE.format("4.43 millions", "May 12, 1867"), 0.75, 0.75, 0.75),
        (CITY, "Warsaw", 1, 1, 1),
        (CITY, "the Warsaw.", 1, 1, 1),
        (CITY, "Rome Oslo Bern Warsaw", 1, 0.4, 0),
        (CITY, "Oslo Warsaw", 1, 2 / 3, 0.5),
        (CITY, "Rome Oslo Bern Lima Riga Paris Kyiv Warsaw", 1, 2 / 9, 0),  # eight guesses
        (CITY, "word " * 10_000 + "Warsaw", 1, 2 / 10_002, 0),
        (CITY, "Warsawa", 0, 0, 0),
        (CITY, "", 0, 0, 0),
        (CITY, ".", 0, 0, 0),
        (PEOPLE, "4.43 million", 1, 1, 1),
        (PEOPLE, "9.99 million", 0.5, 0, 0),
        (PEOPLE, "4.43", 0.5, 0, 0),
        (PEOPLE, "4.43 million or 9.99 million", 1, 0, 0),
        (PEOPLE, "443 million", 1, 0, 0),  # another number, though its digits are the same
        (PEOPLE, "4.43 billion", 0.5, 0, 0),  # another scale
        (PEOPLE, "-4.43 million", 1, 0, 0),
        (PEOPLE, "4.43 millions", 0.5, 0.5, 0.5),
        (DOZEN, "1,2", 1, 0, 0),  # two numbers
        (DOZEN, "twelve", 0, 0, 0),
        (COLD, "5 degrees", 1, 0, 0),
        (COLD, "−5 degrees", 0.5, 0.5, 0.5),
        (SPELLED, "ninety million", 0.5, 0, 0),
        (SPELLED, "20 million", 0.5, 0.5, 0.5),
        (CITY, "the " * 10_000 + "Warsaw", 1, 2 / 9_998, 0),
        (CITY, "! " * 10_000 + "Warsaw", 1, 2 / 9_998, 0),
        (CITY, "(the) Warsaw.", 1, 1, 1),
        (NORTH, "41.3 degrees south", 2 / 3, 0, 0),
        (NORTH, "degrees north", 2 / 3, 0, 0),
        (NORTH, "41.3° north", 1 / 3, 0.4, 1 / 3),
        (NORTH, "41.3° N", 0, 0, 0),
        (NORTH, "41.3 41.4 41.5 degrees north", 1, 0, 0),
        (YEAR, "1866 1867 1868", 1, 0, 0),
        (YEAR, "in the year 1867", 1, 0.5, 0),
        (YES, "yes no", 0, 0, 0),
        (YES, "yes, it is", 0, 0, 0),
        (BAND, ".", 0, 0, 0),
        (BAND, "the", 0, 0, 0),
        (BAND, "!!!", 1, 1, 1),
        (BAND, "the The", 1, 1, 1),
    ],
)
def test_what_does_not_pay(example, answer, recall, f1, penalised):
    got = {
        kind: reward(
            example,
            trajectory(answered(answer)),
            dataclasses.replace(CFG, reward=kind, length_penalty=0.5, format_weight=0.0),
        ).total
        for kind in ("recall", "f1", "penalised")
    }
    expected = {"recall": recall, "f1": f1, "penalised": penalised}
    assert got == pytest.approx(expected)


@pytest.mark.parametrize(("penalty", "pays"), [(0.6, False), (0.4, True)])
def test_with_the_configured_penalty_guessing_more_than_once_does_not_pay(penalty, pays):
    """Of n places that are as likely, one guess is right one time in n, and all n always are."""
    places = ["Rome", "Oslo", "Bern", "Lima", "Riga", "Paris", "Kyiv", "Warsaw"]
    cfg = dataclasses.replace(CFG, reward="penalised", length_penalty=penalty, format_weight=0.0)
    gains = []
    for n in range(2, 9):
        one = np.mean([qa_reward(CITY, trajectory(answered(p)), cfg).total for p in places[-n:]])
        assert one == 1 / n
        gains.append(qa_reward(CITY, trajectory(answered(" ".join(places[-n:]))), cfg).total - one)
    assert (max(gains) > 0) == pays
    assert gains[-1] == -1 / 8  # eight guesses earn nothing


@pytest.mark.parametrize(
    "turn",
    [
        "<think>x</think><answer></answer>",
        "<think>x</think><answer> \n</answer>",
        f"<think>x</think><answer>{EXAMPLE.masked}</answer>",
        f"<think>the answer is <answer>{PARAGRAPH}</answer>",
        f"<think><answer>{PARAGRAPH}</answer></think>",
        f"<think>x</think><information>{PARAGRAPH}</information><answer>{PARAGRAPH}</answer>",
        f"<think>x</think><answer><information>{PARAGRAPH}</information></answer>",
        f"<think>x</think><answer>{PARAGRAPH}</answer> and more",
        f"so <answer>{PARAGRAPH}</answer>",
        "<think>x</think><search> </search>",
        f"<think><INFORMATION>{PARAGRAPH}</Information></think><answer>{PARAGRAPH}</answer>",
        "<think>x</think><answer>born in [MASK]</answer>",
        "<think>x</think><answer>\u200b\u2800</answer>",
    ],
)
def test_a_form_that_is_not_asked_for_loses_its_share(turn):
    assert ramp_reward(EXAMPLE, trajectory(policy(turn)), CFG).format == 0.0


def test_qa_recall_and_dispatch():
    assert qa_reward(QA, trajectory(answered("Poland")), CFG).answer == 0.5
    assert figures(reward(QA, trajectory(answered("Warsaw")), CFG)) == (1.0, 1.0, 1.0, 1.0)
    assert reward(EXAMPLE, trajectory(answered(PARAGRAPH)), CFG).total == 1.0
    assert qa_reward(QA, trajectory(policy("Warsaw")), CFG) == RewardTerms(0.0, 0.0, 0.0, 0.0)


PENALISED = DapoConfig(steps=1, curriculum="", reward="penalised")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coverage_weight", 0.25),
        ("gold_hit_weight", 0.25),
        ("format_weight", 0.2),
        ("min_searches", 1),
        ("length_penalty", 0.5),
    ],
)
def test_what_a_function_of_ones_own_is_not_paid_for_is_refused(name, value):
    own = dataclasses.replace(PENALISED, reward="tests.rl.own_rewards:by_sample")
    check_reward(own, max_turns=4)
    check_reward(dataclasses.replace(PENALISED, **{name: value}), max_turns=4)
    with pytest.raises(
        ConfigError, match=rf"config\.dapo\.{name} is {value}, .* recall, f1, penal"
    ):
        check_reward(dataclasses.replace(own, **{name: value}), max_turns=4)


@pytest.mark.parametrize("kind", ["recall", "f1", "judge"])
def test_a_penalty_of_length_that_the_reward_has_none_of_is_refused(kind):
    cfg = dataclasses.replace(PENALISED, reward=kind)
    check_reward(cfg, max_turns=4)
    check_reward(dataclasses.replace(cfg, length_penalty=0.0), max_turns=4)
    said = (
        rf"^config\.dapo\.length_penalty is 0\.5, which does nothing with dapo\.reward={kind}; "
        r"choose dapo\.reward=penalised, or leave it at 0\.6$"
    )
    with pytest.raises(ConfigError, match=said):
        check_reward(dataclasses.replace(cfg, length_penalty=0.5), max_turns=4)


def test_searches_that_are_demanded_for_no_pay_are_refused():
    cfg = dataclasses.replace(PENALISED, min_searches=1)
    check_reward(cfg, max_turns=4)
    said = r"min_searches is 1, which does nothing with dapo\.format_weight=0; pay for the format,"
    with pytest.raises(ConfigError, match=said):
        check_reward(dataclasses.replace(cfg, format_weight=0.0), max_turns=4)


def test_a_penalty_of_calls_wants_a_tool_whose_calls_may_be_unreadable():
    cfg = dataclasses.replace(PENALISED, unreadable_call_penalty=0.5)
    check_reward(cfg, max_turns=4, tools=("calculate",))
    check_reward(PENALISED, max_turns=4)
    with pytest.raises(ConfigError, match=r"unreadable_call_penalty is 0\.5, .* choose config\.to"):
        check_reward(cfg, max_turns=4)


def test_an_unknown_reward_names_the_choices():
    cfg = dataclasses.replace(CFG, reward="penalized")
    said = (
        r"'penalized', not recall, f1, penalised, judge or package\.module:function; did you mean"
    )
    with pytest.raises(ConfigError, match=rf"config\.dapo\.reward is {said} penalised\?"):
        check_reward(cfg, max_turns=4)
    with pytest.raises(ValueError, match=r"'penalized' is none of recall, f1, penalised"):
        reward(EXAMPLE, trajectory(answered("x")), cfg)


# ---- measures


def test_chinese_is_scored_by_characters():
    text = "索拉位於意大利利里河畔，1943年有25,000人居住。"
    spans = (Span(7, 10, "利里河", "PLACE"), Span(18, 24, "25,000", "NUMBER"))
    masked = "索拉位於意大利[mask]畔，1943年有[mask]人居住。"
    example = RampExample("zh", "p", "索拉", masked, text, spans)
    assert all(text[s.start : s.end] == s.text for s in spans)
    assert span_recall(example, text) == 1.0
    loose = "索拉城位於意大利利里江畔，在1943年有大約25,000人住。"  # no faithful copy
    assert fill_slots(example, loose) == ["利里江", "大約25,000"]
    assert span_recall(example, loose) == pytest.approx((2 / 3 + 1) / 2)
    assert overlap("北京市", "北京。") == (1.0, 2 / 3, 0.8)
    assert is_exact_match("《春秋》", "春秋")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("An apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("1,234.5", "12345"),
        ("Theatre", "theatre"),
        ("the", ""),
        ("Café—Bar", "café—bar"),
    ],
)
def test_squad_normal_form(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("a b c", "b c d e", (0.5, 1.0, 2 / 3)),  # the article goes: b c against b c d e
        ("x x y", "x y y z", (0.5, 2 / 3, 4 / 7)),
        ("yes it is", "yes", (0, 0, 0)),
        ("Yes.", "yes", (1, 1, 1)),
        ("no", "no one", (0, 0, 0)),
        ("", "x", (0, 0, 0)),
        ("the", "a", (0, 0, 0)),
        ("the", "The", (1, 1, 1)),
        (".", "!!!", (0, 0, 0)),
        ("cat", "dog", (0, 0, 0)),
    ],
)
def test_overlap_by_hand(prediction, gold, expected):
    assert overlap(prediction, gold) == pytest.approx(expected)


def test_the_best_alias_counts_for_each_measure():
    assert best_overlap("Warsaw city", QA.answers) == pytest.approx(Overlap(1.0, 0.5, 2 / 3))
    assert is_exact_match("The Warsaw.", "warsaw")
    with pytest.raises(ValueError, match="at least one accepted answer"):
        best_overlap("x", ())


# ---- the metrics file


def untimed(folder):
    rows = run_metrics.read_metrics(folder)
    return [{k: v for k, v in row.items() if k != "wall_time"} for row in rows]


def test_a_resumed_run_leaves_the_curve_of_one_that_never_stopped(tmp_path):
    def train(folder, start, stop):
        writer = run_metrics.MetricWriter(folder, start)
        for step in range(start + 1, stop + 1):
            writer.write(step, {"loss": np.float32(1 / step), "tokens": np.int64(step)})

    train(tmp_path / "whole", 0, 6)
    train(tmp_path / "broken", 0, 5)
    path = tmp_path / "broken" / run_metrics.FILE_NAME
    path.write_text(path.read_text() + '{"step": 6, "lo')  # killed in the middle of a line
    train(tmp_path / "broken", 3, 6)
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")
    times = [row["wall_time"] for row in run_metrics.read_metrics(tmp_path / "broken")]
    assert times == sorted(times)
    train(tmp_path / "broken", 0, 2)
    assert [row["step"] for row in run_metrics.read_metrics(tmp_path / "broken")] == [1, 2]


def test_rows_are_json_even_when_values_are_not_finite(tmp_path):
    run_metrics.MetricWriter(tmp_path).write(
        1, {"a": float("nan"), "b": np.float32("inf"), "c": "x"}
    )
    assert untimed(tmp_path) == [{"step": 1, "a": None, "b": None, "c": "x"}]


def test_rows_that_a_full_disk_does_not_take_are_written_later(small_disk, capsys):
    writer = run_metrics.MetricWriter(small_disk)
    filler = small_disk / "filler"
    writer.write(1, {"loss": 1.0})
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(b"x" * 2**21)
    for step in (2, 3):  # the first may find room in the file's last page
        writer.write(step, {"loss": 1.0, "note": "x" * 5000})
    assert "no room on the disk for step 3" in capsys.readouterr().err
    rows = [row["step"] for row in run_metrics.read_metrics(small_disk)]
    assert rows == [1, 2][: len(rows)]
    filler.unlink()
    writer.write(4, {"loss": 2.0})
    assert [row["step"] for row in run_metrics.read_metrics(small_disk)] == [1, 2, 3, 4]
