"""The HTML page: its content, and that texts of runs are never executed."""

import os
import re
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import write_run

from segdet.cli.main import main as segdet
from segdet.cli.report import main
from segdet.report.page import page_of, render_page
from segdet.report.watch import watch_page

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "</script><b>end",
    "שלום-עולם",
    "x" * 200,
    "{{ 7 * 7 }}",
]
"""Names of runs that would be executed, would end an element, or would disturb the layout."""


class Elements(HTMLParser):
    """The tags of a page, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self.raw else data


def test_a_page_has_the_scores_and_costs_of_each_task(tmp_path: Path) -> None:
    write_run(tmp_path / "ssd", score=0.612)
    write_run(tmp_path / "ssd-seed1", score=0.652, seed=1)
    write_run(tmp_path / "fcn", "segmentation", "FCN", 0.834)
    text = Elements(render_page(page_of([tmp_path]))).text
    assert "0.632 ± 0.028" in " ".join(text.split()) and "0.834" in text
    assert {"Detection", "Segmentation", "GFLOPs", "passes"} <= set(text.split("\n"))


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode on this system")
def test_names_of_folders_that_are_not_utf8_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, byte in enumerate((b"\xff", b"\xfe")):
        write_run(tmp_path / "runs" / f"ssd{os.fsdecode(byte)}", seed=seed)
    assert main([str(tmp_path / "runs")]) == 0
    tables = capsys.readouterr().out
    text = Elements((tmp_path / "runs" / "report.html").read_text(encoding="utf-8")).text
    for name in ("ssd\\udcff", "ssd\\udcfe"):
        assert f"| {name} |" in tables and name in text


def test_names_are_displayed_and_not_executed(tmp_path: Path) -> None:
    for position, name in enumerate(HOSTILE):
        folder = tmp_path / "runs" / f"run{position}"
        write_run(folder, model=name, score=0.1 + position / 10, backbone=name, command=f"segdet fit {name}")
    named = tmp_path / "runs" / "<i>&amp;'\""
    write_run(named)
    html = render_page(page_of([tmp_path / "runs"]))
    page = Elements(html)
    assert all(name in page.text for name in HOSTILE) and named.name in page.text
    assert not {"img", "i", "b"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    own = sum(tag == "script" for tag, _ in page.tags)
    clean = tmp_path / "clean"
    for position in range(len(HOSTILE) + 1):
        write_run(clean / f"run{position}", score=0.1 + position / 10)
    assert own == sum(tag == "script" for tag, _ in Elements(render_page(page_of([clean]))).tags)


def test_a_page_has_no_reference_to_other_files(tmp_path: Path) -> None:
    write_run(tmp_path / "ssd")
    html = render_page(page_of([tmp_path]))
    for tag, attributes in Elements(html).tags:
        for name in ("src", "href", "data", "action", "srcset"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), (tag, target)
    assert not re.findall(r"@import|url\(\s*['\"]?(?!data:|#)", html.split("<script")[0])


def test_the_command_writes_the_page_beside_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "ssd")
    assert main([str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("### Detection")
    assert output.err == f"segdet: see {tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    other = tmp_path / "page.html"
    assert main([str(tmp_path), "--html", str(other)]) == 0 and other.exists()
    (tmp_path / "report.html").unlink()
    assert main([str(tmp_path), "--no_html"]) == 0 and not (tmp_path / "report.html").exists()


def test_ctrl_c_ends_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "ssd", finished=False)

    def interrupt(_: float) -> None:
        assert "data-refresh=" in (tmp_path / "report.html").read_text(encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr("segdet.cli.report.watch_page", partial(watch_page, sleep=interrupt))
    assert segdet(["report", str(tmp_path), "--watch"]) == 130
    assert "Ctrl-C stops" in capsys.readouterr().err
    assert "<body>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert segdet(["report", str(tmp_path), "--watch", "--no_html"]) == 2
