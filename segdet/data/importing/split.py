"""A random split of images that is stratified by class.

Iterative stratification: Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from segdet.util.errors import UserError
from segdet.util.nouns import counted

SPLITS = ("train", "val", "test")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise `UserError` if the fractions of train, val and test are invalid."""
    shown = " ".join(f"{fraction:g}" for fraction in fractions)
    valid = len(fractions) == 3 and all(0 <= fraction <= 1 for fraction in fractions)
    if not valid or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise UserError(
            f"--split {shown}: give the fractions of train, val and test, with a sum of 1, such as 0.7 0.1 0.2"
        )


def stratified_split(
    classes_of: Mapping[str, Collection[str]], fractions: Sequence[float], seed: int
) -> dict[str, str]:
    """Return the split of each image.

    The rarest class is distributed first. Each of its images goes to the split that lacks the most images of this
    class. If several splits lack the same number, it goes to the one that lacks the most images of any class. The
    result does not depend on the order of ``classes_of``.

    Args:
        classes_of: The classes in each image, by the name of the image.
        fractions: Fractions of train, val and test.
        seed: Seed of the random order.

    Raises:
        UserError: If a fraction is invalid, or there are fewer images than splits.
    """
    check_fractions(fractions)
    splits = {name: fraction for name, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0}
    names = sorted(classes_of)
    if len(names) < len(splits):
        raise UserError(
            f"{counted(len(names), 'image')} cannot be split into {len(splits)}; give --split 1 0 0, or more images"
        )
    pending = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    lacking = {split: fraction * len(names) for split, fraction in splits.items()}
    counts = Counter(name for classes in classes_of.values() for name in set(classes))
    lacking_of = {
        split: {name: fraction * count for name, count in counts.items()}
        for split, fraction in splits.items()
    }
    found: dict[str, str] = {}

    def assign(image: str, wanted: str | None) -> None:
        chosen = max(splits, key=lambda split: (lacking_of[split][wanted] if wanted else 0.0, lacking[split]))
        found[image] = chosen
        lacking[chosen] -= 1
        for name in set(classes_of[image]):
            lacking_of[chosen][name] -= 1
            counts[name] -= 1

    while any(counts.values()):
        rarest = min((name for name in counts if counts[name]), key=lambda name: (counts[name], name))
        for image in [image for image in pending if rarest in classes_of[image]]:
            assign(image, rarest)
        pending = [image for image in pending if image not in found]
    for image in pending:
        assign(image, None)
    for split in splits:
        if split not in found.values():
            largest = Counter(found.values()).most_common(1)[0][0]
            moved = max(image for image in found if found[image] == largest)
            found[moved] = split
    return found
