"""The pause that a service asks for by its header Retry-After."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime


def retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or an HTTP date.

    A date without a zone is UTC. 0 for what is past or unreadable. It has no bound: a wrong clock
    may ask for years.
    """
    try:
        seconds = float(header)
    except ValueError:
        seconds = _until(header)
    return seconds if seconds > 0.0 else 0.0


def _until(date: str) -> float:
    """Seconds until an HTTP date; 0 if unreadable."""
    try:
        then = email.utils.parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return (then - datetime.now(UTC)).total_seconds()
