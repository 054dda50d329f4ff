"""`serve_search`: what it says that it serves."""

import signal

import pytest

from masksearch_jax import serve_search
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.search_config import SearchConfig
from masksearch_jax.search.bm25 import BM25, build
from masksearch_jax.search.server import SearchServer
from masksearch_jax.testing.services import SearchEndpoint
from tests.search.fruit import FRUIT


@pytest.fixture
def said(monkeypatch, capsys):
    """A function: what the main says for a config that is served for no time."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    kept[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(SearchServer, "serve_forever", lambda server: None)

    def served(**keys):
        serve_search.run(serve_search.ServeSearchRun(SearchConfig(**keys), port=0))
        what, _, address = capsys.readouterr().out.removeprefix("serving ").partition(" at ")
        assert address.startswith("http://127.0.0.1:")
        return what

    yield served
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_it_says_what_it_serves(said, tmp_path):
    index, cache = str(tmp_path / "index"), str(tmp_path / "cache.sqlite")
    build(FRUIT, index)
    assert said(index=index) == index
    assert said(kind="none", index=index) == "no passages"
    assert said(kind="random", index=index) == f"random passages of {index}"
    assert said(index=index, cache=cache) == index
    with pytest.raises(ConfigError, match=r"config\.search\.replay: a service would fail on all"):
        said(index=index, cache=cache, replay=True)
    with SearchEndpoint(BM25.open(index)) as behind:
        assert said(kind="http", url=behind.url, index=index) == behind.url


def test_a_signal_that_nohup_ignores_stays_ignored(said):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    said(kind="none")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert callable(signal.getsignal(signal.SIGTERM))
