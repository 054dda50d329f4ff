"""Corpora of every format as passages: dumps, dataset folders, TFDS; what is left out, and why."""

import bz2
import gzip
import itertools
import json
import lzma
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from masksearch_jax.core.corpus_config import CorpusConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus import duplicates, prose, readers, wikitext
from masksearch_jax.corpus.packed import PackingError
from masksearch_jax.corpus.passages import CorpusError, CorpusStats, Ids
from masksearch_jax.corpus.tally import ShareError, Tally
from tests.corpus.wiki import (
    DUMP,
    HEAD,
    PAGES,
    RIVER,
    SEE,
    page,
    prepare_tfds,
    rows,
    write_stream,
)


def config(path, **changes):
    values = {"path": str(path), "questions": "", "limit": 0, "max_bad_fraction": 0.0}
    return CorpusConfig(**(values | changes))


def read(cfg, **options):
    stats, log = CorpusStats(), []
    passages = list(readers.read_corpus(cfg, log=log.append, stats=stats, **options))
    return passages, stats, log


def write_dump(folder, data, name="wiki-pages-articles.xml.bz2"):
    (folder / name).write_bytes(data)
    return folder / name


# ---- dumps


@pytest.mark.parametrize("kind", ["plain", "bz2", "multistream", "gzip", "xz"])
def test_a_dump_gives_prose_and_counts_the_rest(tmp_path, kind):
    text = [part.encode() for part in DUMP]
    if kind == "plain":
        path = write_dump(tmp_path, b"".join(text), "wiki.xml")
    elif kind in ("bz2", "gzip", "xz"):
        pack, name = {
            "bz2": (bz2.compress, "wiki.xml.bz2"),
            "gzip": (gzip.compress, "wiki.xml.gz"),
            "xz": (lzma.compress, "wiki.xml.xz"),
        }[kind]
        path = write_dump(tmp_path, pack(b"".join(text)), name)
    else:
        path = write_dump(tmp_path, b"".join(map(bz2.compress, text)))
    anchors = []
    passages, stats, log = read(config(path, passage_words=60), anchors=anchors.append)
    assert [(p.id, p.title, p.text) for p in passages] == [
        ("1-0", "Ember", RIVER),
        ("1-1", "Ember", f"{SEE} It is 5 km long."),
        ("6-0", "Lowmere", SEE),
    ]
    assert (stats.read, stats.kept, stats.dropped, log) == (6, 3, {}, [])
    reasons = ("redirect", "namespace", "disambiguation", "stub", "hole")
    assert stats.left_out.dropped == {**dict.fromkeys(reasons, 1), "list": 2}
    assert stats.left_out.example["redirect"] == "'The Ember'"
    assert sorted(anchors) == ["Lowmere", "Old Harrow"]


def test_of_all_revisions_the_newest_is_read(tmp_path):
    def revision(time, text):
        shown = f"<text>{text}</text>" if text else '<text deleted="deleted" />'
        return f"<revision><id>1</id><timestamp>{time}</timestamp>{shown}</revision>"

    def read_newest(*revisions):
        one = page(1, "Ember", "").partition("<revision>")[0] + "".join(revisions) + "</page>"
        path = write_dump(tmp_path, f"{HEAD}{one}</mediawiki>".encode(), "history.xml")
        return [p.text for p in read(config(path))[0]]

    old = revision("2020-01-01T00:00:00Z", RIVER)
    new = revision("2021-12-01T00:00:00Z", SEE)
    gone = revision("2022-01-01T00:00:00Z", "")
    assert read_newest(old, new) == read_newest(new, old) == read_newest(old, new, gone) == [SEE]
    assert read_newest(new, new.replace(SEE, f"{RIVER} {SEE}")) == [f"{RIVER} {SEE}"]


def test_a_folder_of_the_parts_of_a_dump(tmp_path):
    for number, i in (("1.xml-p1p41242", 0), ("10.xml-p9p12", 5), ("2.xml-p2p8", 2)):
        data = bz2.compress(f"{HEAD}{PAGES[i]}</mediawiki>".encode())
        write_dump(tmp_path, data, f"enwiki-20260101-pages-articles{number}.bz2")
    passages, stats, _ = read(config(tmp_path))
    assert ([p.id for p in passages], stats.read) == (["1-0", "6-0"], 3)
    assert readers.detect(str(tmp_path / "enwiki-20260101-pages-articles2.xml-p2p8.bz2")) == "dump"


def test_a_dump_in_another_packing_is_named(tmp_path):
    path = write_dump(tmp_path, b"7z\xbc\xaf\x27\x1c rest", "wiki.xml.7z")
    with pytest.raises(PackingError, match=r"wiki\.xml\.7z is packed as 7z.*choices: gzip, bzip2"):
        read(config(path))


def test_a_page_that_cannot_be_parsed_is_one_drop(tmp_path, monkeypatch):
    import mwparserfromhell

    real = mwparserfromhell.parse

    def parse(text, **options):  # the parser is not known to fail on any text
        if "town hall" in text and "Infobox" not in text:
            raise mwparserfromhell.parser.ParserError("odd")
        return real(text, **options)

    monkeypatch.setattr(mwparserfromhell, "parse", parse)
    path = write_dump(tmp_path, "".join(DUMP).encode(), "wiki.xml")
    passages, stats, log = read(config(path, max_bad_fraction=0.5))
    assert {p.title for p in passages} == {"Ember"}
    assert stats.dropped == {"unparsable wikitext": 1}
    assert "page 6: unparsable wikitext: 'Lowmere'" in log[0]


def test_a_dump_that_breaks_off_names_the_last_whole_page(tmp_path):
    whole = "".join(DUMP).encode()
    cut_xml = write_dump(tmp_path, whole[: whole.index(b"<id>6</id>")], "cut.xml")
    with pytest.raises(CorpusError, match=r"cut\.xml: unreadable after page 5 'Stub'"):
        read(config(cut_xml))
    broken = whole.replace(b"<id>4</id>", b"<id>4</ID>")
    with pytest.raises(CorpusError, match=r"unreadable after page 3 'Talk:Ember'"):
        read(config(write_dump(tmp_path, broken, "broken.xml")))
    packed = bz2.compress(whole)
    for data in (packed[:-9], packed[:40]):
        with pytest.raises(CorpusError, match="unreadable after"):
            read(config(write_dump(tmp_path, data)))


def test_wikitext_of_any_kind_is_rendered_or_left_out():
    def render(text):
        return wikitext.render("1", "T", text).paragraphs

    assert render("A ''b'' [[c#d|e]] [http://x.y f] &amp; {{nowrap|g h}}") == ("A b e f & g h",)
    assert render("X<ref name=a/> y <nowiki>[[z]]</nowiki>") == ("X y [[z]]",)
    assert render("See {{odd|x}} and <math>x^2</math>") == (f"See {prose.HOLE} and {prose.HOLE}",)
    assert render("Town ({{IPA|x}}; ) lies") == ("Town lies",)
    assert render("[[de:Fluss]][[File:a.jpg|thumb|b [[c]]]]") == ()
    assert prose.refusal(render("An unclosed {{tmpl and [[link")[0], "en") == "markup"


# ---- folders of datasets


def write_file(path, table):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("data-00000.parquet", lambda path, table: parquet.write_table(table, path)),
        ("data-00000.arrow", write_stream),
        ("data-00001.arrow", write_file),
    ],
)
def test_a_folder_of_parquet_or_arrow_files(tmp_path, name, write):
    (tmp_path / "train").mkdir()
    bad = {"id": "3", "url": "u", "title": None, "text": "x"}
    write(tmp_path / "train" / name, pa.Table.from_pylist([*rows(), bad, rows()[0]]))
    passages, stats, log = read(config(tmp_path, max_bad_fraction=0.5))
    assert [(p.id, p.text) for p in passages] == [("1", RIVER), ("2", SEE)]
    assert stats.dropped == {"title is not a string": 1, "duplicate id": 1}
    assert log[0].startswith(f"{tmp_path / 'train' / name}: row 3: title is not a string")
    cut, stats, _ = read(config(tmp_path, max_bad_fraction=0.5, articles=True, passage_words=30))
    assert [p.id for p in cut][:2] == ["1-0", "1-1"]
    assert " ".join(p.text for p in cut if p.title == "Ember") == RIVER
    assert stats.dropped == {"title is not a string": 1, "duplicate id": 1}


def test_of_a_saved_dataset_the_files_that_its_state_names_are_read(tmp_path):
    for split in ("test", "train"):
        folder = tmp_path / split
        folder.mkdir()
        kept = [{**row, "id": f"{split}-{row['id']}"} for row in rows()]
        mapped = [{**row, "id": f"c{row['id']}", "text": row["text"].upper()} for row in kept]
        write_stream(folder / "data-00000-of-00001.arrow", pa.Table.from_pylist(kept))
        write_stream(folder / "cache-9f.arrow", pa.Table.from_pylist(mapped))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    passages, stats, _ = read(config(tmp_path))
    assert [p.id for p in passages] == ["test-1", "test-2", "train-1", "train-2"]
    assert {p.text for p in passages} == {RIVER, SEE}
    assert stats.read == 4

    state = tmp_path / "train" / "state.json"
    plain = state.read_text()
    for change, message in (
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, r"flatten_indices\(\)"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, r"state\.json names gone\.arrow, which"),
        ({"_data_files": None}, r"state\.json names no _data_files"),
    ):
        state.write_text(json.dumps(json.loads(plain) | change))
        with pytest.raises(CorpusError, match=message):
            read(config(tmp_path))
    state.unlink()
    assert len(read(config(tmp_path))[0]) == 4  # the mapped file stays out


def test_a_damaged_dataset_file_is_named(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(CorpusError, match=rf"{name}: unreadable"):
            read(config(tmp_path / name))


# ---- text files in other forms


@pytest.mark.parametrize(("pack", "end"), [(bytes, ""), (gzip.compress, ".gz")])
def test_a_folder_of_shards(tmp_path, pack, end):
    for number in (10, 2):
        shard = "".join(json.dumps({**r, "id": f"{number}-{r['id']}"}) + "\n" for r in rows())
        (tmp_path / f"part-{number}.jsonl{end}").write_bytes(pack(shard.encode()))
    (tmp_path / "dataset_info.json").write_text('{"rows": 4}')
    (tmp_path / "README.md").write_text("Two shards.")
    passages, stats, log = read(config(tmp_path))
    assert [p.id for p in passages] == ["2-1", "2-2", "10-1", "10-2"]
    assert (stats.read, stats.done, log) == (4, 1.0, [])
    (tmp_path / "part-3.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    with pytest.raises(PackingError, match=r"part-3\.jsonl\.zst is packed as zst"):
        read(config(tmp_path))
    (tmp_path / "part-3.jsonl.zst").rename(tmp_path / "wiki.tsv")
    with pytest.raises(CorpusError, match=r"several formats: tsv \(wiki\.tsv\), jsonl \(part-2"):
        read(config(tmp_path))
    assert len(read(config(tmp_path, format="jsonl"))[0]) == 4
    with pytest.raises(CorpusError, match=r"has no files of corpus\.format dump"):
        read(config(tmp_path, format="dump"))


def test_tab_separated_passages(tmp_path):
    path = tmp_path / "psgs.tsv"
    path.write_text(
        "id\ttext\ttitle\n"
        '1\t"""Ash"" is a song, he said."\t"""Ash"" (song)"\n'
        '2\t"Ash" is a song.\tAsh\r\n'
        '3\t"Ash is a song.\tAsh\n'
        "4\tno title\n\n"
    )
    passages, stats, log = read(config(path, max_bad_fraction=0.5))
    assert passages == [
        Passage("1", '"Ash" (song)', '"Ash" is a song, he said.'),
        Passage("2", "Ash", '"Ash" is a song.'),
        Passage("3", "Ash", '"Ash is a song.'),
    ]
    assert stats.dropped == {"wrong number of columns": 1}
    assert log == [f"{path}:5: wrong number of columns: 2, not 3"]
    path.write_text("1\tAsh is a song.\n")
    with pytest.raises(CorpusError, match=r"psgs\.tsv:1: a header line of id, text and title"):
        read(config(path))


@pytest.mark.parametrize("form", ["documents", "lines"])
def test_a_tree_of_wikiextractor(tmp_path, form):
    for number, (row, name) in enumerate(
        zip(rows(), ("AA/wiki_00", "AB/wiki_01.bz2"), strict=True)
    ):
        title = 'A "B" & C' if number else row["title"]
        if form == "lines":
            text = json.dumps({**row, "title": title, "revid": "9"}) + "\n"
        else:
            shown = row["text"].replace("sea", "R&amp;D sea")
            address = "https://x.example/a?curid=1"
            text = (
                f'<doc id="{row["id"]}" url="{address}" title="{title.replace("&", "&amp;")}">\n'
                f"{title}\n\n{shown}\n\nTowns.\n\n</doc>\n"
            )
        file = tmp_path / name
        file.parent.mkdir()
        file.write_bytes(bz2.compress(text.encode()) if name.endswith("bz2") else text.encode())
    passages, stats, _ = read(config(tmp_path))
    text = RIVER if form == "lines" else RIVER.replace("sea", "R&D sea")
    assert passages == [Passage("1-0", "Ember", text), Passage("2-0", 'A "B" & C', SEE)]
    assert (stats.read, stats.bad) == (2, 0)
    assert readers.has_articles(config(tmp_path))


def test_a_document_without_an_end_is_counted(tmp_path):
    path = tmp_path / "wiki_00"
    whole = f'<doc id="1" url="u" title="Ember">\nEmber\n\n{RIVER}\n</doc>\n'
    path.write_text(whole + '<doc id="2" url="u" title="Cut">\nCut\n' + whole.replace("1", "3", 1))
    passages, stats, log = read(config(path, max_bad_fraction=0.5))
    assert [p.id for p in passages] == ["1-0", "3-0"]
    assert stats.dropped == {"a document without an end": 1}
    assert log[0].startswith(f"{path}:6: ")


def test_small_inputs_that_once_failed(shared_cases):
    def read_case(name):
        return read(config(shared_cases / "corpus" / name))[0]

    def titles(name):
        return [p.title for p in read_case(name)]

    songs = ["River Alda", '"Nocturne" (Vale song)', 'The Bridge "Old Tom"', "Kellan Frost"]
    assert titles("wiki18.jsonl") == titles("psgs.tsv") == titles("pretty.json") == songs
    assert titles("shards") == songs * 2
    assert titles("contents_only.jsonl") == [""] * 4
    assert all(p.text.startswith("Passage number ") for p in read_case("saved2"))
    assert len(read_case("saved2")) == 5
    assert read_case("history.xml")[0].text.startswith("NEWEST The River Alda")
    assert {p.title for p in read_case("dump.xml.gz")} > {"Case convert", "Case m-dash-sp"}
    rivers = read_case("rivers.xml.bz2")
    assert len(rivers) == 12
    for passage in rivers:
        assert " km wide and it was bridged in 1" in passage.text
        assert ". As of 1" in passage.text
        assert ", the valley of the river had " in passage.text
        assert "It is called la " in passage.text
        assert not prose.refusal(passage.text, "en")


def test_formats_are_told_apart_and_bad_settings_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"without a file that a reader knows; it reads JSON"):
        read(config(tmp_path / "empty"))
    with pytest.raises(CorpusError, match="No such file"):
        read(config(tmp_path / "none.xml.bz2"))
    with pytest.raises(CorpusError, match=r"corpus.format is 'csv'; choices: auto, jsonl"):
        read(config(tmp_path, format="csv"))
    with pytest.raises(CorpusError, match=r"corpus.language is 'fr'; choices: en, zh"):
        read(config(tmp_path, language="fr"))
    found = [readers.detect(p) for p in ("x.jsonl.gz", "x.xml", "x.XML.BZ2", "x.parquet")]
    assert found == ["jsonl", "dump", "dump", "hf"]


def test_whole_articles_as_json_lines_and_paragraphs_with_a_wiki_id(tmp_path):
    path = tmp_path / "articles.jsonl"
    article = {"id": "9", "title": "Ember", "text": f"{RIVER}\n* a list\n\n{SEE}\nWhat [[is]] it?"}
    path.write_text(json.dumps(article) + "\n{\n")
    passages, stats, _ = read(config(path, articles=True, max_bad_fraction=0.5))
    assert [(p.id, p.text) for p in passages] == [("9-0", f"{RIVER} {SEE}")]
    assert stats.left_out.to_json() == {
        "in": 4,
        "out": 2,
        "dropped": {"list": 1, "markup": 1},
        "example": {"list": "'Ember': '* a list'", "markup": "'Ember': 'What [[is]] it?'"},
    }
    assert stats.dropped == {"not JSON": 1}
    path.write_text(
        json.dumps({"wiki_id": "7", "par": 3, "title": "T", "text": "a"})
        + "\n"
        + json.dumps({"wiki_id": "7", "title": "T", "text": "b"})
    )
    ids = [p.id for p in read(config(path))[0]]
    assert ids[0] == "7-3"
    assert len(ids[1]) == len("7-") + 12


@pytest.mark.slow
def test_a_prepared_tfds_dataset(tmp_path):
    passages, stats, _ = read(config(prepare_tfds(tmp_path)))
    assert sorted((p.id, p.text) for p in passages) == [("Ember-0", RIVER), ("Lowmere-0", SEE)]
    assert stats.left_out.dropped == {"heading": 2}
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "features.json").write_text("{}")
    with pytest.raises(CorpusError, match="is no prepared TFDS dataset"):
        read(config(tmp_path / "odd"))


# ---- prose


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        (RIVER, "en", ""),
        (f"{RIVER}\x00", "en", "control_characters"),
        (f"{RIVER} [mask]", "en", "reserved_text"),
        (f"{RIVER} </Search>", "en", "reserved_text"),
        (f"{RIVER} <br /> and so on", "en", "markup"),
        (f"{RIVER} {{{{cite", "en", "markup"),
        (RIVER.replace("the sea", f"the {prose.HOLE}"), "en", "hole"),
        ("It lost $ million in the year that had been the best for all of them.", "en", "hole"),
        ("* one\n* two\nand three", "en", "list"),
        ("He met " + ", ".join(["Ada", "Bo", "Cy"] * 6) + " and the others.", "en", "list"),
        ("a | b | c | d is the row of the table", "en", "table"),
        ("in 1990 12 13 14 1991 15 16 17 and 18 of the", "en", "table"),
        ("نهر إمبر هو نهر في شمال فالدريا ويبلغ طوله ٨٤ كيلومترا", "en", "other_script"),
        ("恩伯河是瓦尔德里亚北部的一条河流。", "en", "other_script"),
        ("Gold Silver Bronze Winner Team Ember Harrow Lowmere Valdria", "en", "not_prose"),
        ("x" * 1_000_000, "en", "too_long"),
        (" \n", "en", "empty"),
        ("1731", "zh", "other_script"),
        ("恩伯河是瓦尔德里亚北部的一条河流，全长84公里，在洛米尔附近流入大海。", "zh", ""),
        ("恩伯河，、是北部的一条河流。", "zh", "hole"),
        ("曾祖郭桂；祖郭琳；父郭善道，衢州府教授，母衛氏。", "zh", "not_prose"),
        ("The Ember is a river.", "zh", "other_script"),
    ],
)
def test_what_is_no_clean_paragraph(text, language, reason):
    assert prose.refusal(text, language) == reason


def test_empty_brackets_are_mended():
    assert prose.mend("Budapest ( ; ) lies. Sapir (; 1884–1939) and 恩伯（，）河") == (
        "Budapest lies. Sapir (1884–1939) and 恩伯河"
    )


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=80), max_size=6),
    st.integers(1, 40),
    st.sampled_from(prose.LANGUAGES),
)
def test_cutting_loses_nothing_but_spaces(paragraphs, words, language):
    passages = prose.cut(paragraphs, words, language)

    def squeezed(texts):
        return "".join("".join(texts).split())

    assert squeezed(passages) == squeezed(paragraphs)
    for passage in passages:
        one = len(prose.sentences(passage, language)) == 1
        assert one or prose.length(passage, language) <= 2 * words + 2


def test_passages_end_with_sentences_and_keep_their_length():
    text = (
        "Dr. J. Lind came to St. Ives in 1901. She (b. 1870) left. “Why?” asked Mr. Rehn. So it is."
    )
    assert prose.sentences(text, "en") == [
        "Dr. J. Lind came to St. Ives in 1901.",
        "She (b. 1870) left.",
        "“Why?” asked Mr. Rehn.",
        "So it is.",
    ]
    first, second = prose.sentences(RIVER, "en")
    lengths = [len(s.split()) for s in (first, second)]
    assert prose.cut([SEE, RIVER], sum(lengths), "en")[-1] == RIVER
    assert prose.cut([RIVER], sum(lengths) - 1, "en") == [first, second]
    chinese = "恩伯河是一条河流。它长84公里！“真的？”是的。"
    assert prose.sentences(chinese, "zh") == [
        "恩伯河是一条河流。",
        "它长84公里！",
        "“真的？”",
        "是的。",
    ]
    assert prose.length(chinese, "zh") == 9  # 16 characters and a number
    assert prose.cut([chinese], 5, "zh") == ["恩伯河是一条河流。", "它长84公里！“真的？”是的。"]


# ---- counts and duplicates


def test_a_step_fails_beyond_its_share_and_names_an_example():
    tally = Tally(seen=10, kept=7)
    tally.drop("list", "'Ember'", 2)
    tally.drop("hole", "'Harrow'")
    tally.check_share("paragraphs", 0.3, "clean.max_drop")
    message = (
        r"paragraphs: 3 of 10 left out, .*clean\.max_drop=0\.2 .*2 list \(as 'Ember'\), 1 hole"
    )
    with pytest.raises(ShareError, match=message):
        tally.check_share("paragraphs", 0.2, "clean.max_drop")
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


def jaccard(a, b):
    a, b = set(duplicates.shingles(a, "en")), set(duplicates.shingles(b, "en"))
    return len(a & b) / len(a | b)


def test_duplicates_are_found_by_exact_similarity():
    rng = random.Random(0)
    base = [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=100)) for _ in range(200)]
    texts, expected = list(base), [duplicates.KEPT] * len(base)
    for i, text in enumerate(base):
        words = text.split()
        if i % 4 == 0:
            texts.append(text.upper() + "!")
            expected.append(duplicates.EXACT)
        elif i % 4 == 1:
            words[50] = "one"
            texts.append(" ".join(words))
            expected.append(duplicates.NEAR)
        elif i % 4 == 2:
            words[10::12] = ["other"] * len(words[10::12])
            texts.append(" ".join(words))
            expected.append(duplicates.KEPT)
    assert jaccard(texts[1], texts[201]) > 0.88
    assert jaccard(texts[2], texts[202]) < 0.5
    blocks = [duplicates.sketch(texts[i : i + 64], "en") for i in range(0, len(texts), 64)]
    sketches = duplicates.Sketches(*map(np.concatenate, zip(*blocks, strict=True)))
    assert duplicates.find(sketches, 0.8).tolist() == expected


def test_signatures_estimate_similarity():
    rng = random.Random(1)
    words = rng.choices("abcdefghijklmnopqrstuvwxyz", k=2000)
    texts = [" ".join(words[i : i + 1000]) for i in (0, 50, 200, 500)]
    signatures = duplicates.sketch(texts, "en").signatures
    for i, j in itertools.combinations(range(4), 2):
        estimate = (signatures[i] == signatures[j]).mean()
        assert abs(estimate - jaccard(texts[i], texts[j])) < 0.15


def test_near_duplicates_in_chinese_and_short_texts():
    text = (
        "恩伯河是瓦尔德里亚北部的一条河流，全长84公里，在洛米尔附近流入大海，"
        "沿岸有三座城市和许多村庄，最大的是旧哈罗。"
    )
    texts = [text, text.replace("，", "、"), text + "它很美。", "一", "二", "", ""]
    K, E, N = duplicates.KEPT, duplicates.EXACT, duplicates.NEAR
    assert duplicates.find(duplicates.sketch(texts, "zh"), 0.8).tolist() == [K, E, N, K, K, K, E]
    assert duplicates.find(duplicates.sketch([], "zh"), 0.8).tolist() == []


def test_ids_are_told_apart_as_a_set_does():
    ids, plain = Ids(), set()
    rng = random.Random(0)
    for _ in range(20_000):
        name = str(rng.randrange(15_000))
        assert ids.add(name) == (name not in plain)
        plain.add(name)


def test_real_paragraphs_in_both_languages(shared_data):
    kept = {}
    for name, language in (("wiki_en", "en"), ("wiki_zh", "zh")):
        cfg = config(
            shared_data / name / "paragraphs.jsonl.gz", language=language, limit=2000,
            max_bad_fraction=0.01,
        )  # fmt: skip
        texts = [p.text for p in read(cfg)[0]]
        kept[name] = sum(not prose.refusal(prose.mend(t), language) for t in texts) / len(texts)
    assert kept["wiki_en"] > 0.9
    assert kept["wiki_zh"] > 0.8


def test_gzipped_wiki18_rows(tmp_path):
    path = tmp_path / "wiki-18.jsonl.gz"
    row = {"id": "0", "contents": f'"Ember"\n{RIVER}'}
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert [(p.id, p.title, p.text) for p in read(config(path))[0]] == [("0", "Ember", RIVER)]
