"""What processes keep is taken up by whoever goes on."""

import json

from masksearch_jax.parallel.shared_log import SharedLog
from masksearch_jax.runtime import storage


def test_what_each_process_left_is_taken_up_once(tmp_path):
    rows = [json.dumps({"name": n}) + "\n" for n in "abcd"]
    (tmp_path / "trajectories.partial.jsonl").write_text(rows[0] + rows[1])
    (tmp_path / "trajectories.partial.1.jsonl").write_text(rows[1] + rows[2])  # half taken up
    (tmp_path / "trajectories.partial.7.jsonl").write_text(rows[3] + rows[0][:-3])  # cut off
    with SharedLog(storage.path(tmp_path), lambda row: row["name"]) as log:
        assert [path.name for path in tmp_path.iterdir()] == ["trajectories.partial.jsonl"]
        assert log.are_kept(["d", "c", "x"]) == [True, True, False]
        assert list(log.rows.lines("abcd")) == rows
        log.collect()
        log.delete()
    assert not list(tmp_path.iterdir())
