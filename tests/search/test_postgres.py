"""A database server as the engine of a search service: results, any text, and its restart."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("psycopg", reason="psycopg is not installed")

from examples.postgres_search import PostgresSearch, load
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.search.server import SearchServer
from masksearch_jax.testing.services import serving
from tests.search.fruit import FRUIT, SPECIAL, ids

pytestmark = pytest.mark.slow


class Cluster:
    """A PostgreSQL of its own on a free port; as root it runs as the user postgres."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.database = f"host=127.0.0.1 port={self.port} dbname=postgres user=me connect_timeout=5"
        self._folder = folder
        self._as = {} if os.getuid() else {"user": "postgres", "cwd": "/"}
        if not os.getuid():
            shutil.chown(folder, "postgres")
        self._call("initdb", "--auth=trust", "--username=me", "--no-sync")

    def start(self):
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(self._folder / "log")
        self._call("pg_ctl", "start", "--wait", "--silent", f"--options={options}", f"--log={log}")

    def stop(self):
        self._call("pg_ctl", "stop", "--wait", "--mode=immediate", "--silent")

    def _call(self, program, *arguments):
        command = [shutil.which(program), *arguments, f"--pgdata={self._folder / 'data'}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._as)


@pytest.fixture(scope="module")
def cluster():
    if not all(map(shutil.which, ("initdb", "pg_ctl", "postgres"))):
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # in no folder that its user may not read
    try:
        found = Cluster(folder)
        found.start()
        load(found.database, FRUIT)
        yield found
        with contextlib.suppress(subprocess.CalledProcessError):
            found.stop()
    finally:
        shutil.rmtree(folder)


def test_a_run_finds_what_the_database_finds(cluster):
    tool = PostgresSearch(cluster.database)
    with serving(SearchServer(tool, "127.0.0.1", 0)) as server:
        remote = RemoteSearch(server.url, timeout=10)
        queries = ["red fruit", "Durian", "nothing like it", *SPECIAL, "a\0b", "\ud800"]
        found, expected = remote.search(queries, 3), tool.search(queries, 3)
        assert found == expected
        assert [hits.scores for hits in found] == [hits.scores for hits in expected]
    assert [p.id for p in expected[0]] == ["a", "c", "b"]
    assert [len(hits) for hits in expected[1:3]] == [1, 0]


def test_a_restart_of_the_database_loses_no_search(cluster):
    tool = PostgresSearch(cluster.database)
    with serving(SearchServer(tool, "127.0.0.1", 0)) as server:
        remote = RemoteSearch(server.url, timeout=30)
        assert ids(remote, "durian") == ["d"]
        cluster.stop()
        with pytest.raises(SearchError, match="PostgreSQL: "):
            tool.search(["durian"], 3)
        starting = threading.Timer(0.5, cluster.start)
        starting.start()
        started = time.monotonic()
        assert ids(remote, "durian") == ["d"]
        assert time.monotonic() - started >= 0.5
        starting.join()
