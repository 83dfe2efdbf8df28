"""The index page of a sweep in headless Chromium: sorted, filtered, plotted, on a wide screen and on a phone's."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from test_batch_runs import fake
from test_jupyterlab import CHROMIUM, FLAGS, playwright  # noqa: F401 (a fixture)

from macelib.batch.index import write

pytestmark = pytest.mark.slow


@pytest.fixture
def index(tmp_path) -> Path:
    """Page of eight runs: one is waiting, one failed, one has a picture; all that ran have an interval."""
    fake(tmp_path / "t", [{"lambda1": v, "seed": s} for v in (1, 10, 100, 1000) for s in (0, 1)], done=7)
    for i in range(7):
        folder = tmp_path / "t" / f"{i:012x}"
        metrics = {"H_o": {"value": 97 + i / 4, "low": 90 + i, "high": 99}, "loss": 1 / (i + 1)}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "notebook.html").touch(), (folder / "notebook.ipynb").touch()
    (folder / "SUCCESS").unlink()
    (folder / "status.json").write_text(json.dumps({"status": "failed", "error": "AssertionError: H_o is too low"}))
    Image.new("RGB", (900, 300), (20, 120, 220)).save(tmp_path / "t" / f"{0:012x}" / "grid.png")
    return write(tmp_path / "t")[2]


def test_sort_filter_and_plot(playwright, index):  # noqa: F811
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    page, wrong = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    page.on("pageerror", lambda error: wrong.append(error))
    page.goto(index.as_uri())
    column = "[...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[2].textContent)"
    assert page.evaluate(column) == ["1", "1", "10", "10", "100", "100", "1000", "1000"]
    head = page.locator("#runs thead button", has_text="lambda1")
    head.click(), head.click()
    assert page.evaluate(column)[0] == "1000" and page.locator("th[aria-sort=descending]").count() == 1
    assert page.locator("#chart svg circle").count() == 7 and page.locator("#runs img").count() == 1
    intervals = page.locator("#chart line.interval")
    heights = intervals.evaluate_all("lines => lines.map(line => line.y1.baseVal.value - line.y2.baseVal.value)")
    assert len(heights) == 7 and heights[0] == pytest.approx(9 * heights[-1] / 3), "90 to 99 beside 96 to 99"
    rings, text = page.locator("#chart circle.failed"), page.locator("#chart .key").inner_text()
    assert rings.count() == 1 and "ring: a run that failed" in text and "bar: interval" in text
    assert rings.evaluate("ring => getComputedStyle(ring).stroke") not in ("none", "rgb(255, 255, 255)")
    links = page.locator("#runs tbody tr").last.locator("td").first.locator("a")
    assert [link.get_attribute("href").split("/")[1] for link in links.all()] == ["notebook.html", "notebook.ipynb"]
    page.locator("fieldset", has_text="lambda1").get_by_role("button", name="10", exact=True).click()
    assert page.locator("#count").inner_text() == "6 of 8" and page.locator("#chart svg circle").count() == 5
    page.get_by_role("button", name="Show all").click()
    assert page.locator("#count").inner_text() == "all 8"
    shots = Path(os.environ.get("MACELIB_SCREENSHOTS", index.parent))
    page.screenshot(path=shots / "index.png")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"
    page.screenshot(path=shots / "index_phone.png")
    assert page.locator("#chart text").first.evaluate("t => t.getBoundingClientRect().height") >= 12, (
        "too small to read"
    )
    browser.close()
    assert not wrong, wrong
