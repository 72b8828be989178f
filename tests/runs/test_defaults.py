"""The smaller networks that a training on a CPU chooses."""

from pathlib import Path

import pytest
import yaml
from torch import nn

from segdet.cli.main import main
from segdet.detection import FCOS, SSD, YOLOX, FasterRCNN, MaskRCNN, RetinaNet
from segdet.localization import BoxHead
from segdet.runs import defaults
from segdet.runs.defaults import choose_network, describe
from segdet.segmentation import FCN, UNet
from segdet.task import Task

FAMILIES: list[type[Task]] = [FCN, UNet, BoxHead, FasterRCNN, MaskRCNN, RetinaNet, FCOS, SSD, YOLOX]


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "hardware", lambda: "cpu")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_network_for_a_cpu_is_smaller_than_the_default_network(family: type[Task]) -> None:
    chosen = choose_network(family, {"model.class_path", "data.root"})
    arguments = {name.removeprefix("model.init_args."): value for name, value in chosen.items()}
    assert arguments.pop("optim.name") == "muon"
    assert arguments == family.cpu_network
    small, full = family(class_names=["a", "b"], **arguments), family(class_names=["a", "b"])
    assert parameters(small) < parameters(full) / 3


def test_a_given_option_of_the_optimizer_keeps_the_default_optimizer() -> None:
    chosen = choose_network(SSD, {"model.class_path", "model.optim.lr"})
    assert chosen and "model.init_args.optim.name" not in chosen


@pytest.mark.parametrize("option", ["model.width", "model.backbone_options.channels", "model.weights"])
def test_a_given_architecture_keeps_the_default_network(option: str) -> None:
    assert choose_network(SSD, {"model.class_path", option}) == {}


def test_an_accelerator_keeps_the_default_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "hardware", lambda: "gpu")
    assert choose_network(SSD, {"model.class_path"}) == {}


def test_the_description_names_the_channels_of_the_chosen_network() -> None:
    chosen = choose_network(FCOS, set()) | {"data.init_args.recipe.init_args.size": [240, 320]}
    assert describe(chosen) == (
        "chosen for these data and this CPU: model.backbone_options channels 32-64-128-256, "
        "model.optim.name muon, data.recipe.size 240x320"
    )


def test_a_training_records_and_keeps_the_chosen_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SSD, "cpu_network", {"backbone_options": {"channels": [4, 4, 8, 8]}, "width": 8})
    data = [
        "--data=ShapesDataModule", "--data.num_train=4", "--data.num_val=2", "--data.num_test=2",
        "--data.image_size=[64, 64]", f"--data.root={tmp_path / 'shapes'}",
    ]  # fmt: skip
    run = tmp_path / "run"
    limits = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    assert main(["fit", "--model=SSD", *data, *limits, f"--run_dir={run}"]) == 0
    assert "model.backbone_options channels 4-4-8-8" in capsys.readouterr().err
    arguments = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert (arguments["width"], arguments["backbone_options"]) == (8, {"channels": [4, 4, 8, 8]})
    assert (arguments["optim"]["name"], arguments["optim"]["lr"]) == ("muon", 2e-3)
    # A test and a resumed training use the network of the checkpoint, even where another one would be chosen.
    monkeypatch.setattr(SSD, "cpu_network", {"width": 16})
    assert main(["test", f"--ckpt_path={run}"]) == 0
    assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 0


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
