"""The confusion section: its cells name their images, those of the gallery first."""

import json
import re

import numpy as np
import pytest
from random_runs import write_run

from segdet.report.confusion import OTHER, confusion_of
from segdet.report.page_data import PageData
from segdet.report.run_data import load_runs
from segdet.report.sections import confusion as module
from segdet.report.sections.confusion import section


def html_of(folder):
    runs, faults = load_runs([folder])
    assert not faults
    found = section(PageData("page", [folder], runs))
    return found and str(found.html)


def test_the_cells_contain_the_counts_and_the_shares_of_the_rows(tmp_path):
    evidence = write_run(tmp_path / "ssd")
    matrix = confusion_of(evidence).matrix
    html = html_of(tmp_path)
    rows = re.findall(r"<tr><th scope=\"row\".*?</tr>", html, re.DOTALL)
    for row, counts in zip(rows, matrix, strict=True):
        found = re.findall(r'<td></td>|<span class="count">(\d+)</span>', row)
        assert [int(each or 0) for each in found] == counts.tolist()
        shares = [float(each) for each in re.findall(r"--v:([\d.]+)", row)]
        assert shares == pytest.approx([each / counts.sum() for each in counts if each], abs=1e-3)


@pytest.mark.parametrize("task", ["detection", "segmentation", "localization"])
def test_each_cell_lists_its_images_those_of_the_gallery_first(tmp_path, task):
    evidence = write_run(tmp_path / "run", task, images=40)
    html = html_of(tmp_path)
    assert f'data-gallery="gallery-{task}"' in html
    data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)[1])
    cells = confusion_of(evidence).images_by_cell()
    assert {*data["cells"]} == {f"{row},{column}" for row, column in cells}
    for (row, column), (images, _) in cells.items():
        total, in_gallery, *listed = data["cells"][f"{row},{column}"]
        assert total == len(images)
        assert {*listed[:in_gallery]} == {image for image in images.tolist() if image < 6}
        assert len(listed) == in_gallery + min(total - in_gallery, 12)
        assert {*listed} <= {*images.tolist()}
        for image in listed:
            assert data["files"][str(image)] == evidence.file_names[image]


def test_many_classes_share_a_row_and_names_are_text(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLASSES", 3)
    write_run(tmp_path / '<b>"run"', classes=8)
    html = html_of(tmp_path)
    assert html.count(f'title="{OTHER}"') == 2
    assert "<b>" not in html and "&lt;b&gt;&#34;run&#34;" in html


def test_runs_without_evidence_have_no_matrix(tmp_path):
    run = tmp_path / "run"
    write_run(run)
    record = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(record | {"per_image": None}))
    assert html_of(tmp_path) is None


def test_the_most_frequent_confusions_are_listed(tmp_path):
    evidence = write_run(tmp_path / "run", "segmentation")
    matrix = confusion_of(evidence).matrix
    np.fill_diagonal(matrix, 0)
    row, column = np.unravel_index(matrix.argmax(), matrix.shape)
    names = evidence.class_names
    first = re.search(
        r'class="frequent".*?<li><a[^>]*>(.*?)</a> <small>(.*?)</small>', html_of(tmp_path), re.DOTALL
    )
    assert first[1] == f"\u2068{names[row]}\u2069 as \u2068{names[column]}\u2069"
    assert first[2].startswith(f"{matrix.max()} pixels in ")
