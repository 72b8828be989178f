import inspect
import pkgutil

import pytest

from experiments.families import FAMILIES
from segdet import detection, localization, segmentation
from segdet.task import Task


def concrete(module: object) -> set[str]:
    """Return the families that a package of a task exports."""
    found = set()
    for name in module.__all__:  # type: ignore[attr-defined]
        each = pkgutil.resolve_name(f"{module.__name__}:{name}")  # type: ignore[attr-defined]
        if inspect.isclass(each) and issubclass(each, Task) and not each.__name__.endswith(("er", "or")):
            found.add(name)
    return found


def test_every_family_has_a_small_network() -> None:
    packages = (segmentation, localization, detection)
    exported = set().union(*map(concrete, packages)) | {"SlidingWindowDetector"}
    assert set(FAMILIES) == exported


@pytest.mark.parametrize("name", FAMILIES)
def test_arguments_name_the_model_first(name: str) -> None:
    first, second, *rest = FAMILIES[name].arguments(name)
    assert (first, second) == (f"--model={name}", "--data=ShapesDataModule")
    assert all(each.startswith(("--model.", "--data.")) for each in rest)
