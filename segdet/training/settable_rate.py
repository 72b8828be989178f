"""The learning rate as an attribute of the model, as Lightning's LearningRateFinder needs it."""

from dataclasses import replace
from typing import Any

from segdet.training.optim import Optimization
from segdet.training.resumed_optimizer import ResumedSettings
from segdet.util.saved_arguments import plain


class SettableRate:
    """A model with optimizer settings. The attribute ``lr`` is the learning rate in them."""

    optim: Optimization
    hparams: Any
    _resumed_settings: ResumedSettings

    @property
    def lr(self) -> float:
        """The learning rate of the optimizer. A new value applies to optimizers that are built afterwards."""
        return self.optim.value_of("lr")

    @lr.setter
    def lr(self, value: float) -> None:
        self.optim = replace(self.optim, lr=value)
        self._resumed_settings.optim = self.optim
        self.hparams["optim"] = plain(self.optim)
