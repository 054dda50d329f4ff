"""A search backend of your own, served to any run: passages whose titles share most words.

    python -m examples.my_search passages.jsonl
    python -m masksearch_jax.train_dapo --config=configs/ramp_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=Qwen2.5-1.5B-Instruct \\
        --config.search.kind=http --config.search.url=http://127.0.0.1:8001

A search tool has one method, which several threads may call at once; it raises SearchError where it
cannot search. The server queues requests and answers in the protocol of `serve_search`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.types import Passage
from masksearch_jax.runtime import cli
from masksearch_jax.search.server import SearchServer


class TitleSearch:
    def __init__(self, passages: Sequence[Passage]):
        self.passages = passages

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return [
            sorted(self.passages, key=lambda p: -_shared(query, p))[:top_k] for query in queries
        ]


def _shared(query: str, passage: Passage) -> int:
    return len(set(query.lower().split()) & set(passage.title.lower().split()))


def main() -> None:
    if len(sys.argv) != 2:
        raise ConfigError("usage: python -m examples.my_search PASSAGES.jsonl")
    tool = TitleSearch(read_jsonl(sys.argv[1], Passage))
    server = SearchServer(tool, "127.0.0.1", 8001)
    print("serving at http://127.0.0.1:8001", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    cli.call(main)  # an error is one line
