"""Reading and writing passage files: what is kept, what is dropped and named, what stops."""

import bz2
import gzip
import json
import logging
import lzma
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksearch_jax.core.types import Passage
from masksearch_jax.corpus import json_values
from masksearch_jax.corpus.packed import PackingError
from masksearch_jax.corpus.passages import CorpusError, CorpusStats, read_passages, write_passages

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def line(name="1", title="T", text="some text", **more):
    return json.dumps({"id": name, "title": title, "text": text, **more}).encode() + b"\n"


def write(folder, *lines, name="corpus.jsonl"):
    path = folder / name
    path.write_bytes(b"".join(lines))
    return path


def read(path, **options):
    stats, log = CorpusStats(), []
    passages = list(read_passages(path, log=log.append, stats=stats, **options))
    return passages, stats, log


@given(
    records=st.lists(
        st.builds(Passage, TEXT.filter(bool), TEXT, TEXT.filter(str.strip)),
        min_size=1,
        unique_by=lambda p: p.id,
    ),
    zipped=st.booleans(),
)
def test_what_is_written_is_read_back(tmp_path_factory, records, zipped):
    path = tmp_path_factory.mktemp("corpus") / ("c.jsonl.gz" if zipped else "c.jsonl")
    assert write_passages(path, records) == len(records)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == zipped
    assert read(path) == (records, CorpusStats(len(records), len(records), {}, 1.0), [])


def test_other_keys_whole_number_ids_blank_lines_and_a_byte_order_mark_are_taken(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf", line(7, src=["x"]), b"\n  \n", line("8", title=""))
    passages, stats, log = read(path)
    assert passages == [Passage("7", "T", "some text"), Passage("8", "", "some text")]
    assert (stats.read, stats.kept, stats.dropped, log) == (2, 2, {}, [])


def test_wiki18_rows_split_into_title_and_text(tmp_path):
    row = {"id": "3", "contents": '"Ada "Countess" Lovelace"\nFirst line.\nSecond.'}
    passages, _, _ = read(write(tmp_path, json.dumps(row).encode()))
    assert passages == [Passage("3", 'Ada "Countess" Lovelace', "First line.\nSecond.")]


BAD_LINES = {
    "not JSON": b'{"id": "x", "title"\n',
    "not UTF-8": b'{"id": "x", "title": "\xff", "text": "t"}\n',
    "not a JSON object": b'["x", "T", "t"]\n',
    "no text": b'{"id": "x", "title": "T"}\n',
    "no title": b'{"id": "x", "text": "t"}\n',
    "no id": b'{"title": "T", "text": "t"}\n',
    "id is not a string": b'{"id": true, "title": "T", "text": "t"}\n',
    "title is not a string": b'{"id": "x", "title": null, "text": "t"}\n',
    "text is not a string": b'{"id": "x", "title": "T", "text": ["t"]}\n',
    "empty text": b'{"id": "x", "title": "T", "text": " \\n"}\n',
    "empty id": b'{"id": "", "title": "T", "text": "t"}\n',
    "duplicate id": b'{"id": "1", "title": "T", "text": "t"}\n',
    "not valid Unicode": b'{"id": "x", "title": "T", "text": "\\ud800"}\n',
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_line_is_dropped_counted_and_named(tmp_path, reason):
    path = write(tmp_path, line("1"), BAD_LINES[reason], line("2"))
    passages, stats, log = read(path, max_bad_fraction=0.5)
    assert [p.id for p in passages] == ["1", "2"]
    assert (stats.read, stats.kept, stats.dropped) == (3, 2, {reason: 1})
    assert len(log) == 1
    assert log[0].startswith(f"{path}:2: {reason}")


def test_deeply_nested_json_is_a_bad_line(tmp_path):
    path = write(tmp_path, line("1"), b"[" * 100_000 + b"\n", line("2"))
    _, stats, _ = read(path, max_bad_fraction=0.5)
    assert stats.dropped == {"not JSON": 1}


def test_bad_lines_go_to_the_log_of_the_module_by_default(tmp_path, caplog):
    path = write(tmp_path, line("1"), b"?\n")
    with caplog.at_level(logging.WARNING):
        list(read_passages(path, max_bad_fraction=0.5))
    assert [r.getMessage().startswith(f"{path}:2: not JSON") for r in caplog.records] == [True]


@pytest.mark.parametrize(("bad", "stops"), [(1, False), (2, True)])
def test_more_than_the_fraction_stops_at_the_end_naming_file_and_line(tmp_path, bad, stops):
    lines = [line(str(i)) for i in range(100 - bad)]
    path = write(tmp_path, *lines[:40], *[b"?\n"] * bad, *lines[40:])
    if not stops:
        assert read(path)[1].bad == 1
        return
    with pytest.raises(CorpusError) as error:
        read(path)
    assert f"{path}: 2 of the first 100 lines are bad" in str(error.value)
    assert f"{path}:41: not JSON" in str(error.value)
    assert "max_bad_fraction 0.01" in str(error.value)


def test_many_bad_lines_stop_early(tmp_path):
    path = write(tmp_path, line("1"), *[b"?\n"] * 500)
    stats = CorpusStats()
    with pytest.raises(CorpusError, match=r"101 of the first 102 lines"):
        list(read_passages(path, log=lambda message: None, stats=stats))
    assert stats.read == 102


def test_limit_stops_after_so_many_kept_passages(tmp_path):
    path = write(tmp_path, line("1"), b"?\n", line("2"), line("3"))
    passages, stats, _ = read(path, limit=2, max_bad_fraction=0.5)
    assert [p.id for p in passages] == ["1", "2"]
    assert (stats.read, stats.done) == (3, 1.0)


def test_a_missing_file_and_an_empty_one_are_refused_before_the_first_passage(tmp_path):
    with pytest.raises(CorpusError, match=r"cannot read the corpus .*none\.jsonl: No such file"):
        read_passages(tmp_path / "none.jsonl")
    with pytest.raises(CorpusError, match="Is a directory"):
        read_passages(tmp_path)
    with pytest.raises(CorpusError, match=r"empty\.jsonl is empty"):
        read_passages(write(tmp_path, name="empty.jsonl"))


@pytest.mark.parametrize("content", [b"\n \n", gzip.compress(b"")], ids=["blank", "gzip"])
def test_a_file_without_passages_is_refused(tmp_path, content):
    with pytest.raises(CorpusError, match="has no passages"):
        read(write(tmp_path, content))


def test_gzip_is_told_by_content_and_its_damage_is_named(tmp_path):
    data = gzip.compress(b"".join(line(str(i), text=f"text {i}") for i in range(5000)))
    whole = write(tmp_path, data, name="whole.jsonl")
    assert read(whole)[1].kept == 5000
    for damaged in (data[: len(data) // 2], data[:-8] + b"\0" * 8):
        with pytest.raises(CorpusError, match="unreadable after line"):
            read(write(tmp_path, damaged, name="damaged.jsonl.gz"))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_lines_are_told_by_content(tmp_path, pack):
    path = write(tmp_path, pack(line("1") + line("2")), name="corpus.jsonl")
    assert [p.id for p in read(path)[0]] == ["1", "2"]
    whole = pack(b"".join(line(str(i), text=f"text {i * i}") for i in range(5000)))
    with pytest.raises(CorpusError, match="unreadable after"):
        read(write(tmp_path, whole[: len(whole) // 2]))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x28\xb5\x2f\xfd", "zst"),
        (b"Rar!\x1a\x07\x01", "rar"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ],
)
def test_a_packing_that_is_not_read_is_named_with_the_choices(tmp_path, head, name):
    path = write(tmp_path, head, b"rest of it", name=f"corpus.jsonl.{name}")
    with pytest.raises(PackingError, match=rf"is packed as {name}, .*choices: gzip, bzip2, xz"):
        read(path)


def test_brotli_is_told_by_its_name(tmp_path):
    path = write(tmp_path, b"\x1b\x0f rest of it", name="corpus.jsonl.br")
    with pytest.raises(PackingError, match=r"is packed as brotli, .*choices: gzip, bzip2, xz"):
        read(path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_is_no_corpus(tmp_path, mode):
    """Names and padding would be rows that are not JSON, and take good ones with them."""
    rows = b"".join(line(str(i), text=f"text {i}") for i in range(300))
    inside = write(tmp_path, rows)
    with tarfile.open(tmp_path / "wiki.tar.gz", mode) as archive:
        archive.add(inside, "part-0.jsonl")
    with pytest.raises(PackingError, match=r"is a tar archive, .*unpack it and name the folder"):
        read(tmp_path / "wiki.tar.gz")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [line().decode(), f"[{line().decode()}]"])
def test_utf_16_is_named(tmp_path, encoding, text):
    path = write(tmp_path, text.encode(encoding))
    with pytest.raises(CorpusError, match=r"corpus.jsonl is UTF-16; a corpus must be UTF-8, as"):
        read(path)


def test_contents_without_a_title_are_the_text(tmp_path):
    rows = [
        {"id": "1", "contents": "The Ember is a river."},
        {"id": "2", "contents": '""Ash" (Lind song)"\n"Ash" is a song.'},
        {"id": "3", "title": "Ember", "contents": "Ember\nA river."},
        {"id": "4", "title": "Ember", "contents": "It rises\nin a wood."},
    ]
    passages = read(write(tmp_path, *(json.dumps(r).encode() + b"\n" for r in rows)))[0]
    assert passages == [
        Passage("1", "", "The Ember is a river."),
        Passage("2", '"Ash" (Lind song)', '"Ash" is a song.'),
        Passage("3", "Ember", "A river."),
        Passage("4", "Ember", "It rises\nin a wood."),
    ]


# ---- JSON that is no JSON lines

ROWS = [{"id": str(i), "title": f"T {i}", "text": f"“text” {i}, [{{"} for i in range(50)]
EXPECTED = [Passage(*row.values()) for row in ROWS]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("chunk", [1, 37, 1 << 20])
def test_one_json_array_is_read_in_chunks(tmp_path, monkeypatch, indent, pack, chunk):
    monkeypatch.setattr(json_values, "_CHUNK", chunk)
    data = b"\xef\xbb\xbf" + json.dumps(ROWS, indent=indent, ensure_ascii=False).encode()
    passages, stats, log = read(write(tmp_path, pack(data), name="pretty.json"))
    assert (passages, stats.read, log) == (EXPECTED, 50, [])


def test_objects_spread_over_lines_are_read(tmp_path):
    data = "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()
    assert read(write(tmp_path, data, name="pretty.json"))[0] == EXPECTED


@pytest.mark.parametrize("between", ["\n", "", " , "])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_arrays_and_objects_one_after_another_are_read(tmp_path, monkeypatch, between, chunk):
    monkeypatch.setattr(json_values, "_CHUNK", chunk)
    parts = (ROWS[:20], ROWS[20:40], [], *ROWS[40:])
    data = between.join(json.dumps(part) for part in parts).encode()
    assert read(write(tmp_path, data, name="two.json"))[0] == EXPECTED


@pytest.mark.parametrize("after", [" GARBAGE", "]", "\n{", "\n[{}"])
def test_what_is_no_json_after_an_array_is_named(tmp_path, after):
    data = (json.dumps(ROWS) + after).encode()
    with pytest.raises(CorpusError, match=r"corpus\.jsonl: after 5[01] values: "):
        read(write(tmp_path, data), max_bad_fraction=0.1)


def test_bad_items_of_an_array_are_counted_and_a_break_is_named(tmp_path):
    data = json.dumps([*ROWS, 5, {"id": "x", "title": "T"}], indent=1, ensure_ascii=False).encode()
    passages, stats, log = read(write(tmp_path, data), max_bad_fraction=0.1)
    assert (passages, stats.dropped) == (EXPECTED, {"not a JSON object": 1, "no text": 1})
    assert "corpus.jsonl: item 51: not a JSON object: int" in log[0]
    for broken, reason in ((data[:-2], "breaks off"), (data.replace(b'"T 9"', b"T"), "not JSON")):
        with pytest.raises(CorpusError, match=rf"corpus\.jsonl: after \d+ values: .*{reason}"):
            read(write(tmp_path, broken), max_bad_fraction=0.1)
    with pytest.raises(CorpusError, match=r"corpus\.jsonl is not UTF-8"):
        read(write(tmp_path, data.replace("“".encode(), b"\xff")), max_bad_fraction=0.1)
    with pytest.raises(CorpusError, match="has no passages"):
        read(write(tmp_path, b"[\n]"))


def test_a_file_of_no_known_form_is_refused_with_the_forms(tmp_path):
    for data in (b"The Ember is a river.\nIt is long.\n", b"\x80\x04x", b"a,b\n1,2\n"):
        with pytest.raises(CorpusError, match=r"begins with .*JSON lines.*tab-separated"):
            read(write(tmp_path, data))


def test_share_done_grows_to_one(tmp_path):
    path = write(tmp_path, *[line(str(i)) for i in range(20_000)])
    stats = CorpusStats()
    shares = [stats.done for _ in read_passages(path, stats=stats)]
    assert shares == sorted(shares)
    assert len(set(shares)) > 10
    assert stats.done == 1.0


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "c.jsonl"
    write_passages(path, [Passage("old", "", "x")])

    def broken():
        yield Passage("new", "", "x")
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        write_passages(path, broken())
    assert [p.id for p in read_passages(path)] == ["old"]
    assert [f.name for f in tmp_path.iterdir()] == ["c.jsonl"]


def test_real_passages_are_read_whole(shared_data):
    passages, stats, _ = read(shared_data / "multihop" / "passages.jsonl.gz", limit=2000)
    assert (stats.kept, stats.bad) == (2000, 0)
    assert passages[0].id == "0"
    assert passages[0].title == "Jeff Porcaro"
