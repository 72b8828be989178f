"""Messages of torch about batches that a network cannot be trained on. torch has no type for these errors."""

import re

_ONE_VALUE = re.compile(r"Expected more than 1 (value per channel|spatial element) when training")
"""The beginning of the message of batch and group normalization, and of instance normalization."""


def is_single_value(error: ValueError) -> bool:
    """Return whether a normalization layer raised ``error`` because it received a single value per channel."""
    return _ONE_VALUE.match(str(error)) is not None
