"""`segdet reproduce` lists what differs, and compares metrics and weights."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from stopped_runs import Training
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.data.shapes.make import make_shapes
from segdet.runs.inputs import Inputs


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with images as PNG, in which a test can change a single pixel."""
    root = make_shapes(
        tmp_path_factory.mktemp("png") / "shapes", "voc", train=8, val=4, test=4, size=(64, 64), workers=1,
        progress=False,
    )  # fmt: skip
    for path in sorted((root / "JPEGImages").iterdir()):
        image = cv2.imread(str(path))
        cv2.imwrite(str(path.with_suffix(".png")), image)
        path.unlink()
    return root


def train(task: str, root: Path, folder: Path) -> Path:
    data = [option for option in TINY if "data" not in option]
    arguments = [
        "--data=VOCDataModule", f"--data.root={root}", "--data.test=[test]", "--data.batch_size=4",
        "--data.num_workers=0", *data,
    ]  # fmt: skip
    assert main(["fit", *MODELS[task], *arguments, f"--run_dir={folder}", "--wandb=false"]) == 0
    return folder


@pytest.fixture(scope="module")
def original(lossless: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("segmentation", lossless, tmp_path_factory.mktemp("run") / "original")


@pytest.fixture
def copied(original: Path, lossless: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the original run and of its dataset, which a test may change."""
    root = Path(shutil.copytree(lossless, tmp_path / "data"))
    run = Path(shutil.copytree(original, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["root"] = str(root)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    inputs = Inputs.read(run)
    assert inputs is not None
    inputs.root = str(root)
    inputs.write(run)
    return run, root


def edit(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("task", MODELS)
def test_two_trainings_are_identical(
    task: str, lossless: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = original if task == "segmentation" else train(task, lossless, tmp_path / "first")
    second = train(task, lossless, tmp_path / "second")
    capsys.readouterr()
    assert main(["reproduce", str(first), "--against", str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "no difference from the original in data, code, settings, packages and hardware"
    assert lines[1].startswith("identical: ")
    report = json.loads((second / "reproduction.json").read_text())
    assert report["outcome"] == "identical" and report["weights"] > 10 and report["metrics"] > 5


def test_a_changed_weight_is_reported(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(original, tmp_path / "other"))
    path = other / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    name = next(name for name, value in checkpoint["state_dict"].items() if value.is_floating_point())
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name] + 0.5
    torch.save(checkpoint, path)
    assert main(["reproduce", str(original), "--against", str(other)]) == 1
    output = capsys.readouterr().out
    assert "different: " in output
    assert f"last.ckpt: {name}: by up to 0.5" in output
    assert "the seed noise is unknown" in output


def test_nothing_differs_from_a_run_that_has_just_ended(
    original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", str(original), "--check"]) == 0
    assert capsys.readouterr().out.startswith("no difference")


def test_a_changed_pixel_is_named_first(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = copied
    stem = (root / "ImageSets" / "Main" / "train.txt").read_text().split()[3]
    path = root / "JPEGImages" / f"{stem}.png"
    before = path.stat()
    image = cv2.imread(str(path))
    image[5, 7, 0] ^= 1
    cv2.imwrite(str(path), image)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert np.count_nonzero(cv2.imread(str(path)) != image) == 0
    edit(run / "provenance.json", "packages", "numpy", value="1.0")
    assert main(["reproduce", str(run), "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"data: train: JPEGImages/{stem}.png changed"
    assert lines[1].startswith("packages: numpy 1.0 -> ")
    assert len(lines) == 2


def test_a_missing_file_is_named_and_nothing_is_trained(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = copied
    stem = (root / "ImageSets" / "Main" / "val.txt").read_text().split()[1]
    (root / "JPEGImages" / f"{stem}.png").unlink()
    assert main(["reproduce", str(run)]) == 2
    output = capsys.readouterr()
    assert output.out.splitlines() == [f"data: val: JPEGImages/{stem}.png is missing"]
    assert output.err == (
        f"segdet: error: {root}: val: JPEGImages/{stem}.png: missing in the dataset; restore the data, then try again\n"
    )
    assert not run.with_name("run-reproduced").exists()


def test_a_missing_dataset_is_reported_file_by_file(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = copied
    shutil.rmtree(root)
    assert main(["reproduce", str(run), "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" is missing")
    assert len(lines) == 11 and lines[-1].startswith("data: ") and lines[-1].endswith(" more differences")


@pytest.mark.parametrize(
    ("keys", "value", "line"),
    [
        (("packages", "torch"), "1.0", "packages: torch 1.0 -> "),
        (("python",), "3.1", "packages: python 3.1 -> "),
        (("hardware", "threads"), 7, "hardware: threads 7 -> "),
        (("hardware", "cpu"), "Z80", "hardware: cpu Z80 -> "),
    ],
)
def test_another_environment_is_listed(
    keys: tuple[str, ...],
    value: object,
    line: str,
    copied: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(copied[0] / "provenance.json", *keys, value=value)
    assert main(["reproduce", str(copied[0]), "--check"]) == 1
    (found,) = capsys.readouterr().out.splitlines()
    assert found.startswith(line)


def test_other_code_is_listed_by_module(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = Inputs.read(copied[0])
    assert inputs is not None
    inputs.code["segdet/task.py"] = "0" * 16
    inputs.write(copied[0])
    assert main(["reproduce", str(copied[0]), "--check"]) == 1
    assert capsys.readouterr().out.splitlines() == ["code: segdet/task.py changed"]


def test_an_added_image_and_another_order_are_listed(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = copied
    sets = root / "ImageSets"
    for path in sets.rglob("train.txt"):
        stems = path.read_text().split()
        added = path.with_name("test.txt").read_text().split()[0]
        path.write_text("\n".join([*reversed(stems), added]) + "\n")
    assert main(["reproduce", str(run), "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"data: train: JPEGImages/{added}.png is new" in lines
    assert "data: train has the same images in another order" in lines


def test_changes_of_a_resumed_original_are_listed(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    edit(
        copied[0] / "provenance.json", "resumed",
        value=[{"changes": ["--model.optim.lr 0.1 -> 0.01"], "inputs": "other"}],
    )  # fmt: skip
    assert main(["reproduce", str(copied[0]), "--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "settings: the original was resumed with --model.optim.lr 0.1 -> 0.01",
        "settings: data or code changed before the original was resumed",
    ]


def test_a_run_without_digests_is_compared_by_names_and_sizes(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = copied
    (run / "inputs.json.gz").unlink()
    assert main(["reproduce", str(run), "--check"]) == 0
    next((root / "JPEGImages").iterdir()).write_bytes(b"")
    assert main(["reproduce", str(run), "--check"]) == 1
    assert "the fingerprint of names and sizes" in capsys.readouterr().out


def test_mistakes_are_reported_in_one_line(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, reason in (
        ([str(tmp_path)], "no run in it"),
        ([str(original), "--run_dir", str(original)], "holds a run"),
        ([str(original), "--against", str(tmp_path / "none")], "no run in it"),
        ([str(original), "--against", str(original)], "is the original run itself"),
    ):
        assert main(["reproduce", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line


@pytest.mark.slow
def test_a_tested_run_is_trained_and_tested_again(
    original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(original, tmp_path / "run"))
    assert main(["test", f"--ckpt_path={run}", "--trainer.accelerator=cpu"]) == 0
    assert main(["reproduce", str(run)]) == 0
    record = json.loads((tmp_path / "run-reproduced" / "result.json").read_text())
    assert "test/miou" in record["metrics"]
    assert "identical: " in capfd.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-reproduced", "run-reproduced.log"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine; otherwise a minute
@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_run_is_reproduced_up_to_its_end(
    processes: int, lossless: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    callback = {"class_path": "segdet.runs.reproduction.InterruptAt", "init_args": {"step": 3}}
    run = tmp_path / "run"
    training = Training(
        [
            "fit", *MODELS["detection"], "--data=VOCDataModule", f"--data.root={lossless}", "--data.batch_size=2",
            "--data.num_workers=0", "--trainer.max_epochs=4", "--trainer.accelerator=cpu",
            f"--trainer.devices={processes}", *(["--trainer.strategy=ddp"] if processes > 1 else []),
            f"--run_dir={run}", f"--trainer.callbacks=[{json.dumps(callback)}]", "--trainer.log_every_n_steps=1",
        ],
        tmp_path / "log",
    )  # fmt: skip
    assert training.end()[0] == 143, training.messages
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["callbacks"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["reproduce", str(run)]) == 0
    output = capfd.readouterr().out
    assert "identical: " in output and "weights of last.ckpt" in output
    checkpoint = torch.load(tmp_path / "run-reproduced" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
