"""Test pretrained weights: every kind of source, the checks before loading, and the restoring context."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, WeightsEnum

from segdet.nn.weights import is_restoring, load_state, load_weights, published_name, read_weights, restoring
from segdet.util.errors import UserError

STATE = {"weight": torch.full((2, 3), 5.0), "bias": torch.zeros(2)}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """The same weights as a file of torch, as safetensors, as a training script's file and as a run."""
    from safetensors.torch import save_file

    torch.save(STATE, tmp_path / "weights.pth")
    torch.save(STATE, tmp_path / "weights")
    save_file(STATE, tmp_path / "weights.safetensors")
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "training.pt")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": STATE}, tmp_path / "run" / "checkpoints" / "best.ckpt")
    names = ("weights.pth", "weights", "weights.safetensors", "training.pt", "run")
    return {name: str(tmp_path / name) for name in names}


@pytest.mark.parametrize("kind", ["weights.pth", "weights", "weights.safetensors", "training.pt", "run"])
def test_files_and_runs(kind: str, sources: dict[str, str]) -> None:
    network = nn.Linear(3, 2)
    load_weights(network, sources[kind], "Linear")
    assert torch.equal(network.weight, STATE["weight"])


def test_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **_: {"name": self.name})
    published = [ResNet50_Weights, ResNet18_Weights]
    assert read_weights("IMAGENET1K_V1", "ResNet", published)[0] == "IMAGENET1K_V1"
    assert read_weights(True, "ResNet", published)[0] == "IMAGENET1K_V2"
    assert published_name("DEFAULT", "ResNet", [ResNet18_Weights]) == "IMAGENET1K_V1"
    with pytest.raises(
        UserError,
        match=r"^--model\.weights: torchvision has no weights 'V9' of ResNet; it has IMAGENET1K_V1, .*file$",
    ):
        read_weights("V9", "ResNet", published)
    with pytest.raises(UserError, match=r"^--x: there are no published weights of Linear; give a local file"):
        read_weights(True, "Linear", option="--x")


def test_weights_are_converted_and_others_are_ignored(sources: dict[str, str]) -> None:
    network = nn.Linear(3, 2)
    load_weights(network, sources["run"], "Linear", convert=lambda state: {"other": state["bias"], **state})
    assert torch.equal(network.bias, STATE["bias"])


def test_missing_and_wrong_weights_are_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^a\.pth: not the weights of Linear: 1 of 2 are missing, such as bias"
    ):
        load_state(nn.Linear(3, 2), {"weight": STATE["weight"]}, "a.pth", "Linear")
    with pytest.raises(UserError, match=r"^a\.pth: weight has another shape than in Linear"):
        load_state(nn.Linear(4, 2), STATE, "a.pth", "Linear")
    norm = nn.BatchNorm2d(2)
    state = {key: value for key, value in norm.state_dict().items() if "num_batches" not in key}
    load_state(norm, state, "a.pth", "BatchNorm2d")


def test_nothing_is_read_while_restoring(sources: dict[str, str]) -> None:
    network = nn.Linear(3, 2)
    before = network.weight.clone()
    with restoring(["weight", "bias"]):
        assert is_restoring()
        assert read_weights("absent.pth", "Linear") == ("absent.pth", {})
        load_weights(network, sources["run"], "Linear")
    assert not is_restoring() and torch.equal(network.weight, before)
