"""segdet: how vision went from the sliding window to the single shot, measured.

Importing the package imports neither torch nor Lightning, so that the command answers at once.
"""

import os

# albumentations asks the network for a newer release when it is imported; a benchmark must not.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
