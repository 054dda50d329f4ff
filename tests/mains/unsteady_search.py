"""A search tool that fails now and then, the same for the same seed."""

import random
import threading
import time

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage


class Unsteady:
    """A tool that finds one passage, or fails: the first calls never, then a share of them."""

    def __init__(self, share=0.0, seed=0, sound=0):
        self._share, self._rng, self._sound = share, random.Random(seed), sound
        self._lock = threading.Lock()
        self.calls = 0

    def search(self, queries, top_k):
        with self._lock:
            self.calls += 1
            fails = self._rng.random() < self._share and self.calls > self._sound
        if fails:
            raise SearchError("scripted failure")
        return [[Passage("p", "A title", "A text.")] for _ in queries]


class Slow(Unsteady):
    def search(self, queries, top_k):
        time.sleep(0.01)
        return super().search(queries, top_k)
