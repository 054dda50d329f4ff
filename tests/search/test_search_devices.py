"""Benchmarks of rollouts: with dense search on host and devices, with searches that are shared."""

import jax
import numpy as np
import pytest

from benchmarks import search_rollouts
from benchmarks.kept_rows import KeptRows
from benchmarks.search_devices import SMOKE, WAYS, measure
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.parallel.sharding import make_mesh
from tests.models.bert_folders import write_encoder


@pytest.mark.slow
def test_both_ways_are_measured_and_a_stopped_run_goes_on(tmp_path):
    encoder, path = tmp_path / "encoder", str(tmp_path / "rows.json")
    encoder.mkdir()
    write_encoder(encoder)
    figures = {"tokens_per_second": 4.0, "search_ms": 1.0, "search_wait_share": 0.0}
    first = {"repeat": 0, "host": figures, "device": figures, "ratio": 1.0}
    KeptRows(path, {}).add(first)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    measure(SMOKE, str(encoder), 2, KeptRows(path, {}), mesh)
    before, new = KeptRows(path, {}).rows
    assert (before, new["repeat"]) == (first, 1)
    assert all(new[name]["tokens_per_second"] > 0 for name in WAYS)
    assert all(0 <= new[name]["search_wait_share"] < 1 for name in WAYS)
    values = measure(SMOKE, "nothing is opened", 2, KeptRows(path, {}), mesh)
    speed = [values[f"{name}.tokens_per_second"] for name in WAYS]
    assert values["ratio_device_to_host"] == list(np.divide(speed[1], speed[0]))


@pytest.mark.slow
def test_shared_searches_are_fewer_calls(tmp_path):
    path, mesh = str(tmp_path / "rows.json"), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    values = search_rollouts.measure(SMOKE, 3, 1, KeptRows(path, {}), mesh, median=0.01)
    searches = 2 * SMOKE.trajectories
    assert values["none.calls"] == [searches]
    assert 1 <= values["kept.calls"][0] <= 3 < searches
    assert values["kept.calls"][0] <= values["shared.calls"][0] <= searches
    again = search_rollouts.measure(SMOKE, 3, 1, KeptRows(path, {}), mesh)
    assert again == values
