"""Stamps: work is done once, and again for other inputs, lost or damaged files."""

import hashlib
import json

import pytest

from masksearch_jax.core import stamp

RECORD = {"in": 3, "dropped": {"too_long": 1}}
FILES = ("a.jsonl", "sub/b.jsonl", "never.jsonl")


@pytest.fixture
def done(tmp_path):
    """A finished piece of work."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text("aaa")
    (tmp_path / "sub" / "b.jsonl").write_text("bb")
    stamp.write(tmp_path / "counts.json", RECORD, "x1", FILES)
    return tmp_path / "counts.json"


def test_work_that_is_done_gives_its_record(done):
    assert stamp.read(done, "x1", FILES) == RECORD
    assert json.loads(done.read_text()) == RECORD | {
        "made_from": "x1",
        "files": {"a.jsonl": 3, "sub/b.jsonl": 2},
    }
    stamp.write(done, {})
    assert stamp.read(done) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "counts.json").unlink(),
        lambda folder: (folder / "counts.json").write_text('{"made_from": "x1", "fi'),
        lambda folder: (folder / "counts.json").write_text('["x1"]'),
        lambda folder: (folder / "a.jsonl").unlink(),
        lambda folder: (folder / "a.jsonl").write_text("aa"),
        lambda folder: (folder / "never.jsonl").write_text(""),
        lambda folder: stamp.write(folder / "counts.json", RECORD, "x2", FILES),
        lambda folder: stamp.write(folder / "counts.json", RECORD, "", FILES),
        lambda folder: (folder / "counts.json").write_text(json.dumps(RECORD)),
    ],
)
def test_anything_else_is_work_to_do(done, change):
    change(done.parent)
    assert stamp.read(done, "x1", FILES) is None


def test_a_hash_tells_inputs_apart_but_not_the_order_of_their_keys():
    assert stamp.hash_of({"a": 1, "b": [2]}) == stamp.hash_of({"b": [2], "a": 1})
    others = [{"a": 1, "b": [3]}, {"a": 1}, [1, 2], ["1", 2], [[1], 2], [2, 1], 1, "1", None]
    hashes = {stamp.hash_of(value) for value in others}
    assert len(hashes) == len(others)
    assert all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)


def test_content_is_of_bytes_and_names_within_and_not_of_the_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "a").write_bytes(b"x" * (3 << 20))
        (tmp_path / name / "b").write_text("b")
    path = tmp_path / "one" / "sub" / "a"
    assert stamp.content(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert stamp.content(path) == stamp.content(tmp_path / "two" / "sub" / "a")
    first = stamp.content(tmp_path / "one")
    assert first == stamp.content(tmp_path / "two")
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert stamp.content(tmp_path / "two") != first
    path.write_bytes(b"y" * (3 << 20))
    assert stamp.content(tmp_path / "one") != first
    assert stamp.content("") == stamp.content(tmp_path / "none") == ""


def test_others_are_stamps_of_other_inputs_and_no_missing_ones(tmp_path):
    mine, other, none = (tmp_path / name for name in ("mine", "other", "none"))
    stamp.write(mine, {}, "a")
    stamp.write(other, {}, "b")
    assert not stamp.has_others([mine, none], "a")
    assert stamp.has_others([mine, other], "a")
    assert stamp.has_others([mine], "b")
