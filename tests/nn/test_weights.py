"""Test pretrained weights: every kind of source, the checks before loading, and the restoring context."""

import logging
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, VGG16_Weights, WeightsEnum

from segdet.nn.weights import (
    IMAGENET,
    Normalization,
    download_error,
    is_restoring,
    load_state,
    load_weights,
    published_name,
    published_normalization,
    read_weights,
    restoring,
    summarized_retries,
)
from segdet.util.errors import UserError

STATE = {"weight": torch.full((2, 3), 5.0), "bias": torch.zeros(2)}


KINDS = ["weights.pth", "weights", "weights.safetensors", "training.pt", "wrapped.ckpt", "part.pth"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """The same weights as a file of torch, as safetensors, and as files of wrapped networks and training scripts."""
    from safetensors.torch import save_file

    torch.save(STATE, tmp_path / "weights.pth")
    torch.save(STATE, tmp_path / "weights")
    save_file(STATE, tmp_path / "weights.safetensors")
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "training.pt")
    wrapped = {f"module.model.{key}": value for key, value in STATE.items()}
    torch.save({"state_dict": wrapped, "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.ckpt")
    part = {f"net.backbone.{key}": value for key, value in STATE.items()}
    torch.save(part | {"net.head.weight": torch.zeros(4)}, tmp_path / "part.pth")
    return {name: str(tmp_path / name) for name in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_files(kind: str, sources: dict[str, str]) -> None:
    network = nn.Linear(3, 2)
    load_weights(network, sources[kind], "Linear")
    assert torch.equal(network.weight, STATE["weight"]) and torch.equal(network.bias, STATE["bias"])


def test_weights_that_fit_nothing_are_counted_and_listed(
    sources: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    load_weights(nn.Linear(3, 2), sources["part.pth"], "Linear")
    expected = f"Linear: 2 weights, without 1 (net.head.weight) from {sources['part.pth']}"
    assert capsys.readouterr().err == f"segdet: {expected}\n"
    load_weights(nn.Linear(3, 2), sources["weights.pth"], "Linear")
    assert capsys.readouterr().err == f"segdet: Linear: 2 weights from {sources['weights.pth']}\n"


def test_a_broken_prefix_is_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": STATE["weight"], "b.bias": STATE["bias"]}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"a\.pth: not the weights of Linear: 1 of 2 are missing, such as bias"
    ):
        load_weights(nn.Linear(3, 2), str(tmp_path / "a.pth"), "Linear")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(3, 2), "holds Python objects besides weights; save the network's state_dict"),
        ([torch.zeros(2)], "holds a list, not weights by parameter name"),
        ({"epoch": 3}, "holds no weights by parameter name"),
    ],
)
def test_a_file_of_another_kind_is_reported_in_one_line(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError) as error:
        load_weights(nn.Linear(3, 2), str(tmp_path / "a.pth"), "Linear")
    assert str(error.value).startswith(f"{tmp_path / 'a.pth'}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_corrupt_file_is_reported_in_one_line(tmp_path: Path, sources: dict[str, str], suffix: str) -> None:
    whole = Path(sources[f"weights.{suffix}"]).read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"cut\.{suffix}: the file is corrupt or holds no weights"):
        load_weights(nn.Linear(3, 2), str(tmp_path / f"cut.{suffix}"), "Linear")


def test_a_folder_without_a_checkpoint_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"checkpoints/best\.ckpt: no such checkpoint; give the folder of a run"
    ):
        load_weights(nn.Linear(3, 2), str(tmp_path), "Linear")


def test_the_normalization_of_published_weights() -> None:
    assert published_normalization("IMAGENET1K_FEATURES", [VGG16_Weights]) == Normalization(
        (0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)
    )
    assert published_normalization("a.pth", [ResNet18_Weights]) == IMAGENET


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
    load_weights(
        network, sources["training.pt"], "Linear", convert=lambda state: {"other": state["bias"], **state}
    )
    assert torch.equal(network.bias, STATE["bias"])


def test_missing_and_wrong_weights_are_reported_in_one_line() -> None:
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
        load_weights(network, sources["training.pt"], "Linear")
    assert not is_restoring() and torch.equal(network.weight, before)


def test_retries_of_a_download_are_one_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")
    with summarized_retries("backbone resnet18"):
        for number in range(3):
            client.warning(f"Retrying in 1s [Retry {number}/5].")
    line = (
        "segdet: backbone resnet18: the Hugging Face hub does not respond; trying again for up to a minute\n"
    )
    assert capsys.readouterr().err == line
    assert caplog.records == []
    client.warning("another download")
    assert client.filters == []


def test_the_reason_of_a_failed_download_is_not_cut_within_a_word() -> None:
    message = str(download_error("resnet18", OSError("no connection " * 20)))
    (reason,) = re.findall(r"downloaded \((.*) \.\.\.\); give a local file", message)
    assert set(reason.split()) == {"no", "connection"}
