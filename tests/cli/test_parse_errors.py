"""Mistakes in options are one line that names the option, the fault and the fix."""

from pathlib import Path
from typing import Any

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
    assert line(["fit", "--model=SSD", "--model.optim.learning_rate=0.1"]) == (
        "--model.optim.learning_rate: SSD has no argument 'optim.learning_rate'; did you mean optim.lr?"
    )
    for given, meant in (
        ("epochs", "trainer.max_epochs"), ("lr", "model.optim.lr"), ("batch_size", "data.batch_size"),
    ):  # fmt: skip
        message = line(["fit", *MODELS["detection"], *TINY, f"--{given}=3"])
        assert message.startswith(f"--{given}: no such option; did you mean --{meant}?")
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


def test_one_value_in_place_of_a_list_and_the_reverse(line: Line) -> None:
    voc = ["fit", "--model=SSD", "--data=VOCDataModule", "--data.root=x"]
    assert line([*voc, "--data.train=train"]) == ("--data.train: expected a list, got train; write [train]")
    assert line([*voc, "--data.train=2007/train,2012/train"]).endswith("; write [2007/train,2012/train]")
    for module in ("COCODataModule", "CityscapesDataModule"):
        message = line(["fit", "--model=SSD", f"--data={module}", "--data.root=x", "--data.val=[test]"])
        assert message == "--data.val: expected a string, got ['test']; write test"


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
    assert line(["fit", "--config=none.yaml"]) == "--config none.yaml: no such file; check the path"


def test_invalid_yaml(line: Line, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: [a\n b: 3")
    assert line(["fit", "--config=c.yaml"]).startswith("--config c.yaml, line 2: not valid YAML: ")
    (tmp_path / "c.yaml").write_text("model: FCN\nmodel: SSD\n")
    assert line(["fit", "--config=c.yaml"]).startswith("--config c.yaml, line 2: 'model' is a duplicate key")
    assert line(["fit", "--config={model: ["]).startswith("--config: the text is not YAML (")


def test_file_without_options(line: Line, tmp_path: Path) -> None:
    for text, found in (
        ("- a\n", "['a']"),
        ("hello", "hello"),
        ("", "nothing"),
        ("# a comment\n", "nothing"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        message = line(["fit", "--config=c.yaml"])
        assert message.startswith("--config c.yaml: expected options, such as ")
        assert message.endswith(f"got {found}; fix the file")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe")
    assert line(["fit", "--config=c.yaml"]).startswith("--config c.yaml: not a text in UTF-8 (")


def test_folder_as_a_file_of_options(line: Line, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert line(["fit", "--config=run"]) == "--config run: is a folder; give a YAML file"
    (tmp_path / "run" / "config.yaml").write_text("trainer: {max_epochs: 1}\n")
    assert line(["fit", "--config=run"]) == "--config run: is a folder; give run/config.yaml"
    assert line(["fit", "--config="]) == "--config: has no value; give a YAML file"


def test_empty_name_of_the_run_folder(line: Line) -> None:
    message = line(["fit", *MODELS["detection"], *TINY, "--run_dir="])
    assert message == "--run_dir: is empty; give a folder, or leave it out"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--data.root"], "--data.root"),
        (["--data.root", "--trainer.max_epochs", "3"], "--data.root"),
        (["--trainer.max_epochs", "--data.root", "x"], "--trainer.max_epochs"),
        (["--data.batch_size=3", "--data.root", "x", "--model.optim.lr"], "--model.optim.lr"),
        (["--model"], "--model"),
        (["--config"], "--config"),
    ],
)
def test_option_without_a_value(line: Line, arguments: list[str], option: str) -> None:
    message = line(["fit", *MODELS["detection"], *TINY, *arguments])
    assert message == f"{option}: has no value; give one, as in {option} VALUE"


def test_keys_beside_class_path(line: Line, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: {class_path: FCN, init_arg: {width: 8}}\n")
    assert line(["fit", "--config=c.yaml"]) == "--model: no such key 'init_arg'; did you mean init_args?"
    (tmp_path / "c.yaml").write_text("data: {class_path: VOCDataModule, init_args: {root: a}, seed: 3}\n")
    assert line(["fit", "--config=c.yaml"]).startswith(
        "--data: seed beside class_path; put them into init_args, as in {class_path: NAME, init_args: "
    )
    callbacks = "--trainer.callbacks=[{class_path: EarlyStopping, monitor: a}]"
    assert line(["fit", callbacks]).startswith("--trainer.callbacks: arguments beside class_path; ")


def test_arguments_of_a_nested_class(line: Line) -> None:
    base = ["fit", *MODELS["detection"], *TINY]
    assert line([*base, "--data.recipe.size=[8, 8]"]).startswith(
        "--data.recipe.size: --data.recipe is not given; give its class first: choose from Plain, "
    )
    assert line([*base, "--data.recipe=Plane"]) == "--data.recipe Plane: no such recipe; did you mean Plain?"
    assert line([*base, "--trainer.callbacks=[EarlyStoping]"]) == (
        "--trainer.callbacks EarlyStoping: no such callback; did you mean EarlyStopping?"
    )
    message = line([*base, "--trainer.logger=abacus"])
    assert message.startswith("--trainer.logger abacus: no such logger; choose from ")
    assert line([*base, "--model.optim=fast"]).startswith(
        "--model.optim fast: expected options of model.optim; "
    )
    assert line([*base, "--trainer=fast"]).startswith("--trainer fast: expected options of trainer; ")
    assert line([*base, "--checkpoint_every_n_steps=often"]) == (
        "--checkpoint_every_n_steps: expected a whole number above 0, got often"
    )
    assert line([*base, "--trainer.max_epochs="]).endswith("got an empty value")


@pytest.mark.parametrize(
    ("option", "name"),
    [("logger", "TensorBoardLogger"), ("callbacks", "RichProgressBar"), ("callbacks", "RichModelSummary")],
)
def test_a_class_whose_package_is_missing(
    line: Line, shapes: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str
) -> None:
    for flag in ("RICH", "TENSORBOARD", "TENSORBOARDX"):
        modules = ("callbacks.progress.rich_progress", "callbacks.rich_model_summary", "loggers.tensorboard")
        for module in modules:
            monkeypatch.setattr(f"lightning.pytorch.{module}._{flag}_AVAILABLE", False, raising=False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--run_dir=here"]
    extra = ["--trainer.logger.save_dir=x"] if option == "logger" else []
    message = line([*arguments, f"--trainer.{option}={name}", *extra])
    assert message.startswith(f"--trainer.{option} {name}: a package is missing (")
    assert message.endswith("; install it")


def test_task(line: Line, shapes: Path) -> None:
    message = line(["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--data.task=segmentation"])
    assert (
        message == "--data.task segmentation: SSD is a detection model; give --data.task detection, or "
        "leave it out"
    )


def test_checkpoint(line: Line, tmp_path: Path, fitted: Path) -> None:
    assert line(["test", "--ckpt_path=none.ckpt"]).startswith("none.ckpt: no such checkpoint")
    assert line(["test", "--ckpt_path=best"]).startswith("--ckpt_path best: the run is not given")
    assert "nowhere: no such run" in line(["fit", "--ckpt_path=last", "--run_dir=nowhere"])
    (tmp_path / "corrupt.ckpt").write_bytes((fitted / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    assert line(["test", "--ckpt_path=corrupt.ckpt"]).startswith(
        "corrupt.ckpt: the file is corrupt or is not a checkpoint"
    )
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    assert line(["test", "--ckpt_path=other.ckpt"]).startswith("other.ckpt: not a checkpoint of a training")
    for description in (3, {"config": "a: ["}, {"config": "text"}):
        torch.save({"state_dict": {}, "segdet": description}, tmp_path / "other.ckpt")
        assert "corrupt; give another file" in line(["test", "--ckpt_path=other.ckpt"])
    content: dict[str, Any] = {"state_dict": {}, "segdet": {"class_path": "a.B"}}
    torch.save(content, tmp_path / "other.ckpt")
    assert line(["test", "--ckpt_path=other.ckpt"]).startswith(
        "other.ckpt: holds weights, but is not a checkpoint of"
    )
    torch.save(content | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "other.ckpt")
    assert line(["test", "--ckpt_path=other.ckpt"]).startswith("--data, --model: missing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_device(line: Line, shapes: Path, tmp_path: Path) -> None:
    message = line(
        ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--trainer.accelerator=cuda",
         "--run_dir=here", "--data.recipe=Plain", "--model.optim.lr=0.01"]
    )  # fmt: skip
    assert message.startswith("--trainer.accelerator: ")
    assert "CUDA" in message


def test_time(line: Line, shapes: Path) -> None:
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--run_dir=here"]
    assert "abc" in line([*arguments, "--trainer.max_time=abc"])


def test_model_that_cannot_be_built(line: Line, shapes: Path) -> None:
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--run_dir=here"]
    message = line([*arguments, "--model.backbone=resnet1888"])
    assert "resnet1888" in message


@pytest.mark.parametrize("place", [[], ["--run_dir=some/where"]])
def test_data_folder(place: list[str], line: Line, tmp_path: Path) -> None:
    arguments = ["fit", *MODELS["detection"], "--data=VOCDataModule", "--data.root=nowhere"]
    assert line([*arguments, *place]).startswith("nowhere")
    assert not list(tmp_path.iterdir())  # neither the run's folder nor its parents


def test_an_existing_folder_is_kept_after_a_failure(line: Line, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    arguments = [*MODELS["detection"], "--data=VOCDataModule", "--data.root=nowhere"]
    assert line(["fit", *arguments, "--run_dir=here/run"]).startswith("nowhere")
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_help_of_a_class_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command(["fit", "--model.help=SSD"])
    assert capsys.readouterr().out.startswith("usage: segdet ")
