import re

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import speed
from experiments.speed import PARTS, Measured, Part, measure, row
from segdet.nn.dense_windows import DensePass


def test_every_part_runs(capsys):
    assert speed.main(["--small", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(PARTS)
    assert {line.count("|") for line in table} == {7}


def test_selected_parts(capsys):
    assert speed.main(["miou", "--small", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert "mIoU" in out and "COCO" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mio"], "no part mio"),
        (["--rounds", "0"], "--rounds 0"),
        (["--threads", "0"], "--threads 0"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        speed.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_images(tmp_path, capsys):
    argv = ["decode", "--rounds", "1", "--images", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        speed.main(argv)
    assert stop.value.code == 2
    assert "no JPEG in this folder" in capsys.readouterr().err
    for name in ("a.jpg", "b.JPEG"):
        Image.new("RGB", (40, 30)).save(tmp_path / name, "JPEG")
    assert speed.main(argv) == 0
    assert f"decode 2 JPEGs of {tmp_path}, 1 kB each" in capsys.readouterr().out


WINDOWS = [f"dense_windows_{stride}" for stride in (8, 4, 2, 1)]


def _differences(folder, capsys):
    argv = [*WINDOWS, "--small", "--rounds", "1", "--images", str(folder)]
    assert speed.main(argv) == 0
    rows = capsys.readouterr().out.splitlines()[-4:]
    for line, count in zip(rows, (2 * 3, 4 * 5, 7 * 9, 13 * 17), strict=True):
        assert f"| all {count} windows of 24 px on 40x36 of {folder / 'a.jpg'}, stride" in line
        assert f"| {count} of the windows, each cropped; timed and compared |" in line
        assert re.search(r"\| x[\d,.]+; logits of up to", line)
    return [float(re.search(r"differ by (\S+) at most", line)[1]) for line in rows]


def test_windows_of_an_image_of_the_folder_are_timed_and_compared(tmp_path, capsys, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (36, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    Image.new("RGB", (99, 99)).save(tmp_path / "b.jpg")
    assert max(_differences(tmp_path, capsys)) < 1e-4
    straight = DensePass.forward
    monkeypatch.setattr(DensePass, "forward", lambda *arguments: torch.roll(straight(*arguments), 1, 3))
    assert min(_differences(tmp_path, capsys)) > 1e-3


@pytest.mark.parametrize("name", ["decode", *WINDOWS[:1]])
def test_an_unusable_image_is_reported_in_one_line(name, tmp_path, capsys):
    if name == "decode":
        (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff and no more")
    else:
        Image.new("RGB", (100, 20)).save(tmp_path / "a.jpg")
    with pytest.raises(SystemExit) as stop:
        speed.main([name, "--small", "--rounds", "1", "--images", str(tmp_path)])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'a.jpg'}" in last and "Traceback" not in last
    assert (
        name == "decode"
        or "100x20 (width x height) is smaller than a window of 24 px; use larger images" in last
    )


def test_medians_of_neighbouring_turns():
    # The first turn of each side warms up and is not counted.
    ours = iter([9.0, 0.001, 0.002, 0.004])
    theirs = iter([9.0, 0.010, 0.004, 0.008])
    measured = measure(Part("x", "step", lambda: next(ours), "peer", lambda: next(theirs)), 3)
    assert measured.ours_ms == pytest.approx(2)
    assert measured.peer_ms == pytest.approx(8)
    assert measured.ratio == pytest.approx(2)


def test_rows():
    part = Part("thing", "update", lambda: 0.0, "other", lambda: 0.0, speedup=5)
    assert (
        row(part, Measured(2, 12, 6))
        == "| thing | 2.00 ms per update | other | 12.00 ms | x6.0 | >= x5, met |"
    )
    assert row(part, Measured(2, 8, 4)).endswith("| x4.0 | >= x5, MISSED |")
    assert (
        row(Part("alone", "image", lambda: 0.0), Measured(4))
        == "| alone | 4.00 ms per image | - | - | 250 images/s | - |"
    )
