"""A wrong choice in Python code raises a one-line error, as on the command line."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import segdet.detection
import segdet.localization
import segdet.segmentation
from segdet.task import Task
from segdet.training.optim import Optimization
from segdet.util.errors import UserError, check_choice, check_range


def _families() -> list[type[Task]]:
    for package in (segdet.segmentation, segdet.detection, segdet.localization):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

    def below(base: type[Task]) -> Iterator[type[Task]]:
        for child in base.__subclasses__():
            yield child
            yield from below(child)

    return sorted({f for f in below(Task) if f.__module__.startswith("segdet.")}, key=lambda f: f.__name__)


def _chosen(hint: Any) -> tuple[Any, ...]:
    """Return the choices of the ``Literal`` types in ``hint``."""
    parts = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    return tuple(choice for part in parts for choice in get_args(part))


def _options() -> Iterator[Any]:
    """Yield, for every concrete family, the options that have a fixed set of choices."""
    for family in _families():
        if inspect.isabstract(family):
            continue
        seen: set[str] = set()
        for base in family.__mro__:
            if "__init__" not in vars(base) or not issubclass(base, Task):
                continue
            for name, hint in get_type_hints(base.__init__).items():
                choices = _chosen(hint)
                # Options shared by all segmentation families are tested with one family.
                if (
                    choices
                    and name not in seen
                    and (base.__name__ != "Segmenter" or family.__name__ == "FCN")
                ):
                    seen.add(name)
                    yield pytest.param(family, name, choices, id=f"{family.__name__}-{name}")


OPTIONS = list(_options())


@pytest.mark.parametrize(("family", "name", "choices"), OPTIONS)
def test_a_wrong_choice_of_a_family_is_reported_in_one_line(
    family: type[Task], name: str, choices: tuple[Any, ...]
) -> None:
    wrong = choices[0].capitalize() if isinstance(choices[0], str) else 7
    with torch.device("meta"), pytest.raises(UserError) as error:
        family(["a", "b"], **{name: wrong})
    listed = ", ".join(map(str, choices))
    message = str(error.value)
    assert message.startswith(f"--model.{name} {wrong}: must be one of {listed}") and "\n" not in message
    assert not isinstance(choices[0], str) or message.endswith(f"; did you mean {choices[0]}?")


def test_all_tasks_have_options_with_choices() -> None:
    found = {(parameter.values[0].__name__, parameter.values[1]) for parameter in OPTIONS}
    assert {
        ("SlidingWindow", "mode"), ("SlidingWindow", "sampling"), ("VGG16FCN", "upsampling"), ("FCN", "loss"),
        ("FCN", "class_weights"), ("OriginalUNet", "channels"), ("BoxHead", "views"), ("BoxHead", "heads"),
        ("OverFeat", "merging"), ("OverFeat", "mode"), ("MaskRCNN", "pooling"), ("SSD300", "sizes"),
    } <= found  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wrong", "meant"), [("name", "adam", "adamw"), ("schedule", "cosin", "cosine")]
)
def test_a_wrong_choice_of_the_optimizer_is_reported_in_one_line(name: str, wrong: str, meant: str) -> None:
    with pytest.raises(
        UserError, match=rf"^--model\.optim\.{name} {wrong}: must be one of .*; did you mean {meant}\?$"
    ):
        Optimization(**{name: wrong})  # type: ignore[arg-type]


def test_choices_are_a_literal_or_a_list_and_only_close_names_are_suggested() -> None:
    for choices in (Literal["red", "green"], ["red", "green"], {"red": 1, "green": 2}):
        check_choice("--paint", "red", choices)
        with pytest.raises(UserError, match=r"^--paint mauve: must be one of red, green$"):
            check_choice("--paint", "mauve", choices)
    check_choice("--side", 3, Literal[1, 3])
    with pytest.raises(UserError, match=r"^--side 2: must be one of 1, 3$"):
        check_choice("--side", 2, Literal[1, 3])


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"least": 1}, "--x 0: must be at least 1"),
        (1.5, {"above": 0, "most": 1}, "--x 1.5: must be above 0 and at most 1"),
        (float("nan"), {"above": 0}, "--x nan: must be above 0"),
        ((1.0, 0.0), {"above": 0}, "--x [1.0, 0.0]: must be one or more numbers, each above 0"),
        ([], {"least": 0, "below": 1}, "--x []: must be one or more numbers, each at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range(value: Any, bounds: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_range("--x", value, **bounds)
    assert str(error.value) == message


def test_numbers_in_range() -> None:
    check_range("--x", 1, least=1, most=1)
    check_range("--x", [0.5, 0.9], above=0, below=1)
