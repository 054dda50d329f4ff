"""Arms of a study compared: means and paired differences, with intervals over items and seeds.

All arms are asked the same items, and seeds are crossed with items. Intervals count both: they are
Student's, of a model with random effects of both. Where seeds differ most, a bootstrap of two or
three seeds is too narrow: its 95% intervals hold half, or three quarters, of the time. With one
seed they are those of `metrics.bootstrap`, over items alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals.metrics import Interval, bootstrap
from masksearch_jax.evals.results import Bootstrap
from masksearch_jax.evals.scores import bounds

Scores = Mapping[str, Mapping[str, float]]  # item's id → metric → score
Seeds = Sequence[Scores]  # in the order of seeds, the same for every arm


def interval(values: np.ndarray, how: Bootstrap) -> Interval:
    """The mean of float64[seeds, items] and its 95% interval over both; `n` counts items.

    Of value = mean + seed + item + rest, all three random: with the mean squares M of a two-way
    layout, the mean's variance is (M_seed + M_item - M_rest) / (seeds · items), no less than by
    either alone. Its degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946), and no
    fewer than those of seeds or items, below which what is subtracted can take them.
    One item tells nothing of items, so that its interval is over seeds alone. Raises ValueError
    where there are none.
    """
    seeds, items = values.shape
    if not seeds or not items:
        raise ValueError(f"an interval needs seeds and items; got {seeds} and {items}")
    if seeds == 1:
        return bootstrap(values[0], *how)
    mean = values.mean()
    by_seed, by_item = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    parts = {
        "seed": (items * float(((by_seed - mean) ** 2).sum()), seeds - 1),
        "item": (seeds * float(((by_item - mean) ** 2).sum()), items - 1),
        "rest": (
            float(((values - by_seed - by_item + mean) ** 2).sum()),
            (seeds - 1) * (items - 1),
        ),
    }
    squares = {name: total / max(of, 1) for name, (total, of) in parts.items()}
    own = max(squares["seed"], squares["item"])
    spread = max(squares["seed"] + squares["item"] - squares["rest"], own)
    half = 0.0
    if spread > 0:
        shares = [(squares[name] / spread) ** 2 / max(of, 1) for name, (_, of) in parts.items()]
        fewest = min(seeds - 1, max(items - 1, 1))
        freedom = max(1 / sum(shares), fewest)
        half = float(stdtrit(freedom, 0.975) * np.sqrt(spread / (seeds * items)))
    return Interval(float(mean), float(mean) - half, float(mean) + half, items)


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
    """{suite: {metric: {arm: {mean, by_seed, difference}}}}, with intervals as value, low, high, n.

    arms: name → suite → scores by seed. metrics: suite → its metrics. by_seed: means. An arm
    without an item that has the metric in every seed has no cell, see `absent`. difference: paired
    by item and seed, the arm's minus the reference's, over the items that both have; None of the
    reference, and where both have none.
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
    """{mean, by_seed, difference} of an arm; empty where no item has the metric.

    No interval reaches where the metric cannot.
    """
    least, most = bounds(metric)
    ids = shared_items([mine], metric)
    if not ids:
        return {}
    values = column(mine, metric, ids)
    cell: JsonObject = {"mean": _within(interval(values, how), least, most)}
    cell["by_seed"] = values.mean(axis=1).tolist()
    cell["difference"] = None
    if both := shared_items([mine, others], metric):
        apart = column(mine, metric, both) - column(others, metric, both)
        cell["difference"] = _within(interval(apart, how), least - most, most - least)
    return cell


def _within(found: Interval, least: float, most: float) -> JsonObject:
    low, high = max(found.low, least), min(found.high, most)
    return found._replace(low=low, high=high)._asdict()


def absent(compared: JsonObject, arms: Iterable[str], reference: str) -> list[str]:
    """Sentences: which arms a table is without, and which have nothing to compare."""
    found = []
    for suite, by_metric in compared.items():
        for metric, cells in by_metric.items():
            where = f"of {suite} that has {metric} in every seed"
            found += [f"{arm} has no item {where}, and no row" for arm in arms if arm not in cells]
            found += [
                f"{arm} and {reference} share no item {where}, and have no difference"
                for arm, cell in cells.items()
                if arm != reference and reference in cells and not cell["difference"]
            ]
    return found


def seeds_said(seeds: int, asked: int) -> str:
    """How many seeds are done, and what intervals are over."""
    done = f"{seeds} of {asked} seeds are" if asked > 1 else "1 seed is"
    over = "items and seeds" if seeds > 1 else "items alone: there is one seed"
    return f"{done} done; 95% intervals are over {over}"


def table(
    compared: JsonObject, reference: str, notes: Sequence[str], seeds: int, asked: int
) -> list[str]:
    """Lines of text: of each suite and metric the arms down, their means and their differences.

    notes: sentences, such as those of `absent`. seeds, asked: done, and wanted. `n` counts the
    items of a mean, `paired` those of a difference.
    """
    rows = [["", "", "arm", "mean", f"minus {reference}", "n", "paired", "by seed"]]
    for suite, by_metric in compared.items():
        for metric, cells in by_metric.items():
            for arm, cell in cells.items():
                mean, apart = cell["mean"], cell["difference"]
                told = "reference" if arm == reference else "–"
                told, paired = (_shown(apart, "+"), str(apart["n"])) if apart else (told, "")
                by_seed = " ".join(f"{value:.3f}" for value in cell["by_seed"])
                shown = [_shown(mean), told, str(mean["n"]), paired, by_seed]
                rows.append([suite, metric, arm, *shown])
    widths = [max(map(len, parts)) for parts in zip(*rows, strict=True)]
    lines = (
        "  ".join(part.ljust(w) for part, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return [*lines, *notes, seeds_said(seeds, asked)]


def _shown(cell: Mapping[str, float], sign: str = "") -> str:
    return f"{cell['value']:{sign}.3f} [{cell['low']:{sign}.3f}, {cell['high']:{sign}.3f}]"
