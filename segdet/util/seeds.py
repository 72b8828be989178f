"""Seeds of random number generators."""

import os


def global_seed() -> int:
    """Return the seed given to `lightning.seed_everything`, or 0 if it has not been called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
