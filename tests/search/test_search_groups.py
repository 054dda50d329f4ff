"""The benchmark of groups' searches: what it counts, and what it reads of a run."""

import json

from benchmarks.search_groups import made_up, measure, recorded


def test_equal_queries_are_searched_once_where_results_are_kept():
    groups = made_up(groups=3, size=4, searches=3, distinct=4)
    asked = [queries for group in groups for searches in group for queries in searches]
    rows = {r["arrangement"]: r["calls"] for r in measure(groups, 4, decode=0.0, latency=0.002)}
    assert rows["none"] == len(asked)
    assert rows["in memory too"] == rows["on disk too"] == len(set(asked)) < len(asked)
    assert rows["again"] == 0
    assert len(set(asked)) <= rows["shared while under way"] <= len(asked)


def test_groups_are_the_trajectories_of_an_example(tmp_path):
    def row(example, *turns):
        return json.dumps({"example_id": example, "turns": [*turns]}) + "\n"

    search, other = {"queries": ["a", "b"]}, {"queries": ["1 + 1"], "tool": "calculate"}
    lines = [row("x", search, other), row("y", search, search), row("x", search), row("z", other)]
    (tmp_path / "1.jsonl").write_text("".join(lines))
    one = [("a", "b")]
    assert recorded(str(tmp_path)) == [[one, one], [one * 2]]
