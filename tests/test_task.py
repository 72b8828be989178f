"""What the bases of all tasks have in common."""

import torch
from torch import nn

from segdet.segmentation.fcn import FCN


def test_attributes_are_what_modules_make_of_them() -> None:
    """Plain texts are set in a short way, which nothing else is to take."""
    model = FCN(["a", "b"], backbone="test_resnet", width=8)
    model.note = None  # type: ignore[assignment]
    model.note = "text"  # type: ignore[assignment]
    assert model.note == "text"
    model.note = nn.Parameter(torch.zeros(1))  # type: ignore[assignment]
    assert "note" in dict(model.named_parameters())
    model.note = None  # type: ignore[assignment]
    assert "note" not in dict(model.named_parameters())
    assert model.note is None
    model.classifier = None  # type: ignore[assignment]
    assert not [name for name, _ in model.named_parameters() if name.startswith("classifier")]
    assert "_current_fx_name" in model.__dict__
