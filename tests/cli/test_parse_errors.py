"""Mistakes in options are one line that names the option, the fault and the fix."""

from pathlib import Path

import pytest
import torch
from tiny_runs import MODELS, TINY, Line

from segdet.cli.train_options import parse_command


def test_key(line: Line) -> None:
    assert line(["fit", "--model=SSD", "--model.bakbone=resnet18"]) == (
        "--model.bakbone: SSD has no argument 'bakbone'; did you mean backbone?"
    )
    assert line(["fit", "--model=SSD", "--model.optim.lrr=0.1"]) == (
        "--model.optim.lrr: SSD has no argument 'optim.lrr'; did you mean optim.lr?"
    )
    message = line(["fit", *MODELS["detection"], *TINY, "--trainer.max_epoch=3"])
    assert message.startswith("--trainer.max_epoch: no such option; did you mean --trainer.max_epochs?")
    message = line(["fit", *MODELS["detection"], *TINY, "--run_dri=x"])
    assert message.startswith("--run_dri: no such option; did you mean --run_dir?")


def test_key_in_a_file(line: Line, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("trainer: {max_epoch: 3}\n")
    assert (
        line(["fit", "--config=c.yaml"]) == "trainer.max_epoch: no such key; did you mean trainer.max_epochs?"
    )
    (tmp_path / "c.yaml").write_text("modle: {class_path: SSD}\n")
    assert line(["fit", "--config=c.yaml"]) == "modle: no such key; did you mean model?"
    (tmp_path / "c.yaml").write_text("model: {class_path: SSD, init_args: {optim: {lrr: 1}}}\n")
    message = line(["fit", "--config=c.yaml"])
    assert "lrr" in message
    assert "lr" in message.split("did you mean")[1]


def test_value(line: Line) -> None:
    assert (
        line(["fit", "--model=SSD", "--model.width=wide"])
        == "--model.width: expected a whole number, got wide"
    )
    message = line(["fit", *MODELS["detection"], *TINY, "--trainer.max_epochs=many"])
    assert message == "--trainer.max_epochs: expected a whole number, got many"
    message = line(["fit", *MODELS["detection"], *TINY, "--data.on_bad_sample=ignore"])
    assert message == "--data.on_bad_sample: expected one of raise, skip, got ignore"
    message = line(["fit", *MODELS["detection"], *TINY, "--checkpoint_every_n_steps=0"])
    assert message == "--checkpoint_every_n_steps: expected a whole number above 0, got 0"


def test_value_out_of_range(line: Line) -> None:
    message = line(["fit", "--model=SSD", *TINY, "--checkpoint_every_n_steps=0"])
    assert message == "--checkpoint_every_n_steps: expected a whole number above 0, got 0"


def test_class(line: Line) -> None:
    assert line(["fit", "--model=SDS"]) == "--model SDS: no such model; did you mean SSD?"
    assert line(["fit", "--model.help=SDS"]) == "--model.help SDS: no such model; did you mean SSD?"
    message = line(["fit", "--model=SSD", "--data=VOCDatamodul"])
    assert message == "--data VOCDatamodul: no such data module; did you mean VOCDataModule?"


def test_missing(line: Line) -> None:
    assert line(["fit"]).startswith("--data, --model: missing")
    assert line(["fit", "--model=SSD", "--data=VOCDataModule"]).startswith(
        "--data.root: missing, but required by VOCDataModule"
    )
    assert line(["fit", "--config=none.yaml"]).endswith("none.yaml: no such file; fix the path")


def test_invalid_yaml(line: Line, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: [a\n b: 3")
    assert line(["fit", "--config=c.yaml"]).startswith("--config: not valid YAML: ")


def test_file_without_options(line: Line, tmp_path: Path) -> None:
    for text, found in (("- a\n", "- a"), ("hello", "hello"), ("", "nothing")):
        (tmp_path / "c.yaml").write_text(text)
        assert line(["fit", "--config=c.yaml"]).endswith(f"got {found}; fix the file")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe")
    assert line(["fit", "--config=c.yaml"]).startswith("--config: not a text in UTF-8 (")


def test_task(line: Line, shapes: Path) -> None:
    message = line(["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--data.task=segmentation"])
    assert (
        message == "--data.task segmentation: SSD is a detection model; give --data.task detection, or "
        "leave it out"
    )


def test_checkpoint(line: Line, tmp_path: Path, fitted: Path) -> None:
    assert line(["test", "--ckpt_path=none.ckpt"]).startswith("none.ckpt: no such checkpoint")
    assert line(["test", "--ckpt_path=best"]).startswith("--ckpt_path best: of which run?")
    assert "no such checkpoint" in line(["fit", "--ckpt_path=last", "--run_dir=nowhere"])
    (tmp_path / "corrupt.ckpt").write_bytes((fitted / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    assert line(["test", "--ckpt_path=corrupt.ckpt"]).startswith(
        "corrupt.ckpt: the file is corrupt or is not a checkpoint"
    )
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    assert line(["test", "--ckpt_path=other.ckpt"]).startswith("other.ckpt: not a checkpoint of a training")
    for description in (3, {"config": "a: ["}, {"config": "text"}):
        torch.save({"state_dict": {}, "segdet": description}, tmp_path / "other.ckpt")
        assert "corrupt; give another file" in line(["test", "--ckpt_path=other.ckpt"])
    torch.save({"state_dict": {}, "segdet": {"class_path": "a.B"}}, tmp_path / "other.ckpt")
    assert line(["test", "--ckpt_path=other.ckpt"]).startswith("--data, --model: missing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_device(line: Line, shapes: Path, tmp_path: Path) -> None:
    message = line(
        ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--trainer.accelerator=cuda",
         "--run_dir=here"]
    )  # fmt: skip
    assert message.startswith("--trainer: ")
    assert "CUDA" in message


def test_time(line: Line, shapes: Path) -> None:
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--run_dir=here"]
    assert "abc" in line([*arguments, "--trainer.max_time=abc"])


def test_model_that_cannot_be_built(line: Line, shapes: Path) -> None:
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--run_dir=here"]
    message = line([*arguments, "--model.backbone=resnet1888"])
    assert "resnet1888" in message


def test_data_folder(line: Line, tmp_path: Path) -> None:
    message = line(
        ["fit", *MODELS["detection"], "--data=VOCDataModule", "--data.root=nowhere", "--run_dir=here"]
    )
    assert message.startswith("nowhere")
    assert not (tmp_path / "here" / "config.yaml").exists()


def test_help_of_a_class_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command(["fit", "--model.help=SSD"])
    assert capsys.readouterr().out.startswith("usage: segdet ")
