"""The rules against 200 paragraphs annotated by hand: precision and recall by type, with floors."""

import collections
import json
from pathlib import Path

import pytest

from masksearch_jax.core.types import Passage, Span
from masksearch_jax.ramp import gazetteer, lexicon, llm_spans, rules_en, spans

GOLD = Path(__file__).with_name("spans_gold.jsonl")


@pytest.fixture(scope="module")
def gold():
    return [json.loads(line) for line in GOLD.read_text(encoding="utf-8").splitlines()]


def test_the_gold_file_is_whole(gold):
    assert len(gold) == 200 == len({row["id"] for row in gold})
    types = collections.Counter()
    for row in gold:
        end = 0
        for start, stop, kind in row["spans"]:
            assert end <= start < stop <= len(row["text"])
            assert row["text"][start:stop].strip() == row["text"][start:stop]
            types[kind] += 1
            end = stop
    assert set(types) == set(spans.TYPES)
    assert types.total() >= 1000
    assert min(types.values()) >= 90


# By type: share of the annotated spans found with exact borders, and share of the spans found that
# are annotated. A little below what the rules reach, so that a change for the worse shows.
FLOORS = {
    "PERSON": (0.92, 0.95),
    "PLACE": (0.94, 0.95),
    "ORG": (0.84, 0.92),
    "DATE": (0.98, 0.98),
    "NUMBER": (0.97, 0.97),
    "TERM": (0.68, 0.86),
}


@pytest.fixture(scope="module")
def scores(gold):
    wanted, found, proposed, right = (collections.Counter() for _ in range(4))
    same_type = 0
    extractor = spans.RulesExtractor()
    passages = [Passage(row["id"], row["title"], row["text"]) for row in gold]
    for row, (given, *_) in zip(gold, extractor.find(passages), strict=True):
        annotated = {(start, end): kind for start, end, kind in row["spans"]}
        ours = {(s.start, s.end): s.type for s in given}
        wanted.update(annotated.values())
        proposed.update(ours.values())
        found.update(kind for place, kind in annotated.items() if place in ours)
        right.update(kind for place, kind in ours.items() if place in annotated)
        same_type += sum(annotated.get(place) == kind for place, kind in ours.items())
    return wanted, found, proposed, right, same_type


@pytest.mark.parametrize("kind", FLOORS)
def test_rules_reach_their_floors(scores, kind):
    wanted, found, proposed, right, _ = scores
    recall, precision = found[kind] / wanted[kind], right[kind] / proposed[kind]
    assert (recall >= FLOORS[kind][0], precision >= FLOORS[kind][1]) == (True, True), (
        recall,
        precision,
    )


def test_types_are_mostly_right(scores):
    wanted, found, proposed, right, same_type = scores
    assert found.total() / wanted.total() >= 0.91
    assert right.total() / proposed.total() >= 0.96
    assert same_type / wanted.total() >= 0.82


# ---- the gazetteer


def articles():
    yield Passage("1", "Ember (river)", "The Ember is a river in the north of Valdria.")
    yield Passage("2", "Anna Lind", "Anna Lind (1701–1766) was a surveyor who mapped it.")
    yield Passage("3", "Anna Lind", "In later years she was a town in a story.")
    yield Passage("4", "Lowmere Works", "Lowmere Works is a company that builds boats.")
    yield Passage("5", "History", "The history of the north is long, and history is written here.")
    yield Passage("6", "History", "Its history is also told in songs.")
    yield Passage("7", "Or", "Or was a god.")


def test_titles_are_typed_by_the_sentence_that_defines_them():
    known = gazetteer.learn(articles(), "en")
    assert known.types == {"Ember": "PLACE", "Anna Lind": "PERSON", "Lowmere Works": "ORG"}
    assert {"history", "in", *lexicon.ORDINARY} <= known.ordinary
    assert len(gazetteer.learn(articles(), "en", size=2).types) == 2


def test_links_are_names_and_chinese_titles_are_typed():
    learner = gazetteer.Learner("zh", 0)
    learner.add(Passage("1", "恩伯河", "恩伯河是瓦尔德里亚北部的一条河流，全长84公里。"))
    learner.add(Passage("2", "安娜·林德", "安娜·林德（1701年—1766年），测量员。"))
    learner.add(Passage("3", "历史", "历史很长。"))
    learner.add_link("旧哈罗镇")
    known = learner.finish()
    assert known.types == {"恩伯河": "PLACE", "安娜·林德": "PERSON", "旧哈罗镇": "TERM"}
    extractor = spans.RulesExtractor("zh", known)
    text = "她1731年在《北方》中画出恩伯河，全长84公里，又到旧哈罗镇住了三年。"
    (found,) = extractor.find([Passage("9", "测量", text)])
    assert [(s.text, s.type) for s in found.spans] == [
        ("1731年", "DATE"),
        ("北方", "TERM"),
        ("恩伯河", "PLACE"),
        ("84公里", "NUMBER"),
        ("旧哈罗镇", "PLACE"),
    ]
    assert all(text[s.start : s.end] == s.text for s in found.spans)


def test_known_names_are_whole_words_and_give_way_to_longer_spans(tmp_path):
    known = gazetteer.Gazetteer("en", {"Ember": "PLACE", "Old Harrow": "PLACE"})
    assert [s.text for s in known.find("The Ember, not Embers or Ember-like, Old Harrow")] == [
        "Ember",
        "Old Harrow",
    ]
    text = "He left Old Harrow for the University of Ember."
    (found,) = spans.RulesExtractor("en", known).find([Passage("1", "T", text)])
    assert [(s.text, s.type) for s in found.spans] == [
        ("Old Harrow", "PLACE"),
        ("University of Ember", "ORG"),
    ]
    known.save(tmp_path / "g.json")
    assert gazetteer.Gazetteer.load(tmp_path / "g.json") == known


def test_ordinary_words_of_a_corpus_are_no_names():
    text = "The Standard was met. Harrow lies in Standard, by Plan B, Slip-on."
    words = frozenset({"standard", "plan", "slip", *lexicon.ORDINARY})
    found = [why or s.text for s, why in rules_en.candidates(text, words)]
    assert found == ["ordinary_word", "Harrow", "ordinary_word", "Plan B", "ordinary_word"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the anti-Boyle riots and the Rules and Orders of Harrow of 1901", ["1901"]),
        ("sung by The Marshes & the Quills at 4:30 in 1899–1901", ["1899–1901"]),
        (
            "He met De Boyle and Omar al-Quill, as I'd say, on 8 April 9 weeks ago",
            ["De Boyle", "Omar al-Quill", "8 April", "9 weeks"],
        ),
        ("the Rules Boyle and Harrow Act of de Marsh in 1901", ["Harrow Act", "1901"]),
        ('the word "neutral" and the 14th row of 2006-11-18', []),
        ("joined the 29th Signals Group and wrote .NET Words for GTK+ of 6S-1988", []),
        ("he read “C implies E” and the text “to see old Harrow”", []),
        ("the Access to the Harrow Act and the Temps d´Marsh Fair of 1901", ["1901"]),
        ("the words “an old man in Zzyzx left” and “Quill: A Life of Marsh, a Man of the Sea”", []),
        (
            "the Irish Free Marsh, the Byzantine Crown and the Scot William Quill met",
            ["Irish Free Marsh", "Byzantine Crown", "William Quill"],
        ),
        ("it costs 300,000–400,000 or 10.688km, by 12.Be4, ISO Quill 1979:2004", ["ISO Quill"]),
        ("the Quill MP4/1 in Marsh No. 8 by Aut(G) of the Marsh-style GB£13", []),
        (
            "the Quill Music and Arts Festival, the Château des ducs of Hugo “Hurley” Quill",
            ["Hurley"],
        ),
        (
            "the Convention on Harrow Trade by the Police Service of Northern Marsh met",
            ["Convention", "Police Service of Northern Marsh"],
        ),
        ("it lies in old Harrow", []),
        (
            "South Wes Trains met. Nick Quill met the Secretary of State for the Marshes.",
            ["South Wes Trains", "Nick Quill", "Marshes"],
        ),
        ("1,020–1,520 mm, p. 35 and pp. 36 of Quill Period 542± 3, by the Hon. member.", []),
        ("It is of what “Being Quill is”. Fortunately, it rained. Contactless cards", []),
        (
            "the World Fellowship of Quills of 3000 B.C. met",
            ["World Fellowship of Quills", "3000 B.C."],
        ),
        ("the Quill&I Archives met. Supreme Commander Quill left", ["Supreme Commander Quill"]),
        ("Music Society of Quills met (of “Harrow”.) In Marsh the Co. rose.", ["Harrow", "Marsh"]),
        (
            "the World's Old Shop, the Quill and Old Marsh Authority, Harrow e Marsh met",
            ["Quill", "Harrow"],
        ),
        ("at 3,000 km/s in the early 1850´s", ["3,000"]),
        ("Q3/Q4 drives Q5 to Ξ1, not B747 there", ["B747"]),
        ("the Dutchman J. B. van Quill met", ["Dutchman J. B. van Quill"]),
        ("the Church of Old Harrow of Last-day Quills of Marsh", []),
    ],
)
def test_parts_of_names_and_numbers_are_not_masked(text, expected):
    words = frozenset(
        {
            "rules",
            "orders",
            "access",
            "temps",
            "music",
            "hugo",
            "nick",
            "world",
            "supreme",
            *lexicon.ORDINARY,
        }
    )
    known = gazetteer.Gazetteer("en", {"Zzyzx": "PLACE"}, words)
    (found,) = spans.RulesExtractor("en", known).find([Passage("1", "None", text)])
    assert [s.text for s in found.spans] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他於公元前202年建立漢朝，《史記》記載有130篇。", ["公元前202年", "史記", "130"]),
        ("导演王家卫在香港拍摄，票房3.5亿港元。", ["王家卫", "香港", "3.5亿港元"]),
        ("約翰·李·貝爾德於1925年在倫敦", ["約翰·李·貝爾德", "1925年", "倫敦"]),
        ("该片由北京电影学院制作，由索尼公司发行。", ["北京电影学院", "索尼公司"]),
        (
            "法國國王路易十三於1989年夏天在台灣大學建築研究所任教。",
            ["法國", "1989年夏天", "台灣大學建築研究所"],
        ),
        ("2002年11月22至28日，十一、二世紀，1667-1668和312號", ["2002年11月22至28日"]),
        ("自河南省洛阳市（今孟津县）由西庇阿·卡尔弗斯成立", ["河南省洛阳市", "西庇阿·卡尔弗斯"]),
        ("事會指「真正的人而非影評人」，「馬克思主義」", ["馬克思主義"]),
        (
            "作者André Øster在São Paulo拍Cafés，Nguyễn不寫",
            ["André Øster", "São Paulo", "Cafés", "Nguyễn"],
        ),
        ("代號GéN和ABé的約3é，共25ö", ["GéN", "ABé"]),
        ("公司Nokia生产手机，Nokia的对手是Sony公司", ["Sony"]),
        ("公司NOKIA生产手机，其Nokia手机比SonyX和Sony好", ["SonyX", "Sony"]),
    ],
)
def test_chinese_rules(text, expected):
    (found,) = spans.RulesExtractor("zh").find([Passage("1", "无", text)])
    assert [s.text for s in found.spans] == expected


def test_sifting_keeps_what_makes_a_good_mask():
    text = "In 1731 Ada met Bo and Cy; Bo left Japan for a Japanese port."
    passage = Passage("1", "Ada", text)

    def span(word, kind="TERM"):
        start = text.index(word)
        return Span(start, start + len(word), word, kind)

    given = [span(w) for w in ("1731", "Ada", "met", "Bo", "Cy", "Cy; Bo", "Japan")]
    kept, refused, _ = spans.sift(passage, given)
    assert [s.text for s in kept] == ["1731", "met", "Cy"]
    assert refused == {"title": 1, "repeated": 1, "overlap": 1, "given_away": 1}


@pytest.mark.parametrize(
    ("text", "named", "kept", "refused"),
    [
        (
            "The Iranian revolution came, and the last shah left Iran in January.",
            [("Iran", "PLACE"), ("shah", "TERM")],
            [("shah", 42), ("Iran", 52)],
            {},
        ),
        (
            "He scored 10 goals in 1910 and had 10 caps. Annual prizes went to Ann Bee.",
            [("10", "NUMBER"), ("Ann", "PERSON")],
            [("Ann", 66)],
            {"repeated": 1},
        ),
        (
            "It was first held in 1996 with 96 teams.",
            [("96", "NUMBER"), ("team", "TERM")],
            [("96", 31)],
            {"not_in_text": 1},
        ),
        (
            "他在北京大学读书，后来离开北京，前往上海。",
            [("北京", "PLACE"), ("上海", "PLACE")],
            [("上海", 18)],
            {"repeated": 1},
        ),
    ],
)
def test_what_a_model_names_is_a_span_where_it_stands_once_as_whole_words(
    text, named, kept, refused
):
    extractor = llm_spans.LLMExtractor(lambda passages: [named])
    (found,) = extractor.find([Passage("1", "None", text)])
    assert [(s.text, s.start) for s in found.spans] == kept
    assert found.refused == refused
