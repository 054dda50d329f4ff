"""Search services that others run: of the web, and OpenSearch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from masksearch_jax.core.schema import key


@dataclasses.dataclass(frozen=True)
class WebConfig:
    """A service that searches the web and replies in JSON, for kind web."""

    service: Literal["serper", "serpapi", "json"] = key(
        "serper",
        "serper, serpapi: what these two need, where the other keys are empty; json: as these say.",
    )
    url: str = key(
        "",
        "Its address, with {query}, {top_k} and {key} where these belong.",
        user="a key goes into the environment variable that key_variable names",
    )
    body: str = key("", "JSON that is posted, with the same in its texts; empty: GET.")
    header: str = key(
        "", "A header with the key, such as 'Authorization: Bearer {key}'.", harmless=True
    )
    key_variable: str = key("", "Environment variable that has the key.", harmless=True)
    results: str = key("", "Where the reply has its list of results: names with dots between.")
    title: str = key("", "Where a result has its title.")
    text: str = key("", "Where a result has its text.")
    id: str = key("", "Where a result has its address, which becomes the passage's id.")


@dataclasses.dataclass(frozen=True)
class OpenSearchConfig:
    """An OpenSearch cluster with passages that build_index loaded, for kind opensearch."""

    url: str = key(
        "",
        "The cluster's address; commas between the addresses of several nodes.",
        user="they go into the environment variables that user_variable and password_variable name",
    )
    name: str = key("passages", "Of the cluster's index.")
    by: Literal["words", "vectors"] = key(
        "words",
        "words: BM25; vectors: the cluster's HNSW graph of those that build_index loaded, with "
        "search.encoder.",
    )
    user_variable: str = key(
        "OPENSEARCH_USER", "Environment variable that has the user; unset: none.", harmless=True
    )
    password_variable: str = key(
        "OPENSEARCH_PASSWORD", "Environment variable that has the password.", harmless=True
    )
    certificates: str = key(
        "", "File of certificates to trust; empty: the machine's own.", harmless=True
    )


@dataclasses.dataclass(frozen=True)
class OpenSearchLoadConfig(OpenSearchConfig):
    """An OpenSearch cluster that the passages of the index are loaded into; no url: none."""

    shards: int = key(1, "Primary shards of the cluster's index.", least=1)
    replicas: int = key(0, "Copies of each.", least=0)
