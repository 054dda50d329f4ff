"""The report in a headless Chromium: its size, its nodes, how fast it opens and filters.

    python -m benchmarks.report runs/quickstart

Times are medians of `--repeats`, with the least and the most. Opening is from the start of the
navigation to the first part drawn; a filter's time is from its setting to the rows drawn.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from masksearch_jax import viewer
from masksearch_jax.core.files import write_json

VIEWS = ("overview", "evaluation", "curves", "trajectories", "config")
FILTERS = {
    "by status": {"status": "out_of_turns"},
    "by suite, best first": {"suite": "questions", "order": "best"},
    "by score": {"least": "0.2", "most": "0.8"},
    "by words of the text": {"text": "population of"},
}
_OPENED = "performance.getEntriesByName('shown')[0].startTime"
_TIMED = """async (filters) => {
  const began = performance.now();
  list.filters = { ...NO_FILTERS, ...filters };
  await refilter();
  return performance.now() - began;
}"""


def shown(times: list[float]) -> str:
    return f"{statistics.median(times):.0f} ms ({min(times):.0f}–{max(times):.0f})"


def measure(browser: Any, url: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of opening and of each filter, nodes of each part, and what the console said."""
    said: list[str] = []
    found: dict[str, Any] = {"opens": [], "nodes": {}, "filters": {name: [] for name in FILTERS}}
    for _ in range(repeats):
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        page.wait_for_selector("h1")
        found["opens"].append(page.evaluate(_OPENED))
        for view in VIEWS:
            page.evaluate(f"location.hash = '{view}'")
            page.wait_for_timeout(300)
            found["nodes"][view] = page.evaluate("document.querySelectorAll('*').length")
        page.evaluate("location.hash = 'trajectories'")
        page.wait_for_selector(".row")
        page.evaluate("searchable()")  # which the page unpacks by itself when it has nothing to do
        for name, filters in FILTERS.items():
            found["filters"][name].append(page.evaluate(_TIMED, filters))
        page.close()
    return found | {"console": said}


def in_browser(work: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        raise SystemExit("neither chromium nor google-chrome is on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        return work(browser)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--trajectories", type=int, default=2600)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(viewer.render([args.run], args.trajectories), encoding="utf-8")
        found = in_browser(lambda browser: measure(browser, path.as_uri(), args.repeats))
        found["bytes"] = path.stat().st_size
    print(f"{args.trajectories} trajectories: {found['bytes'] / 1e6:.1f} MB")
    print(f"opens in {shown(found['opens'])}")
    print("nodes: " + ", ".join(f"{view} {n:,}" for view, n in found["nodes"].items()))
    for name, times in found["filters"].items():
        print(f"filter {name}: {shown(times)}")
    print(f"console: {json.dumps(found['console'])}")
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
