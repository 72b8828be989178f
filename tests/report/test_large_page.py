"""The size and speed of the page of many runs."""

import shutil
import time
from pathlib import Path

import pytest
from report_runs import write_run

from segdet.report.page import page_of, write_page

CHROMIUM = shutil.which("chromium")


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_page_of_two_hundred_runs_is_written_and_opened_quickly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 runs of 2,000 points are written in under 30 s and open in under 3 s, in at most 10 MB."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    tasks = [("detection", "SSD"), ("segmentation", "FCN"), ("detection", "YOLOX"), ("detection", "FCOS")]
    for number in range(200):
        task, model = tasks[number % 4]
        folder = tmp_path / "runs" / f"{model.lower()}-{number:03d}"
        write_run(folder, task, model, 0.3 + number / 400, points=2000, epochs=20)
    start = time.perf_counter()
    path = tmp_path / "report.html"
    write_page(page_of([tmp_path / "runs"]), path)
    written = time.perf_counter() - start
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto("about:blank")
        start = time.perf_counter()
        page.goto(path.as_uri())
        page.locator("#results button.sort").first.click()  # the page responds
        opened = time.perf_counter() - start
        for figure in page.query_selector_all("figure.chart"):
            figure.scroll_into_view_if_needed()
            page.wait_for_function("figure => figure.dataset.drawn", arg=figure)
        drawn = time.perf_counter() - start
        browser.close()
    size = path.stat().st_size / 1e6
    with capsys.disabled():
        print(
            f"\n200 runs: written in {written:.1f} s, opened in {opened:.2f} s, drawn in {drawn:.1f} s, {size:.1f} MB"
        )
    assert written < 30 and opened < 3 and size < 10
