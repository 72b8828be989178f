"""The options of a resumed training are compared with those of its checkpoint."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from segdet.cli.main import main
from segdet.runs.resumed_options import resumed_changes
from segdet.util.errors import UserError

BEFORE: dict[str, Any] = {
    "seed_everything": 0,
    "ema": 0.99,
    "run_dir": None,
    "model": {
        "class_path": "segdet.segmentation.FCN",
        "init_args": {
            "class_names": ["a"],
            "optim": {"lr": 0.1, "lr_factors": {"head": 1.0}},
            "dropout": 0.1,
        },
    },
    "data": {
        "class_path": "segdet.data.VOCDataModule",
        "init_args": {"recipe": {"class_path": "segdet.data.transforms.Plain", "init_args": {"size": None}}},
    },
    "trainer": {"max_epochs": 2, "devices": "auto"},
}


def changes(before: dict[str, Any] = BEFORE, given: tuple[str, ...] = (), **now: Any) -> list[str]:
    config = json.loads(json.dumps(BEFORE))
    for name, value in now.items():
        *parents, last = name.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    checkpoint: Any = SimpleNamespace(config=before, path=Path("run/checkpoints/last.ckpt"))
    return [str(change) for change in resumed_changes("fit", checkpoint, config, given)]


def test_equal_options_and_options_of_one_command_are_no_changes() -> None:
    assert changes() == []
    assert changes(run_dir="other", model__init_args__class_names=["b"]) == []
    # The package exports the class under a second path.
    assert changes(model__class_path="segdet.segmentation.fcn.FCN") == []
    checkpoint: Any = SimpleNamespace(config=BEFORE)
    assert resumed_changes("test", checkpoint, {"ema": None}, ()) == []
    assert resumed_changes("fit", None, {"ema": None}, ()) == []


def test_changes_are_listed_with_both_values() -> None:
    assert changes(ema=0.9, model__init_args__optim__lr=0.2, trainer__max_epochs=None) == [
        "--ema 0.99 -> 0.9", "--model.optim.lr 0.1 -> 0.2", "--trainer.max_epochs 2 -> null",
    ]  # fmt: skip
    other = {"class_path": "segdet.data.transforms.ScaleJitter", "init_args": {"low": 0.5}}
    assert changes(data__init_args__recipe=other) == [
        "--data.recipe.class_path segdet.data.transforms.Plain -> segdet.data.transforms.ScaleJitter"
    ]
    assert changes(model__init_args__optim__lr_factors={}) == ["--model.optim.lr_factors.head 1.0 -> null"]


def test_options_that_are_missing_in_the_checkpoint() -> None:
    assert changes(model__init_args__new=1) == []
    assert changes(model__init_args__new=1, given=("model.new",)) == ["--model.new null -> 1"]
    added = {"head": 1.0, "backbone": 0.5}
    assert changes(model__init_args__optim__lr_factors=added, given=("model.optim.lr_factors",)) == [
        "--model.optim.lr_factors.backbone null -> 0.5"
    ]
    script = {"model": BEFORE["model"]}  # the checkpoint of a script has no other section
    assert changes(before=script, ema=None, seed_everything=3) == []


@pytest.mark.parametrize(
    "now",
    [
        {"seed_everything": 1}, {"ema": None}, {"model__class_path": "segdet.segmentation.UNet"},
        {"model__init_args__optim__lr_factors": {"head": 0}},
    ],
)  # fmt: skip
def test_options_that_cannot_change(now: dict[str, Any]) -> None:
    message = r"->.*: defines .* run/checkpoints/last.ckpt; leave the option out, or start a new run"
    with pytest.raises(UserError, match=message):
        changes(**now)


def test_a_run_records_the_values_that_it_uses(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some of the changed options come from a configuration file."""
    changed = tmp_path / "changed.yaml"
    changed.write_text("model: {init_args: {optim: {lr: 0.0005}}}\ncheckpoint_every_n_steps: 1\n")
    resume = ["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2", f"--config={changed}"]
    assert main([*resume, "--data.batch_size=2", "--model.optim.warmup_steps=0"]) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if "changed from step" in line)
    assert line.startswith("segdet: changed from step 2 on: --checkpoint_every_n_steps null -> 1, ")
    listed = ("--data.batch_size 4 -> 2", "--model.optim.lr 0.001 -> 0.0005", "--trainer.max_epochs 1 -> 2")
    assert all(change in line for change in listed)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["optim"]["lr"] == 0.0005
    assert (
        "--model.optim.lr 0.001 -> 0.0005"
        in json.loads((run / "provenance.json").read_text())["resumed"][0]["changes"]
    )
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert {group["initial_lr"] for group in state["optimizer_states"][0]["param_groups"]} == {0.0005}
    assert state["global_step"] == 6  # two steps of four images, and four of two
