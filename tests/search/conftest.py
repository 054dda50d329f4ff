"""Fixtures of the tests of search."""

import pytest

from masksearch_jax.search.bm25 import BM25, build
from tests.search.fruit import FRUIT


@pytest.fixture(scope="module")
def fruit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fruit") / "index"
    assert build(FRUIT, folder) == 6
    return BM25.open(folder)
