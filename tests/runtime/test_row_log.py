"""Rows stay: what was added is there after a kill, what was cut off is not."""

import json

import pytest

from masksearch_jax.runtime import storage
from masksearch_jax.runtime.row_log import RowLog


def opened(path):
    return RowLog(storage.path(path), lambda row: row["name"])


def row(n):
    return {"name": n, "text": "é\n" * n}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def test_rows_are_in_the_file_at_once_and_found_again_by_name(path):
    with opened(path) as log:
        for n in range(3):
            log.add(row(n))
            assert len(path.read_text().splitlines()) == n + 1
        with opened(path) as again:  # as another process would after a kill
            assert (len(again), 2 in again, 3 in again) == (3, True, False)
            again.add(row(3))
    with opened(path) as log:
        assert list(map(json.loads, log.lines([3, 0, 2]))) == [row(3), row(0), row(2)]
        log.delete()
        assert not path.exists()
        assert len(log) == 0


@pytest.mark.parametrize("cut", range(1, len(json.dumps(row(2))) + 1))
def test_a_row_that_a_kill_cut_off_is_dropped(path, cut):
    with opened(path) as log:
        for n in range(3):
            log.add(row(n))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with opened(path) as log:
        assert len(log) == 2
        log.add(row(2))
    assert path.read_bytes() == whole


def test_what_follows_a_broken_row_is_dropped_too(path):
    """A machine that lost power may leave zeros in the middle."""
    lines = [json.dumps(row(n)) + "\n" for n in range(3)]
    path.write_text(lines[0] + "\0" * len(lines[1]) + "\n" + lines[2])
    with opened(path) as log:
        assert len(log) == 1
    assert path.read_text() == lines[0]
