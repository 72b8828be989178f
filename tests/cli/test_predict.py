"""``segdet predict``: files and overlays."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import MODELS, TINY, Line

import segdet
from segdet.cli.main import main
from segdet.data.formats.cityscapes import LABELS
from segdet.data.formats.voc import VOCReader
from segdet.data.sample import Batch, Prediction
from segdet.data.shapes.make import make_shapes
from segdet.data.video import Video, VideoWriter
from segdet.detection import SSD


def write_video(path: Path, frames: int, rate: float) -> Path:
    """Write frames of 64x64 pixels with a square that moves."""
    writer = VideoWriter(path, rate)
    for index in range(frames):
        picture = np.full((64, 64, 3), 90, np.uint8)
        picture[20:40, 2 * index : 2 * index + 20] = (200, 40, 40)
        writer.write(picture)
    writer.close()
    return path


def test_boxes(run: Path, shapes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for path, name in zip(sorted((shapes / "JPEGImages").iterdir()), ("a", "more/a"), strict=False):
        shutil.copy(path, photos / f"{name}.jpg")
    out = tmp_path / "out"
    arguments = ["--images", str(photos), f"--run_dir={out}"]
    assert main(["predict", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), *arguments]) == 0
    results = json.loads((out / "predictions" / "predictions.json").read_text())
    assert {entry["file_name"] for entry in results} <= {"a.jpg", "more/a.jpg"}
    assert results
    for entry in results:
        x, y, width, height = entry["bbox"]
        assert -0.01 <= x <= x + width <= 64.01
        assert -0.01 <= y <= y + height <= 64.01
        assert 0 < entry["score"] <= 1
    overlays = {p.relative_to(out).as_posix() for p in (out / "predictions" / "overlays").rglob("*.png")}
    assert overlays == {"predictions/overlays/a.png", "predictions/overlays/more/a.png"}
    assert not list((out / "predictions").glob(".*"))


def test_photographs_are_upright_and_have_distinct_outputs(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    picture = Image.fromarray(np.full((400, 700, 3), 90, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(photos / "a.jpg", exif=exif)
    picture.save(photos / "a.png")
    assert main(["predict", f"--ckpt_path={run}", "--images", str(photos)]) == 0
    sizes = {}
    for path in (run / "predictions" / "overlays").iterdir():
        with Image.open(path) as overlay:
            sizes[path.name] = overlay.size
    assert sizes == {"a.jpg.png": (400, 700), "a.png.png": (700, 400)}


def outputs(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_small_images_are_enlarged_before_drawing(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 80, 3), 90, np.uint8)).save(tmp_path / "small.png")
    assert main(["predict", f"--ckpt_path={run}", "--images", str(tmp_path / "small.png")]) == 0
    with Image.open(run / "predictions" / "overlays" / "small.png") as overlay:
        assert overlay.size == (480, 240)


def test_skipped_files_of_one_type_are_reported_in_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labelme").mkdir()
    Image.fromarray(np.full((40, 70, 3), 90, np.uint8)).save("labelme/1.jpg")
    for name in ("1.json", "2.json", "3.json", "notes.pdf", "README", "LICENSE"):
        Path("labelme", name).touch()
    assert main(["predict", f"--ckpt_path={run}", "--images", "labelme", "--run_dir=out"]) == 0
    lines = [
        "3 files of the type .json are not read as images or videos, listed in out/predictions/left_out.txt",
        "2 files without a suffix are not read as images or videos, listed in out/predictions/left_out.txt",
        "labelme/notes.pdf: files of the type .pdf are not read as images or videos",
    ]
    message = capsys.readouterr().err
    assert all(f"  {line}\n" in message for line in lines)
    assert message.count("read as images or videos") == len(lines)
    assert len(Path("out/predictions/left_out.txt").read_text().splitlines()) == 6


def test_files_that_are_skipped_are_counted_and_listed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 70, 3), 90, np.uint8)).save(name)
    content = Path("b/2.jpg").read_bytes()
    Path("b/2.jpg").write_bytes(content[: len(content) // 2])
    Path("b/notes.pdf").write_text("")
    Path("list.txt").write_text("a/1.jpg\nmissing.jpg\n")
    assert main(["predict", f"--ckpt_path={run}", "--images", "a", "b/*", "list.txt", "--run_dir=out"]) == 0
    reasons = [
        "a/1.jpg: given more than once",
        "b/2.jpg: truncated JPEG: the end of the image is missing; download or export it again",
        "b/notes.pdf: files of the type .pdf are not read as images or videos",
        "missing.jpg: no such file (line 2 of list.txt)",
    ]
    message = capsys.readouterr().err
    assert "left out of the data, 4 in all:\n" + "".join(f"  {reason}\n" for reason in reasons) in message
    assert "segdet: predicted 2 images; see out/predictions" in message
    assert Path("out/predictions/left_out.txt").read_text().splitlines() == reasons
    assert outputs(Path("out/predictions/overlays")) == ["a/1.png", "b/1.png"]


def test_a_second_prediction_replaces_the_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((40, 70, 3), 90, np.uint8)).save(tmp_path / name / f"{name}.png")
    (tmp_path / "a" / "notes.pdf").write_text("")
    panels = outputs(run / "predictions")
    for name in ("a", "b"):
        assert main(["predict", f"--ckpt_path={run}", "--images", str(tmp_path / name)]) == 0
    assert outputs(run / "predictions") == sorted([*panels, "overlays/b.png", "predictions.json"])
    assert capsys.readouterr().err.count("predicted 1 image, replacing earlier predictions; see") == 1


def test_boxes_in_a_video(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    video = write_video(tmp_path / "photos" / "clip.mp4", frames=12, rate=10)
    Image.fromarray(np.full((40, 70, 3), 90, np.uint8)).save(tmp_path / "photos" / "clip.png")
    options = [
        "--images",
        str(tmp_path / "photos"),
        "--data.every_n_frames=5",
        f"--run_dir={tmp_path / 'out'}",
    ]
    assert main(["predict", f"--ckpt_path={run}", *options]) == 0
    folder = tmp_path / "out" / "predictions"
    assert outputs(folder) == ["overlays/clip.mp4.mp4", "overlays/clip.png.png", "predictions.json"]
    overlay = Video(folder / "overlays" / "clip.mp4.mp4")
    assert [frame.pixels.shape for frame in overlay.frames()] == [(480, 480, 3)] * 3
    assert overlay.rate == 2.0
    results = json.loads((folder / "predictions.json").read_text())
    places = {(e["image_id"], e["file_name"], e.get("frame"), e.get("seconds")) for e in results}
    assert places <= {
        (1, "clip.png", None, None), (2, "clip.mp4", 0, 0.0), (3, "clip.mp4", 5, 0.5), (4, "clip.mp4", 10, 1.0),
    }  # fmt: skip
    # A frame gives the same boxes as an image in memory with the same pixels.
    frame = next(Video(video).frames())
    expected = segdet.load(run).predict_image(frame.pixels)["scores"].tolist()
    assert [e["score"] for e in results if e.get("frame") == 0] == pytest.approx(expected, abs=1e-5)
    assert expected


def test_an_interrupted_video_is_playable(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "clip.mp4", frames=12, rate=10)
    predict, batches = SSD.predict_batch, []

    def predict_two_batches(self: SSD, batch: Batch) -> list[Prediction]:
        batches.append(batch)
        if len(batches) > 2:
            raise KeyboardInterrupt
        return predict(self, batch)

    monkeypatch.setattr(SSD, "predict_batch", predict_two_batches)
    options = ["--images", str(video), "--data.eval_batch_size=4", f"--run_dir={tmp_path / 'out'}"]
    assert main(["predict", f"--ckpt_path={run}", *options]) == 130
    assert "segdet: stopped; the predictions made so far are in" in capsys.readouterr().err
    folder = tmp_path / "out" / "predictions"
    assert len(list(Video(folder / "overlays" / "clip.mp4").frames())) == 8
    frames = {entry["frame"] for entry in json.loads((folder / "predictions.json").read_text())}
    assert frames and frames <= set(range(8))


def test_masks_of_a_video(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
    video = write_video(tmp_path / "clip.mp4", frames=3, rate=10)
    panels = outputs(folder / "predictions")
    assert main(["predict", f"--ckpt_path={folder}", "--images", str(video)]) == 0
    masks = [f"masks/clip.mp4/00000{index}.png" for index in range(3)]
    expected = [*panels, *masks, "masks/clip.mp4/frames.csv", "overlays/clip.mp4"]
    assert outputs(folder / "predictions") == sorted(expected)
    table = (folder / "predictions" / "masks" / "clip.mp4" / "frames.csv").read_text()
    assert table == "frame,seconds\n0,0.000\n1,0.100\n2,0.200\n"
    sizes = {frame.pixels.shape for frame in Video(folder / "predictions" / "overlays" / "clip.mp4").frames()}
    assert len(sizes) == 1


def test_mistakes_are_reported_in_one_line(run: Path, tmp_path: Path, line: Line) -> None:
    predict = ["predict", f"--ckpt_path={run}"]
    assert line([*predict, "--images", "missing.jpg"]) == "missing.jpg: no such file or folder; fix the path"
    (tmp_path / "notes.pdf").write_text("")
    assert "notes.pdf: no image or video (1 skipped" in line([*predict, "--images", "notes.pdf"])
    assert line([*predict, "--images"]) == "--images: expected at least one argument; give it a value"
    assert "--images and --data" in line([*predict, "--images", "notes.pdf", "--data=VOCDataModule"])


@pytest.mark.usefixtures("fitted")  # which writes the data
def test_classes_come_from_the_checkpoint(shapes: Path, tmp_path: Path) -> None:
    """The model was trained with a file of class names, an option that a folder of images does not have."""
    folder, photos = tmp_path / "run", tmp_path / "photos"
    classes = VOCReader(shapes, ["train"], "detection").class_names
    (tmp_path / "names.txt").write_text("\n".join(classes) + "\n")
    voc = ["--data=VOCDataModule", f"--data.root={shapes}", f"--data.class_names={tmp_path}/names.txt"]
    tiny = [word for word in TINY if not word.startswith("--data")]
    loading = ["--data.batch_size=4", "--data.num_workers=0"]
    assert main(["fit", *MODELS["detection"], *voc, *loading, *tiny, f"--run_dir={folder}"]) == 0
    photos.mkdir()
    Image.fromarray(np.full((70, 50, 3), 90, np.uint8)).save(photos / "grey.png")
    arguments = ["--images", str(photos)]
    assert main(["predict", f"--ckpt_path={folder}", *arguments]) == 0
    assert (folder / "predictions" / "predictions.json").exists()


def test_masks(shapes: Path, tmp_path: Path) -> None:
    folder, photos = tmp_path / "run", tmp_path / "photos"
    assert main(["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
    photos.mkdir()
    Image.fromarray(np.full((70, 50, 3), 90, np.uint8)).save(photos / "grey.png")
    arguments = ["--images", str(photos)]
    assert main(["predict", f"--ckpt_path={folder}", *arguments]) == 0
    with Image.open(folder / "predictions" / "masks" / "grey.png") as mask:
        assert (mask.mode, mask.size) == ("P", (50, 70))
        assert np.asarray(mask).max() <= 6
        assert mask.getpalette()[3:6] == [128, 0, 0]
    assert (folder / "predictions" / "overlays" / "grey.png").exists()


def test_masks_of_cityscapes_hold_its_label_ids(tmp_path: Path) -> None:
    """The checkpoint contains the ids, so this also holds for a folder of photographs."""
    root = make_shapes(
        tmp_path / "city", "cityscapes", train=4, val=2, test=2, size=(64, 64), workers=1, progress=False
    )
    folder, photos = tmp_path / "run", tmp_path / "photos"
    tiny = [word for word in TINY if not word.startswith("--data")]
    data = ["--data=CityscapesDataModule", f"--data.root={root}", "--data.test=test"]
    loading = ["--data.batch_size=2", "--data.num_workers=0"]
    assert main(["fit", *MODELS["segmentation"], *data, *loading, *tiny, f"--run_dir={folder}"]) == 0
    photos.mkdir()
    for image in sorted((root / "leftImg8bit" / "test").rglob("*.png")):
        shutil.copy(image, photos)
    (root / "leftImg8bit" / "train").rename(root / "elsewhere")  # prediction does not need it
    out = [tmp_path / "out", tmp_path / "photos_out"]
    assert main(["predict", f"--ckpt_path={folder}", *data[2:], f"--run_dir={out[0]}"]) == 0
    of_photos = ["--images", str(photos)]
    assert main(["predict", f"--ckpt_path={folder}", *of_photos, f"--run_dir={out[1]}"]) == 0
    masks = [sorted((place / "predictions" / "masks").rglob("*.png")) for place in out]
    assert [len(paths) for paths in masks] == [2, 2]
    for split, photo in zip(*masks, strict=True):
        with Image.open(split) as one, Image.open(photo) as other:
            assert one.mode == other.mode == "L"
            assert np.array_equal(one, other)
            assert set(np.unique(one)) <= {label.id for label in LABELS if not label.ignore_in_eval}
