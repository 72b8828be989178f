"""The interface of models that refuse to predict or to train before a part of their training is done."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class PreparesUntrained(Protocol):
    """A model that can skip such parts, because its cost is measured with random weights."""

    def prepare_untrained(self) -> None:
        """Permit predictions and training steps without earlier parts of the training."""
