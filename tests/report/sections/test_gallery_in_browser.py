"""The gallery and the confusion matrices in a browser: numbers at any threshold, links to images, keyboard."""

import shutil

import numpy as np
import pytest
from random_runs import write_run

from segdet.report.confusion import confusion_of
from segdet.report.detection_counts import detection_errors
from segdet.report.page import page_of, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RUNS = ("rcnn", "ssd", 'x"><script>alert(1)')

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    evidence = {name: write_run(folder / "runs" / name, seed=seed) for seed, name in enumerate(RUNS)}
    segmented = write_run(folder / "runs" / "fcn", "segmentation", images=30)
    page = page_of([folder / "runs"])
    write_page(page, folder / "report.html")
    return folder / "report.html", evidence, segmented


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; install Debian's package chromium")
    api = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, report):
    """The page in a new window. The test fails at an error on the console or a request."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    faults = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url[:5] in ("file:", "data:") else faults.append(request.url),
    )
    page.goto(report[0].as_uri())
    yield page
    context.close()
    assert not faults


def rows(page):
    """Return the numbers in the table of the detection gallery by run."""
    script = """rows => rows.map(row => [row.dataset.name,
      Object.fromEntries([...row.querySelectorAll("[data-k]")].map(cell => [cell.dataset.k, cell.dataset.value]))])"""
    return dict(page.eval_on_selector_all("#gallery-detection tbody tr", script))


def set_threshold(page, value):
    page.locator("#gallery-detection-threshold").evaluate(
        """(slider, value) => {
          const data = JSON.parse(slider.closest(".gallery").querySelector("script").textContent);
          slider.value = data.thresholds.indexOf(value);
          slider.dispatchEvent(new Event("input"));
        }""",
        value,
    )
    page.wait_for_function(
        "text => document.querySelector('#gallery-detection output').textContent === text", arg=f"{value:.3f}"
    )
    page.evaluate("() => new Promise(requestAnimationFrame)")


def test_the_slider_recomputes_the_evaluators_numbers(page, report):
    _, evidence, _ = report
    texts = page.locator("#gallery-detection tbody").text_content()
    for value in (0.0, 0.3, 0.55, 1.0, None):
        if value is None:
            page.click("#gallery-detection .best")
            page.evaluate("() => new Promise(requestAnimationFrame)")
        else:
            set_threshold(page, value)
        for name, numbers in rows(page).items():
            errors = detection_errors(evidence[name])
            shown = errors.detections.scores >= (errors.best_score() if value is None else value)
            correct, total = (shown & errors.correct).sum(), shown.sum()
            objects = (~errors.objects.ignored).sum()
            assert int(numbers["correct"]) == correct
            assert int(numbers["wrong"]) == total - correct
            assert int(numbers["missed"]) == objects - correct
            expected = {
                "precision": correct / total if total else np.nan,
                "recall": correct / objects,
                "f1": 2 * correct / (total + objects),
            }
            for key, each in expected.items():
                assert float(numbers[key]) == pytest.approx(each, abs=1e-12, nan_ok=True), (name, value, key)
    assert page.locator("#gallery-detection tbody").text_content() == texts


def test_the_slider_filters_the_boxes_of_an_image(page, report):
    _, evidence, _ = report
    panel = page.locator('#gallery-detection-image-0 .panel[data-name="ssd"]')
    index = int(page.locator("#gallery-detection-image-0").get_attribute("data-index"))
    ssd = evidence["ssd"]
    for value in (0.0, 0.5, 0.8):
        set_threshold(page, value)
        mine = (ssd.image == index) & (ssd.match[:, 0] != 2) & (ssd.score.astype(float) >= value)
        objects = (ssd.object_image == index) & ~(ssd.object_crowd | ssd.object_difficult)
        correct = (ssd.match[mine, 0] == 1).sum()
        assert panel.locator(".box.correct:not(.off)").count() == correct
        assert panel.locator(".box.wrong:not(.off)").count() == mine.sum() - correct
        assert panel.locator(".box.missed:not(.off)").count() == objects.sum() - correct
        total = mine.sum() + objects.sum()
        text = panel.locator(".counts").text_content()
        assert text.startswith(f"F1 {2 * correct / total if total else 1:.2f}: ")
        if total:
            assert text.endswith(
                f"{correct} correct, {mine.sum() - correct} wrong, {objects.sum() - correct} missed"
            )


def test_a_cell_of_the_confusion_matrix_leads_to_its_images(page, report):
    _, _, segmented = report
    page.select_option(".confusion-controls select", label="fcn")
    confusion = confusion_of(segmented)
    matrix = confusion.matrix
    np.fill_diagonal(matrix, 0)
    cell = tuple(int(each) for each in np.unravel_index(matrix.argmax(), matrix.shape))
    images = confusion.images_by_cell()[cell][0].tolist()
    page.click(f'.matrix:visible td a[data-cell="{cell[0]},{cell[1]}"]')
    shown = page.locator("#gallery-segmentation .gallery-images > li:visible")
    found = [int(each.get_attribute("data-index")) for each in shown.all()]
    assert found == [image for image in images if image < 6]
    text = page.locator("#gallery-segmentation .gallery-filter").text_content()
    names = segmented.class_names
    name = f"\u2068{names[cell[0]]}\u2069 as \u2068{names[cell[1]]}\u2069"
    assert f"fcn: {name}: {matrix[cell]} pixels in {len(images)} images" in text
    others = [image for image in images if image >= 6]
    assert segmented.file_names[others[0]] in text
    top = page.locator("#gallery-segmentation .gallery-filter").bounding_box()["y"]
    assert 50 < top < 300
    assert top < shown.first.bounding_box()["y"] < 900
    page.click("#gallery-segmentation .gallery-filter button")
    assert shown.count() == 6


def test_images_are_ordered_by_the_score_of_the_chosen_run(page):
    scores = """(items, run) => items.filter(item => !item.hidden).map(
      item => Number(item.querySelector(`.panel[data-index="${run}"]`).dataset.score))"""
    for order in ("worst", "best"):
        page.select_option("#gallery-detection-order", f"{order}:1")
        found = page.eval_on_selector_all("#gallery-detection .gallery-images > li", scores, "1")
        assert found == sorted(found, reverse=order == "best")


def test_runs_are_shown_and_hidden(page):
    panels = page.locator('#gallery-detection .panel[data-name="ssd"]:visible')
    assert panels.count() == 6
    page.uncheck('#gallery-detection tr[data-name="ssd"] input')
    assert panels.count() == 0
    page.fill("#filter", "rcnn")
    assert page.locator("#gallery-detection .panel[data-name]:visible").count() == 6
    page.fill("#filter", "")
    assert page.locator("#gallery-detection .panel[data-name]:visible").count() == 6 * (len(RUNS) - 1)
    page.locator("#results button.run", has_text="ssd").click()
    assert panels.count() == 6
    assert page.locator("#gallery-detection .panel.selected").count() == 6


def test_images_are_enlarged_and_left_with_the_keyboard(page):
    opener = page.locator("#gallery-detection .panel.truth .open").first
    opener.focus()
    page.keyboard.press("Enter")
    title = page.locator("#lightbox header strong")
    assert title.text_content().startswith("Annotation")
    page.keyboard.press("ArrowRight")
    assert title.text_content().startswith(RUNS[0])
    first = title.text_content()
    page.keyboard.press("ArrowDown")
    assert title.text_content() != first
    width = page.locator("#lightbox svg").bounding_box()["width"]
    assert width > 500
    page.keyboard.press("+")
    assert page.locator("#lightbox svg").bounding_box()["width"] == pytest.approx(1.5 * width, abs=2)
    page.keyboard.press("Escape")
    assert not page.locator("#lightbox").is_visible()
    assert page.evaluate("document.activeElement.classList.contains('open')")


def test_pictures_are_visible_without_scripts(chromium, report):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report[0].as_uri())
    assert page.locator("#gallery-detection .panel:visible").count() == 6 * (1 + len(RUNS))
    assert page.locator("#gallery-detection .box.correct:visible").count() > 10
    assert page.locator("#gallery-detection form:visible").count() == 0
    assert page.locator(".matrix:visible").count() == 1 + len(RUNS)
    context.close()
