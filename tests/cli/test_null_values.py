"""``None`` and ``null`` mean the same in every option, and are refused where an argument needs a value."""

import inspect
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import MODELS, TINY, Line

from segdet.cli.error_messages import subclasses
from segdet.cli.main import main
from segdet.cli.null_values import check_nulls
from segdet.cli.train_options import import_classes, parse_command
from segdet.data.base import DataModule
from segdet.task import Task

OPTIONAL = [
    "run_dir", "checkpoint_every_n_steps", "ema", "ckpt_path", "trainer.max_time", "trainer.max_epochs",
    "trainer.limit_val_batches", "trainer.gradient_clip_val", "trainer.val_check_interval", "trainer.precision",
    "trainer.logger", "trainer.callbacks", "trainer.plugins", "trainer.profiler",
    "data.eval_batch_size", "data.recipe", "data.proposals", "data.num_workers", "model.freeze", "model.weights",
    "model.multi_scale",
]  # fmt: skip


def parsed(*arguments: str) -> dict[str, Any]:
    options = parse_command(["fit", *MODELS["segmentation"], *TINY, *arguments])
    values: dict[str, Any] = yaml.safe_load(options.yaml())
    return values


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_on_the_command_line_is_null(name: str) -> None:
    assert parsed(f"--{name}=None") == parsed(f"--{name}=null")


def test_none_in_files_and_nested_values_is_null(tmp_path: Path) -> None:
    stopping = "{class_path: EarlyStopping, init_args: {monitor: a, stopping_threshold: NULL}}"
    text = f"trainer: {{max_time: NULL, callbacks: [{stopping}]}}\n"
    text += "model: {init_args: {freeze: NULL, compile: {mode: NULL}, weights: NULL}}\n"
    text += "data: {init_args: {recipe: NULL}}\n"
    values = []
    for number, word in enumerate(("None", "null", "~")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text.replace("NULL", word))
        values.append(parsed(f"--config={file}"))
    assert values[0] == values[1] == values[2]
    assert values[0]["model"]["init_args"]["compile"] == {"mode": None}


def test_quotes_keep_the_word_none() -> None:
    values = parsed("--model.freeze=['None']", "--wandb_project=None")
    assert values["model"]["init_args"]["freeze"] == ["None"]
    assert values["wandb_project"] == "None"  # a string needs no quotes on the command line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.width", "--model.width null: FCN needs a value; "),
        ("data.max_proposals", "--data.max_proposals null: ShapesDataModule needs a value; "),
        ("model.optim", "--model.optim null: FCN needs a value; "),
        ("model.optim.power", "--model.optim.power: expected a number, got None"),
        ("wandb", "--wandb: expected true or false, got None"),
        ("trainer.max_steps", "--trainer.max_steps: expected a whole number, got None"),
    ],
)
@pytest.mark.parametrize("word", ["null", "None"])
def test_null_is_refused_where_a_value_is_needed(line: Line, option: str, message: str, word: str) -> None:
    assert line(["fit", *MODELS["segmentation"], *TINY, f"--{option}={word}"]).startswith(message)


def test_null_in_a_class_of_a_class_is_checked_too() -> None:
    options = parse_command(["fit", *MODELS["segmentation"], *TINY, "--data.recipe=ScaleJitter"])
    check_nulls(options.config, {"data.recipe.size": None})
    with pytest.raises(Exception, match=r"--data\.recipe\.scale null: ScaleJitter needs a value"):
        check_nulls(options.config, {"data.recipe.scale": None})


def option_types(cls: type) -> dict[str, Any]:
    return {
        f"{cls.__name__}.{name}": hint
        for each in cls.__mro__
        if "__init__" in vars(each) and each.__module__.startswith("segdet.")
        for name, hint in typing.get_type_hints(each.__init__).items()  # type: ignore[misc]
    }


def test_in_every_union_a_string_comes_after_the_other_types() -> None:
    """jsonargparse takes the first type that fits, and every value on the command line fits a string."""
    import_classes()
    classes = [cls for base in (Task, DataModule) for cls in subclasses(base) if not inspect.isabstract(cls)]
    assert len(classes) > 20
    wrong = []
    for cls in classes:
        for name, hint in option_types(cls).items():
            if typing.get_origin(hint) in (typing.Union, types.UnionType):
                parts = list(typing.get_args(hint))
                if str in parts and any(part in (bool, int, float) for part in parts[parts.index(str) :]):
                    wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize(
    ("given", "expected"), [("true", True), ("false", False), ("a.pt", "a.pt"), ("None", None)]
)
def test_weights_accept_true_on_the_command_line(given: str, expected: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"model: {{init_args: {{weights: {given}}}}}\n")
    for argument in (f"--model.weights={given}", f"--config={file}"):
        assert parsed(argument)["model"]["init_args"]["weights"] is expected or (
            parsed(argument)["model"]["init_args"]["weights"] == expected
        )


def test_a_run_accepts_the_words_of_a_sweep(shapes: Path, tmp_path: Path) -> None:
    words = ["--ema=None", "--model.weights=None", "--trainer.max_time=None", "--data.eval_batch_size=None"]
    arguments = [*MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={tmp_path / 'run'}"]
    assert main(["fit", *arguments, *words]) == 0
