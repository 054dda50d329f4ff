"""Arms of a study compared: means and paired differences, with intervals over items and seeds.

All arms are asked the same items. Seeds are crossed with items: each is resampled apart, the items
of all seeds together (the pigeonhole bootstrap, Owen 2007). With one seed it is the bootstrap of
`metrics.bootstrap`, over items alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals.metrics import Interval, interval_of, resampled_means
from masksearch_jax.evals.results import Bootstrap

Scores = Mapping[str, Mapping[str, float]]  # item's id → metric → score
Seeds = Sequence[Scores]  # in the order of seeds, the same for every arm


def interval(values: np.ndarray, how: Bootstrap) -> Interval:
    """The mean of float64[seeds, items] and its 95% interval over both; `n` counts items.

    Raises ValueError where there are none.
    """
    seeds, items = values.shape
    if not seeds or not items:
        raise ValueError(f"an interval needs seeds and items; got {seeds} and {items}")
    means = resampled_means(values.T, how.resamples, how.seed)
    # Drawn apart from the items, from a stream of their own.
    rng = np.random.default_rng([how.seed, seeds])
    drawn = rng.integers(0, seeds, means.shape)
    resampled = np.take_along_axis(means, drawn, axis=1).mean(axis=1)
    return interval_of(float(values.mean()), resampled, items)


def shared_items(groups: Iterable[Seeds], metric: str) -> list[str]:
    """Ids of the items that have the metric in every seed of every group, in order."""
    every = [by_id for seeds in groups for by_id in seeds]
    first = every[0] if every else {}
    return [i for i in first if all(metric in scores.get(i, {}) for scores in every)]


def column(seeds: Seeds, metric: str, ids: Sequence[str]) -> np.ndarray:
    """float64[seeds, items] of a metric."""
    return np.asarray([[scores[i][metric] for i in ids] for scores in seeds], np.float64)


def compare(
    arms: Mapping[str, Mapping[str, Seeds]],
    reference: str,
    metrics: Mapping[str, Sequence[str]],
    how: Bootstrap,
) -> JsonObject:
    """{suite: {metric: {arm: {mean, difference}}}}, each a cell of value, low, high, n.

    arms: name → suite → scores by seed. metrics: suite → its metrics. difference: paired by item
    and seed, the arm's minus the reference's, over the items that both have; None of the reference.
    """
    found: JsonObject = {}
    for suite, names in metrics.items():
        for metric in names:
            cells = {
                arm: cell
                for arm in arms
                if (cell := _cell(arms[arm][suite], arms[reference][suite], metric, how))
            }
            if cells:
                cells.get(reference, {})["difference"] = None
                found.setdefault(suite, {})[metric] = cells
    return found


def _cell(mine: Seeds, others: Seeds, metric: str, how: Bootstrap) -> JsonObject:
    """{mean, difference} of an arm; empty where no item has the metric."""
    ids = shared_items([mine], metric)
    if not ids:
        return {}
    cell: JsonObject = {"mean": interval(column(mine, metric, ids), how)._asdict()}
    cell["difference"] = None
    if both := shared_items([mine, others], metric):
        apart = column(mine, metric, both) - column(others, metric, both)
        cell["difference"] = interval(apart, how)._asdict()
    return cell


def table(compared: JsonObject, reference: str, seeds: int) -> list[str]:
    """Lines of text: of each suite and metric the arms down, their means and their differences."""
    over = "items and seeds" if seeds > 1 else "items alone: there is one seed"
    rows = [["", "", "arm", "mean", f"minus {reference}", "n"]]
    for suite, by_metric in compared.items():
        for metric, cells in by_metric.items():
            for arm, cell in cells.items():
                mean, apart = cell["mean"], cell["difference"]
                shown = (_shown(mean), _shown(apart, "+") if apart else "reference")
                rows.append([suite, metric, arm, *shown, str(mean["n"])])
    widths = [max(map(len, parts)) for parts in zip(*rows, strict=True)]
    lines = (
        "  ".join(part.ljust(w) for part, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return [*lines, f"{seeds} seed{'s' * (seeds > 1)}; 95% intervals over {over}"]


def _shown(cell: Mapping[str, float], sign: str = "") -> str:
    return f"{cell['value']:{sign}.3f} [{cell['low']:{sign}.3f}, {cell['high']:{sign}.3f}]"
