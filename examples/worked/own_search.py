"""A search backend of one's own behind the service that every run can ask.

    python -m examples.worked.own_search

`examples/my_search.py` finds passages by the words of their titles. A service makes it a tool of
any run, by `search.kind=http`. What a turn of an agent is shown, and what the trajectory records,
is printed here.
"""

from __future__ import annotations

import threading

from examples.my_search import TitleSearch
from masksearch_jax.core import markup, retrieval
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.server import SearchServer

PASSAGES = [
    Passage("thames", "River Thames", "The barrier near Woolwich was opened in May 1984."),
    Passage("loire", "Loire Valley", "The painter Leonardo da Vinci died at Amboise in 1519."),
    Passage("amboise", "Amboise", "Amboise is a town on the Loire."),
]
TURN = "<think>Two things are asked.</think><search>river thames\nloire valley</search>"


def main() -> None:
    server = SearchServer(TitleSearch(PASSAGES), "127.0.0.1", 0)  # 0: any free port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        cfg = SearchConfig(kind="http", url=server.address, top_k=2, max_passages=3)
        queries = markup.parse_queries(TURN, cfg.max_queries)
        shown, found = retrieval.find_recorded(open_tool(cfg), queries, cfg, source="")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    for query, record in zip(queries, found, strict=True):
        print(f"{query!r}: {', '.join(record.passage_ids)}; attempts {record.attempts}")
    text, _ = markup.render_information(shown)
    print(f"\nwhat the agent reads:\n{text}")


if __name__ == "__main__":
    main()
