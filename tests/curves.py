"""What two runs of the same seed must agree on: their logged figures, but for the clock's."""

# When a search comes back decides who decodes next to whom, and whose prompt is there to be copied.
TIMED = (
    "second",
    "host_share",
    "decode_occupancy",
    "queue_length",
    "searches_in_flight",
    "prompts_shared",
)


def without_clock(row: dict[str, float]) -> dict[str, float]:
    """A row of metrics.jsonl without what the clock decides."""
    return {name: value for name, value in row.items() if not any(t in name for t in TIMED)}
