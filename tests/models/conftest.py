"""Fixtures of the tests of models."""

import resource

import pytest


@pytest.fixture
def file_size_limit():
    """A function that makes the kernel refuse to write files beyond so many bytes (None: any)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)
