"""Options of the Trainer whose defaults the command changes."""

from typing import Any

TRAINER_DEFAULTS: dict[str, Any] = {
    "log_every_n_steps": 50,
    "num_sanity_val_steps": 0,  # scores of two batches are meaningless
    "enable_autolog_hparams": False,  # RunRecorder records the whole configuration
    "enable_model_summary": False,  # the record holds the number of parameters
}
"""Defaults of ``segdet fit|validate|test|predict`` for options of ``lightning.Trainer``."""
