"""A window classifier and its dense evaluation in one module."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segdet.nn.dense_windows import DensePass


class DenseClassifier(DensePass):
    """`DensePass` that holds its classifier, or the ``nn.Sequential`` of a list of layers."""

    def __init__(self, classifier: nn.Module | Sequence[nn.Module], *args: Any) -> None:
        if not isinstance(classifier, nn.Module):
            classifier = nn.Sequential(*classifier)
        super().__init__(classifier, *args)  # type: ignore[arg-type]
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(images, self.classifier)  # type: ignore[arg-type]
