"""The HTML page in a browser: no errors, no network, selection, filter and sorting."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_runs import write_run

from segdet.report.page import page_of, write_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three detectors, one of them with a hostile name, and of a segmentation network."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "ssd", score=0.61)
    write_run(root / "ssd-seed1", score=0.63, seed=1)
    write_run(root / "faster_rcnn", model="FasterRCNN", score=0.58)
    write_run(root / "<img src=x onerror=alert(1)>", model="</script><script>alert(2)</script>", score=0.4)
    write_run(root / "fcn", "segmentation", "FCN", 0.83)
    write_page(page_of([root]), root / "report.html")
    return root / "report.html"


class Tab:
    """A tab with the page, and what it has requested and reported so far."""

    def __init__(self, page: "sync_api.Page") -> None:
        self.page = page
        self.requests: list[str] = []
        self.messages: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))

    def open(self, path: Path) -> None:
        """Open a page and draw all of its charts."""
        self.page.goto(path.as_uri())
        for figure in self.page.query_selector_all("figure.chart"):
            figure.scroll_into_view_if_needed()
        self.page.wait_for_function(
            "[...document.querySelectorAll('figure.chart')].every(figure => figure.dataset.drawn)"
        )


@pytest.fixture(scope="module")
def browser() -> "Iterator[sync_api.Browser]":
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: "sync_api.Browser", path: Path) -> "Iterator[Tab]":
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = Tab(context.new_page())
    tab.open(path)
    yield tab
    context.close()


def names(tab: Tab, table: str = "Results of detection") -> list[str]:
    """Return the names in the visible rows of a table."""
    rows = tab.page.locator(f'[aria-label="{table}"] tbody tr:visible th')
    return [text.strip() for text in rows.all_inner_texts()]


def test_the_page_reports_no_error_and_requests_nothing(tab: Tab, path: Path) -> None:
    assert tab.messages == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [path.as_uri()]


def test_a_click_on_a_heading_sorts_the_table(tab: Tab) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    assert names(tab) == ["ssd", "faster_rcnn", hostile]
    heading = tab.page.get_by_role("region", name="Results of detection").get_by_role(
        "columnheader", name="map", exact=True
    )
    button = heading.get_by_role("button")
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    button.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert names(tab) == [hostile, "faster_rcnn", "ssd"]
    tab.page.get_by_role("region", name="Results of detection").get_by_role(
        "button", name="run"
    ).first.click()
    assert names(tab) == [hostile, "faster_rcnn", "ssd"]
    assert heading.get_attribute("aria-sort") == "none"


def test_the_filter_selects_rows_and_marks(tab: Tab) -> None:
    tab.page.get_by_label("Filter runs").fill("FASTER")
    assert names(tab) == ["faster_rcnn"] and names(tab, "Results of segmentation") == []
    marks = tab.page.locator("#tradeoffs .live .mark-symbol path")
    sync_api.expect(marks).to_have_count(3)  # one in each chart of detection
    tab.page.get_by_label("Filter runs").fill("")
    assert len(names(tab)) == 3


def test_a_selected_run_is_selected_in_all_tables_and_charts(tab: Tab) -> None:
    tab.page.locator('#results button.run[data-run="ssd"]').click()
    pressed = tab.page.locator('button.run[aria-pressed="true"]').evaluate_all(
        "buttons => buttons.map(button => button.dataset.run)"
    )
    assert set(pressed) == {"ssd"} and len(pressed) > 1
    assert tab.page.locator("tr.selected").count() >= 1
    faint = '#tradeoffs .live .mark-symbol path[opacity="0.15"]'
    sync_api.expect(tab.page.locator(faint)).to_have_count(6)  # the other two runs in each of three charts
    tab.page.keyboard.press("Escape")
    sync_api.expect(tab.page.locator(faint)).to_have_count(0)


def test_a_click_on_a_mark_selects_its_run(tab: Tab) -> None:
    events = (
        "window.selected = []; document.addEventListener('segdet:select', e => selected.push(e.detail.run))"
    )
    tab.page.evaluate(events)
    tab.page.locator("#tradeoffs .live .mark-symbol path").first.click()
    (run,) = tab.page.evaluate("selected")
    assert run in ("ssd", "faster_rcnn", "<img src=x onerror=alert(1)>", "fcn")
    assert tab.page.locator("tr.selected").first.get_attribute("data-run") == run


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_does_not_scroll_sideways(tab: Tab, path: Path, width: int) -> None:
    tab.page.set_viewport_size({"width": width, "height": 800})
    tab.open(path)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width


def test_the_page_is_readable_without_javascript(browser: "sync_api.Browser", path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.get_by_role("cell", name="0.580").first.is_visible()
    assert page.locator("figure.chart .static svg").first.is_visible()
    assert not page.get_by_label("Filter runs").is_visible()
    context.close()


def test_charts_follow_the_colour_scheme(tab: Tab) -> None:
    colour = "getComputedStyle(document.querySelector('.live .mark-symbol path')).fill"
    light = tab.page.evaluate(colour)
    tab.page.emulate_media(color_scheme="dark")
    assert tab.page.evaluate(colour) != light
