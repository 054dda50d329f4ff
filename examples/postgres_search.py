"""A search backend that runs elsewhere: full text in PostgreSQL, served to any run.

    python -m examples.postgres_search "host=DATABASE dbname=search" passages.jsonl
    python -m masksearch_jax.train_dapo --config=configs/ramp_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=Qwen2.5-1.5B-Instruct \\
        --config.search.kind=http --config.search.url=http://127.0.0.1:8001

Needs the package psycopg. Passages are loaded into a new table `passages` where the database has
none. Any word of a query finds, words near each other count more, and so does a title's word.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import psycopg

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Hits, Passage
from masksearch_jax.runtime import cli
from masksearch_jax.search.server import SearchServer

TABLE = """create table passages (place serial, id text, title text, text text,
words tsvector generated always as (setweight(to_tsvector('english', title), 'A') ||
to_tsvector('english', text)) stored)"""
FIND = """select id, title, text, ts_rank_cd(words, asked) as score from passages,
cast(replace(cast(plainto_tsquery('english', %s) as text), '&', '|') as tsquery) as asked
where words @@ asked order by score desc, place limit %s"""


def load(database: str, passages: Iterable[Passage]) -> None:
    """All or nothing."""
    with psycopg.connect(database) as connection:
        connection.execute(TABLE)
        with connection.cursor().copy("copy passages (id, title, text) from stdin") as rows:
            for p in passages:
                rows.write_row([_plain(text) for text in (p.id, p.title, p.text)])
        connection.execute("create index on passages using gin (words)")


class PostgresSearch:
    """A connection for each call, which has many queries where many searches wait."""

    def __init__(self, database: str):
        self._database = database

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        try:
            with psycopg.connect(self._database, autocommit=True) as connection:
                return [
                    _hits(connection.execute(FIND, [_plain(query), top_k])) for query in queries
                ]
        except psycopg.Error as error:
            raise SearchError(f"PostgreSQL: {error}") from error


def _hits(rows: Iterable[tuple[str, str, str, float]]) -> Hits:
    found = list(rows)
    return Hits([Passage(*row[:3]) for row in found], scores=[row[3] for row in found])


def _plain(text: str) -> str:
    """Without what PostgreSQL's texts cannot have."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def main() -> None:
    if len(sys.argv) != 3:
        raise ConfigError("usage: python -m examples.postgres_search DATABASE PASSAGES.jsonl")
    database, passages = sys.argv[1:]
    try:
        with psycopg.connect(database) as opened:
            (there,) = opened.execute("select to_regclass('passages')").fetchone()
        if there is None:
            load(database, read_jsonl(passages, Passage))
    except psycopg.Error as error:
        raise SearchError(f"PostgreSQL: {error}") from error
    server = SearchServer(PostgresSearch(database), "127.0.0.1", 8001)
    print("serving at http://127.0.0.1:8001", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    cli.call(main)  # an error is one line
