"""Test the VGG16 encoder against torchvision's network, and the weights that it is initialized with."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models._api import WeightsEnum
from torchvision.models.vgg import VGG, make_layers

from segdet.nn.vgg16 import VGG16, load_vgg16_weights
from segdet.util.errors import UserError

_NARROW: list[str | int] = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]


def narrow_vgg16(batch_norm: bool = False, hidden: int = 32) -> VGG:
    """Return torchvision's VGG16 with an eighth of the channels and ``hidden`` channels in fc6 and fc7."""
    torch.manual_seed(0)
    with torch.device("meta"):  # skips drawing the 120 million weights of the classifier
        network = VGG(nn.Identity(), num_classes=10, init_weights=False)
    network.features = make_layers(_NARROW, batch_norm)
    network.classifier = nn.Sequential(
        nn.Linear(64 * 49, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, 10),
    )  # fmt: skip
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return network.eval()


class Model(nn.Module):
    """The parts of a family that `load_vgg16_weights` uses."""

    def __init__(self, width: float = 0.125, batch_norm: bool = False, hidden: int = 32) -> None:
        super().__init__()
        self.encoder = VGG16(width, batch_norm)
        self.fc6 = nn.Conv2d(64, hidden, 7)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.score = nn.Conv2d(hidden, 3, 1)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights_of_torchvision_give_its_features(
    tmp_path: Path, batch_norm: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = narrow_vgg16(batch_norm)
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    model = Model(batch_norm=batch_norm).eval()
    load_vgg16_weights(model, str(tmp_path / "vgg16.pth"))
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(model.encoder(images)[-1].features, theirs.features(images))
    torch.testing.assert_close(model.fc6.weight.flatten(1), theirs.classifier[0].weight)
    torch.testing.assert_close(model.fc7.weight.flatten(1), theirs.classifier[3].weight)
    count = len(theirs.state_dict()) - 2
    assert capsys.readouterr().err == (
        f"segdet: VGG16: {count} weights, without 2 (classifier.6.weight, classifier.6.bias) from "
        f"{tmp_path / 'vgg16.pth'}; random weights: 1 (score)\n"
    )


def test_maps_have_the_strides_and_round_up() -> None:
    pooled = VGG16(0.125).eval()(torch.randn(1, 3, 65, 31))
    assert [tuple(here.features.shape[1:]) for here in pooled] == [
        (8, 33, 16), (16, 17, 8), (32, 9, 4), (64, 5, 2), (64, 3, 1),
    ]  # fmt: skip
    assert [here.size for here in pooled] == [(65, 31), (33, 16), (17, 8), (9, 4), (5, 2)]


def test_batch_normalization_stays_random_where_the_file_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = narrow_vgg16()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    model = Model(batch_norm=True)
    load_vgg16_weights(model, str(tmp_path / "vgg16.pth"))
    assert torch.equal(model.encoder.stages[4][6].weight, theirs.features[28].weight)
    assert "random weights: 14 (encoder.stages.0.1, " in capsys.readouterr().err


def test_an_unpublished_classifier_stays_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = narrow_vgg16().state_dict()
    state["classifier.0.weight"].fill_(torch.nan)
    torch.save(state, tmp_path / "features.pth")
    model = Model()
    load_vgg16_weights(model, str(tmp_path / "features.pth"))
    assert model.fc6.weight.isfinite().all()
    assert capsys.readouterr().err.endswith("random weights: 2 (fc6, score)\n")


def test_a_file_with_the_names_of_the_model_gives_parameters_of_the_same_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = Model(hidden=16)
    file = tmp_path / "former.ckpt"
    torch.save({"state_dict": former.state_dict(), "epoch": 3}, file)
    model = Model(hidden=24)
    load_vgg16_weights(model, str(file))
    assert torch.equal(model.encoder.stages[2][0].weight, former.encoder.stages[2][0].weight)
    # The bias of score has the same shape in both models, but the weight does not.
    assert capsys.readouterr().err == (
        "segdet: VGG16: 27 weights, without 5 (fc6.weight, fc6.bias, fc7.weight ...) from "
        f"{file}; random weights: 3 (fc6, fc7, score)\n"
    )
    load_vgg16_weights(model := Model(hidden=16), str(file))
    assert torch.equal(model.score.weight, former.score.weight)
    assert capsys.readouterr().err.endswith("random weights: none\n")


class TestMistakes:
    def test_other_channels(self, tmp_path: Path) -> None:
        torch.save(narrow_vgg16().state_dict(), tmp_path / "vgg16.pth")
        model = Model(width=0.25)
        with pytest.raises(
            UserError, match="not those of a VGG16 with 16 to 128 channels; give torchvision's"
        ):
            load_vgg16_weights(model, str(tmp_path / "vgg16.pth"))

    def test_batch_normalization_missing_in_the_model(self, tmp_path: Path) -> None:
        torch.save(narrow_vgg16(batch_norm=True).state_dict(), tmp_path / "vgg16.pth")
        model = Model()
        with pytest.raises(UserError, match="with batch normalization, but the model has none"):
            load_vgg16_weights(model, str(tmp_path / "vgg16.pth"))

    def test_nothing_fits(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"other.weight": torch.zeros(1)}}, tmp_path / "last.ckpt")
        model = Model()
        with pytest.raises(
            UserError, match=r"last\.ckpt: not the weights of Model's VGG16: 13 of \d+ are missing"
        ):
            load_vgg16_weights(model, str(tmp_path / "last.ckpt"))

    def test_a_missing_and_a_corrupt_file(self, tmp_path: Path) -> None:
        model = Model()
        (tmp_path / "run").mkdir()
        with pytest.raises(UserError, match=r"run/checkpoints/best\.ckpt: no such checkpoint"):
            load_vgg16_weights(model, str(tmp_path / "run"))
        (tmp_path / "corrupt.pth").write_bytes(b"PK cut")
        with pytest.raises(UserError, match=r"corrupt\.pth: the file is corrupt or holds no weights"):
            load_vgg16_weights(model, str(tmp_path / "corrupt.pth"))

    def test_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = Model()
        with pytest.raises(
            UserError, match="torchvision has no weights 'IMAGENET' of VGG16; it has IMAGENET1K_V1"
        ):
            load_vgg16_weights(model, "IMAGENET")

        def unreachable(self: WeightsEnum, **_: object) -> None:
            raise OSError("<urlopen error no route to host>")

        monkeypatch.setattr(WeightsEnum, "get_state_dict", unreachable)
        with pytest.raises(
            UserError, match=r"cannot be downloaded .*no route to host.*; give a local file, or null"
        ):
            load_vgg16_weights(model, "IMAGENET1K_V1")

    def test_no_channels(self) -> None:
        with pytest.raises(UserError, match=r"model\.width 0: must be above 0"):
            VGG16(0)
