"""Suggestions for misspelled names in error messages."""

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 24

SYNONYMS = {
    "train": "fit",
    "eval": "test",
    "evaluate": "test",
    "val": "validate",
    "infer": "predict",
    "inference": "predict",
    "detect": "predict",
    "benchmark": "bench",
    "learning_rate": "model.optim.lr",
    "lr": "model.optim.lr",
    "batch": "data.batch_size",
    "workers": "data.num_workers",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "device": "trainer.accelerator",
    "gpus": "trainer.devices",
    "fp16": "trainer.precision",
    "amp": "trainer.precision",
    "seed": "seed_everything",
    "resume": "ckpt_path",
    "checkpoint": "ckpt_path",
    "output": "run_dir",
    "output_dir": "run_dir",
    "save_dir": "run_dir",
    "source": "images",
    "input": "images",
}
"""Names of commands and options in other tools, and their names in segdet."""


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name in ``known`` that is most similar to ``name``, or None if none is similar.

    A name that `SYNONYMS` lists for the last part of ``name`` precedes similar names.

    Args:
        name: The misspelled name. Case is ignored. Parts of options are separated by dots.
        known: The valid names.
        cutoff: The minimum similarity, between 0 (always suggest a name) and 1, as in `difflib.get_close_matches`.
    """
    by_folded = {each.casefold(): each for each in known}
    synonym = SYNONYMS.get(name.rsplit(".", 1)[-1].casefold())
    if synonym is not None:
        # In messages about a class, the known names lack the section: optim.lr instead of model.optim.lr.
        parts = synonym.split(".")
        for candidate in (".".join(parts[start:]) for start in range(len(parts))):
            if candidate in by_folded:
                return by_folded[candidate]
    near = get_close_matches(name.casefold(), by_folded, 1, cutoff)
    return by_folded[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "did you mean X?" for the closest valid name or, if none is close, "choose from A, B, ...".

    Args:
        name: The misspelled name.
        known: The valid names, at least one.
        cutoff: See `closest`.
    """
    known = list(known)
    near = closest(name, known, cutoff)
    if near is not None:
        return f"did you mean {near}?"
    more = [f"{len(known) - _LISTED} more"] if len(known) > _LISTED else []
    return f"choose from {', '.join([*known[:_LISTED], *more])}"
