"""HTTP requests to search services: kept connections, replies bounded in time and size."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from typing import NamedTuple

import httpx2

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.retry_after import retry_after
from masksearch_jax.search.gather import RefusedError
from masksearch_jax.search.replicas import FailedForNow, NoAnswerError

MAX_RESPONSE = 64 * 2**20  # bytes
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
REFUSED = frozenset({400, 413, 422})  # for what is asked
_FAILURES = frozenset({500, 503})  # of a service at a request, where it asks for no pause
_IDLE_CONNECTIONS = 64  # kept open


class TooLargeError(SearchError):
    """A reply has more than MAX_RESPONSE bytes."""


class Response(NamedTuple):
    """A reply, whatever its status."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def check_ok(self, service: str) -> None:
        """Raises FailedForNow where another try may succeed, RefusedError for a wrong request.

        Any other status is a NoAnswerError: a page of what stands before the service, a wrong key.
        """
        if self.status == 200:
            return
        reason = f"HTTP {self.status} {self.data[:200].decode('utf-8', 'replace')}"
        if self.status in RETRIED:
            rest = retry_after(self.headers.get("Retry-After", ""))
            is_own = self.status in _FAILURES and not rest
            raise FailedForNow(f"{service}: {reason}", rest, is_own=is_own)
        kind = RefusedError if self.status in REFUSED else NoAnswerError
        raise kind(f"{service} refused the request: {reason}")


class HttpClient:
    """Uses connections again, and no proxies; safe for threads."""

    def __init__(self, *, is_secure: bool):
        self._client = httpx2.Client(
            trust_env=False,
            verify=is_secure,  # loading keys takes 60 ms
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS),
            headers={"Content-Type": "application/json"},
        )
        weakref.finalize(self, self._client.close)

    def send(
        self,
        method: str,
        url: str,
        body: bytes | None,
        seconds: float,
        headers: Mapping[str, str],
        service: str = "",
    ) -> Response:
        """One request. Raises FailedForNow where no reply comes in time, or TooLargeError.

        service: what errors call it; empty: its address.
        """
        service = service or url
        end = time.monotonic() + seconds
        data = bytearray()
        try:
            with self._client.stream(
                method, url, content=body, headers=dict(headers), timeout=seconds
            ) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_RESPONSE:
                        raise TooLargeError(f"{service} sent more than {MAX_RESPONSE} bytes")
                    if time.monotonic() > end:
                        late = f"{service}: TimeoutError within the answer"
                        raise FailedForNow(late, is_late=True)
                return Response(response.status_code, response.headers, bytes(data))
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            is_late = isinstance(error, httpx2.TimeoutException)
            message = f"{service}: {type(error).__name__} {error}"
            raise FailedForNow(message, is_late=is_late) from error
