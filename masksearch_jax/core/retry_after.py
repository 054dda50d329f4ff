"""The pause that a service asks for by its header Retry-After."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime

_LONGEST = 86_400.0  # seconds; more is a wrong clock, or a time in the place of a pause


def retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or an HTTP date.

    A date without a zone is UTC. 0 for what is past, unreadable, or longer than a day.
    """
    try:
        seconds = float(header)
    except ValueError:
        seconds = _until(header)
    return seconds if 0.0 < seconds <= _LONGEST else 0.0


def _until(date: str) -> float:
    """Seconds until an HTTP date; 0 if unreadable."""
    try:
        then = email.utils.parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return (then - datetime.now(UTC)).total_seconds()
