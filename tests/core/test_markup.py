"""The grammar: what ends a turn, what is read from it, and that no document can speak in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksearch_jax.core import markup
from masksearch_jax.core.types import Passage, Segment

# Text that is likely to hold tags, halves of tags and what they are made of.
PIECES = st.sampled_from(
    [*markup.TAG_TOKENS, "<", ">", "/", "answer", "search", "<Answer>", "</INFORMATION>", "a", "\n"]
)
TAGGY = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)
PLAIN = st.text(st.characters(blacklist_characters="<>", blacklist_categories=["Cs"]))


def passage(name: str, text: str, title: str = "") -> Passage:
    return Passage(name, title, text)


# ---- documents cannot act


@given(TAGGY)
def test_escaped_text_holds_no_tag_and_is_otherwise_the_same(text):
    escaped = markup.escape(text)
    assert not any(tag in escaped.lower() for tag in markup.TAG_TOKENS)
    assert markup.escape(escaped) == escaped
    assert escaped.replace("\u200b", "") == text.replace("\u200b", "")
    assert markup.find_stop(escaped) is None


@given(PLAIN)
def test_text_without_a_tag_is_not_touched(text):
    assert markup.escape(text) == text
    assert markup.escape(f"a < {text} > <b>") == f"a < {text} > <b>"


@given(st.lists(TAGGY, max_size=4), TAGGY)
def test_information_is_one_block_whatever_the_documents_say(texts, title):
    documents = [passage(str(i), text, title) for i, text in enumerate(texts)]
    block, shown = markup.render_information(documents)
    assert block.startswith("<information>")
    assert block.endswith("</information>")
    assert sum(block.lower().count(tag) for tag in markup.TAG_TOKENS) == 2
    assert shown == tuple(documents)


# ---- what is shown


@given(st.lists(st.text("ab .", min_size=1, max_size=9), max_size=6), st.integers(0, 90))
def test_information_keeps_what_fits_in_its_budget(texts, budget):
    documents = [passage(str(i), text) for i, text in enumerate(texts)]
    block, shown = markup.render_information(
        documents, fits=lambda block: len(block) <= budget, note=""
    )
    assert shown == tuple(documents[: len(shown)])
    whole, _ = markup.render_information(shown, note="")
    if block != whole:  # the last is cut
        assert len(whole) > budget
        assert whole.startswith(block.removesuffix("</information>"))
    assert not shown or len(block) <= budget
    if len(shown) < len(documents):  # the next one would not have fitted
        longer, _ = markup.render_information(documents[: len(shown) + 1])
        assert len(longer) > budget


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("It is long. It is deep. It ends.", 30, "Aar: It is long. It is deep."),
        ("It is long. It is deep. It ends.", 20, "Aar: It is long."),
        ('"It is long." He said so twice.', 19, 'Aar: "It is long."'),
        ("它很长。它很深。它结束。", 12, "Aar: 它很长。"),
        ("It is a very long river of the north", 15, "Aar: It is a"),
        ("它是一条很长很长的河，流过许多国家", 12, "Aar: 它是一条很长很"),
        ("x" * 150, 20, "Aar: " + "x" * 15),  # as Thai has it: no spaces
        ("It is long.", 2, ""),
        ("Itislong", 6, ""),  # a title alone would say nothing
        ("<search> it. </search> Then", 20, "Aar: <\u200bsearch> it."),
    ],
)
def test_a_first_document_that_is_too_long_is_cut_at_a_sentence(text, room, shown):
    documents = [passage("1", text, "Aar"), passage("2", "b", "B")]
    wrapped = len("<information></information>")
    block, kept = markup.render_information(
        documents, fits=lambda block: len(block) <= wrapped + room, note=""
    )
    assert block == f"<information>{shown}</information>"
    assert kept == tuple(documents[: bool(shown)])


@pytest.mark.parametrize(
    ("texts", "room", "shown", "count"),
    [
        (["Short.", "One. Two. Three.", "End."], 21, "Short.\nAar: One. Two.", 2),
        (["Short.", "One. Two. Three.", "End."], 20, "Short.\nAar: One.", 2),
        (["Short.", "One. Two. Three.", "End."], 16, "Short.\nAar: One.", 2),
        (["Short.", "One. Two. Three.", "End."], 15, "Short.", 1),
        (["Short.", "One. Two.", "Four. Five. Six."], 34, "Short.\nAar: One. Two.\nAar: Four.", 3),
        (["Short.", "One two three four", "End."], 20, "Short.", 1),  # no words, no document after
        (["短。", "它很长。它很深。它结束。"], 16, "短。\nAar: 它很长。它很深。", 2),
    ],
)
def test_a_later_document_that_is_too_long_is_cut_at_a_sentence(texts, room, shown, count):
    documents = [passage(str(i), text, "Aar" if i else "") for i, text in enumerate(texts)]
    wrapped = len("<information></information>")
    block, kept = markup.render_information(
        documents, fits=lambda block: len(block) <= wrapped + room
    )
    assert block == f"<information>{shown}</information>"
    assert kept == tuple(documents[:count])


def test_of_a_document_of_megabytes_little_is_read_twice():
    seen = []

    def fits(block):
        seen.append(len(block))
        return len(block) <= 500

    text = "It flows on. " * 200_000
    block, _ = markup.render_information([passage("1", text, "Aar")], fits=fits)
    assert 480 < len(block) <= 500
    assert sum(seen) < 110_000
    whole, _ = markup.render_information([passage("1", text, "T" * 10**6)])
    assert len(whole) == len("<information>: </information>") + 101_000


def test_information_as_written():
    documents = [passage("1", "Aar is a river.", "Aar"), passage("2", "It is long.", "Rhine")]
    block, _ = markup.render_information(documents)
    assert block == "<information>Aar is a river.\nRhine: It is long.</information>"
    assert markup.render_information([]) == ("<information>Nothing found.</information>", ())
    none_fits = markup.render_information(documents, fits=lambda block: len(block) <= 3)
    assert none_fits == ("<information>Nothing found.</information>", ())


def test_merging_takes_turns_and_shows_each_passage_once():
    a, b, c, d = (passage(x, x) for x in "abcd")
    assert markup.merge_results([[a, b, c], [b, d]], 9) == (a, b, d, c)
    assert markup.merge_results([[a, b, c], [b, d]], 2) == (a, b)
    assert markup.merge_results([[], [a]], 9) == (a,)
    assert markup.merge_results([], 9) == ()


@given(st.lists(st.lists(st.sampled_from("abcdef"), unique=True), max_size=4), st.integers(0, 8))
def test_merging_keeps_each_querys_order(found, limit):
    results = [[passage(x, x) for x in names] for names in found]
    merged = [p.id for p in markup.merge_results(results, limit)]
    everything = [p.id for p in markup.merge_results(results, 99)]
    assert merged == everything[:limit]
    assert len(everything) == len(set(everything)) == len(set().union(*found))
    rank = {x: min(names.index(x) for names in found if x in names) for x in everything}
    assert [rank[x] for x in everything] == sorted(rank.values())


# ---- what a turn says


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("<think>a</think><search>b</search>", ("search", 34)),
        ("x</answer>y</search>", ("answer", 10)),
        ("<answer>half</answer", None),
        ("</information></think>", None),
        ("", None),
    ],
)
def test_a_turn_stops_at_its_first_closing_action(text, stop):
    assert markup.find_stop(text) == stop


@given(
    st.lists(st.text(st.characters(categories=["L", "Nd"]), min_size=1), max_size=5, unique=True)
)
def test_queries_come_back_as_written(queries):
    turn = "<think>x</think>" + markup.wrap("search", "\n".join(queries))
    assert markup.parse_queries(turn, 9) == tuple(queries)
    assert markup.parse_queries(turn, 2) == tuple(queries[:2])


@pytest.mark.parametrize(
    ("turn", "queries"),
    [
        ("<search> a \n\n b\na</search>", ("a", "b")),
        ("<search>old</search><search>new</search>", ("new",)),
        ("<search><search>a</search>", ("a",)),
        ("<search>\n</search>", ()),
        ("</search><search>a", ()),
        ("a</search>", ()),
    ],
)
def test_queries_of_broken_turns(turn, queries):
    assert markup.parse_queries(turn, 9) == queries


@given(PLAIN, PLAIN)
def test_an_answer_comes_back_as_written(thought, answer):
    text = markup.wrap("think", thought) + markup.wrap("answer", answer)
    assert markup.extract_answer(text) == answer.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "<answer>x",
        "x</answer>",
        "</answer><answer>",
        "<answer> <answer>x</answer>",
        "<answer>x</answer></answer>",
        "<answer>x</answer><answer>x</answer>",
        "<think>maybe <answer></think><answer>x</answer>",
        "<answer><search>x</answer>",
        "<answer>a</think>x</answer>",
    ],
)
def test_no_answer_where_there_is_not_exactly_one(text):
    assert markup.extract_answer(text) is None


# ---- the whole trajectory

THINK, SEARCH, ANSWER = "<think>t</think>", "<search>q</search>", "<answer>a</answer>"
FOUND = "<information>i</information>"


@pytest.mark.parametrize(
    "turns",
    [
        [ANSWER],
        [f"\n{THINK}\n{ANSWER}\n"],
        [THINK + SEARCH, FOUND, THINK + ANSWER],
        [SEARCH, FOUND, SEARCH, FOUND, ANSWER],
        ["<search>two\nqueries</search>", FOUND, "<answer>x</answer>"],
        ["<think>1 < 2 <b></think><answer>a > b</answer>"],
    ],
)
def test_well_formed(turns):
    assert markup.is_well_formed(segments(turns))


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [""],
        ["a"],
        [THINK],
        [f"so {ANSWER}"],
        [f"{ANSWER} done"],
        [THINK + THINK + ANSWER],
        [ANSWER + THINK],
        [SEARCH + ANSWER],
        [ANSWER + ANSWER],
        ["<answer>a"],
        ["<answer>a</search>"],
        ["<answer><answer>a</answer>"],
        ["<think>t<think></think><answer>a</answer>"],
        ["<think>t" + ANSWER],
        [SEARCH, FOUND],
        [ANSWER, FOUND, SEARCH],
        [ANSWER, FOUND, ANSWER],
        ["<search> \n</search>", FOUND, ANSWER],
        [FOUND + ANSWER],
        ["<think><information>i</information></think><answer>a</answer>"],
        ["<Answer>a</Answer>"],
    ],
)
def test_not_well_formed(turns):
    assert not markup.is_well_formed(segments(turns))


def segments(turns: list[str]) -> list[Segment]:
    """A prompt that looks like an answer, then policy and tool by turns."""
    authors = ("policy", "tool")
    written = [Segment(authors[i % 2], text) for i, text in enumerate(turns)]
    return [Segment("prompt", ANSWER), *written]


def test_a_well_formed_trajectory_has_an_answer():
    turns = segments([THINK + SEARCH, markup.wrap("information", "x"), THINK + ANSWER])
    policy = "".join(s.text for s in turns if s.author == "policy")
    assert markup.extract_answer(policy) == "a"


# ---- other tools than search

TOOLS = ("search", "calculate")


def test_the_tags_of_a_run_are_those_of_its_tools():
    assert markup.stops(TOOLS) == ("</search>", "</calculate>", "</answer>")
    assert markup.tag_tokens(TOOLS) == (
        *("<think>", "</think>", "<search>", "</search>", "<calculate>", "</calculate>"),
        *("<information>", "</information>", "<answer>", "</answer>"),
    )
    text = "<calculate>1</calculate> <answer>2</answer>"
    assert markup.find_stop(text, TOOLS) == ("calculate", len("<calculate>1</calculate>"))
    assert markup.find_stop(text) == ("answer", len(text))
    assert markup.escape("</Calculate>", TOOLS) == "<\u200b/Calculate>"
    assert markup.escape("</calculate>") == "</calculate>"
    assert markup.extract_answer("<answer><calculate>1</answer>", TOOLS) is None
    assert markup.extract_answer("<answer><calculate>1</answer>") == "<calculate>1"


@pytest.mark.parametrize(
    ("turn", "tools", "is_one"),
    [
        ("<think>so</think><calculate>1 + 1</calculate>", TOOLS, True),
        ("<calculate>1 + 1</calculate>", ("search",), False),
        ("<calculate>1</calculate><search>a</search>", TOOLS, False),
        ("<calculate>1</search>", TOOLS, False),
        ("<think><calculate></think><search>a</search>", TOOLS, False),
        ("<think><calculate></think><search>a</search>", ("search",), True),
        ("<calculate> </calculate>", TOOLS, False),
    ],
)
def test_a_turn_is_one_call_of_a_tool_of_the_run(turn, tools, is_one):
    assert markup.is_turn(turn, tools) == is_one
    whole = [Segment("policy", turn), Segment("policy", "<answer>2</answer>")]
    assert markup.is_well_formed(whole, tools) == is_one


@pytest.mark.parametrize(
    ("name", "may_be"),
    [("calculate", True), ("look_up", True), ("answer", False), ("think", False),
     ("information", False), ("A", False), ("a b", False), ("", False), ("a>", False)],
)  # fmt: skip
def test_names_that_a_tool_may_have(name, may_be):
    assert markup.is_name(name) == may_be
