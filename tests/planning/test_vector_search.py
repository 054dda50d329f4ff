"""What vectors cost on devices, by hand."""

import pytest

from masksearch_jax.planning.chips import CHIPS
from masksearch_jax.planning.page import vectors_of
from masksearch_jax.planning.vector_search import cost


def test_vectors_of_a_wikipedia_on_four_chips():
    found = cost(21_000_000, 384, CHIPS["v5e"], 4)
    part = 5_250_000
    assert found["disk"] == 21e6 * 384 * 2
    assert found["held"] == part * 384 * 2
    assert found["scores"] == part * 64 * 4
    # Bound by HBM: vectors are read once, scores are written and read.
    assert found["query_seconds"] == pytest.approx((part * 384 * 2 + part * 8) / 819e9)
    assert found["batch_seconds"] == pytest.approx((part * 384 * 2 + 64 * part * 8) / 819e9)
    # Bound by products: six of bfloat16 for one of float32.
    longer = cost(21_000_000, 768, CHIPS["v5e"], 4)
    assert longer["batch_seconds"] == pytest.approx(64 * 2 * part * 768 * 6 / 197e12)


def test_longer_vectors_cost_twice_and_more_devices_share_them():
    short, long = (cost(1_000_003, dim, CHIPS["v5p"], 8) for dim in (384, 768))
    assert long["disk"] == 2 * short["disk"] == 2 * 1_000_003 * 768
    assert short["held"] == 125_001 * 768  # the last device's part is padded
    assert long["scores"] == short["scores"]


def test_a_chip_of_two_devices_gives_each_a_half():
    whole, half = CHIPS["v6e"], CHIPS["tpu7x"]
    one = cost(1000, 384, half, 1)["query_seconds"]
    assert one == pytest.approx(2 * (1000 * 768 + 8000) / half.bandwidth)
    assert cost(1000, 384, whole, 1)["query_seconds"] == pytest.approx(
        (1000 * 768 + 8000) / whole.bandwidth
    )


def test_a_page_says_it_in_two_lines_each():
    rows = [cost(21_000_000, dim, CHIPS["v5e"], 4) for dim in (384, 768)]
    lines = vectors_of(rows).split("\n")
    assert lines[:5] == [
        "dense search of 21,000,000 passages on a host's 4 devices, each with a part",
        "(computed; times are at least these):",
        "  384 numbers: 16.1 GB on disk, 3.76 GiB on a device and 1.25 GiB of scores",
        "    a query takes 5.0 ms, 64 at once 8.2 ms",
        "  768 numbers: 32.3 GB on disk, 7.51 GiB on a device and 1.25 GiB of scores",
    ]
    assert max(map(len, lines)) <= 80
