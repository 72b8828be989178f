"""The restored state of an optimizer is compared with the optimizer before the first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from segdet.runs.checkpoint_callbacks import Restoration
from segdet.runs.folder_choice import Run


def restored(saved: type[Optimizer], present: type[Optimizer]) -> bool:
    """Load the state of an optimizer of type ``saved`` into one of type ``present``."""
    weights = [torch.nn.Parameter(torch.ones(2))]
    optimizer = present(weights, lr=0.1)  # type: ignore[call-arg]
    trainer: Any = SimpleNamespace(optimizers=[optimizer])
    run = Run("fit", Path())
    restoration = Restoration(run)
    restoration.on_fit_start(trainer, trainer)
    optimizer.load_state_dict(saved(weights, lr=0.2).state_dict())  # type: ignore[call-arg]
    assert not run.restored
    restoration.on_train_start(trainer, trainer)
    return run.restored


@pytest.mark.parametrize(("saved", "present"), [(SGD, SGD), (AdamW, AdamW), (Adam, AdamW)])
def test_a_state_that_fits(saved: type[Optimizer], present: type[Optimizer]) -> None:
    assert restored(saved, present)


@pytest.mark.parametrize(
    ("saved", "present", "missing"), [(AdamW, SGD, "dampening, momentum"), (SGD, AdamW, "betas, eps")]
)
def test_a_state_of_another_optimizer(saved: type[Optimizer], present: type[Optimizer], missing: str) -> None:
    with pytest.raises(ValueError, match=rf"lacks {missing}.*, which {present.__name__} needs"):
        restored(saved, present)
