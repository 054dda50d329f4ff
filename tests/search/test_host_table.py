"""The table of search for many hosts, from figures that lie on a line; rows that are kept."""

import pytest

from benchmarks.kept_rows import KeptRows
from benchmarks.search_hosts import SERVED, at, render, table, take


def in_process(passages, engine="ours"):
    """A millisecond and one for each thousand passages; a KB of each; 100 built a second."""
    milliseconds = 1.0 + passages / 1000
    return {
        "engine": engine,
        "passages": passages,
        "disk_mb": passages / 1000,
        "resident_mb": 5.0 + passages / 2000,
        "build_passages_per_second": 100.0,
        "questions, 1": {"p99_ms": 2 * milliseconds, "per_second": 1000 / milliseconds},
    }


def served(passages):
    milliseconds = 2.0 + passages / 1000
    row = {"p99_ms": 3 * milliseconds, "per_second": 1000 / milliseconds}
    return {"engine": SERVED, "passages": passages, **row}


ROWS = [make(n) for n in (1000, 2000, 4000) for make in (in_process, served)]


def test_figures_are_those_of_the_line():
    copies, shared = table(ROWS, 99_000, hosts=10, demand=5.0, copying=3.0)
    assert (copies["copies"], shared["copies"]) == (10, 6)  # 50 a second, 9.9 of each server
    assert copies["disk_each"] == shared["disk_each"] == pytest.approx(0.099)
    assert (copies["disk_all"], shared["disk_all"]) == pytest.approx((0.99, 0.594))
    assert copies["memory_each"] == pytest.approx((5 + 49.5) / 1000)
    assert copies["build_hours"] == pytest.approx(990 / 3600)
    assert copies["fetch_minutes"] == pytest.approx(99 / 3 / 60)
    assert (copies["p99_ms"], shared["p99_ms"]) == pytest.approx((200.0, 303.0))
    assert copies["per_second"] == pytest.approx(10 * 1000 / 100)
    assert shared["per_second"] == pytest.approx(6 * 1000 / 101)
    assert render([copies, shared]).splitlines()[2].split("|")[2:4] == [
        " a copy on each host ",
        " 10 ",
    ]


def test_one_size_is_in_proportion_and_no_figure_falls():
    assert at([{"passages": 100, "p99": 2.0}], 300, "p99") == 6.0
    falling = [{"passages": 100, "p99": 2.0}, {"passages": 200, "p99": 1.0}]
    assert at(falling, 300, "p99") == 2.0


def test_a_row_is_measured_once_and_other_settings_are_refused(tmp_path):
    path = str(tmp_path / "rows.json")
    KeptRows(path, {"queries": 5}).add(ROWS[0])
    again = KeptRows(path, {"queries": 5})
    assert again.find(engine="ours", passages=1000) == ROWS[0]
    assert again.find(engine="ours", passages=2000) is None
    with pytest.raises(SystemExit, match="name another"):
        KeptRows(path, {"queries": 6})


def test_what_the_speed_of_engines_has_told_is_taken(tmp_path):
    path = str(tmp_path / "speed.json")
    speed = KeptRows(path, {"passages": 9, "queries": 5})
    rows = [in_process(1000), in_process(1000, "FTS5"), in_process(2000), in_process(4000)]
    for row in rows:
        speed.add(row)
    kept = KeptRows(None, {"queries": 5})
    kept.add(own := in_process(2000) | {"disk_mb": 7.0})
    take(path, [1000, 2000], 5, kept)
    assert kept.rows == [own, rows[0]]
    with pytest.raises(SystemExit, match="5 queries: give --queries=5"):
        take(path, [1000], 6, kept)
