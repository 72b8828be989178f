"""The shipped sweep files: they are valid, their first lines describe them, and segdet fit accepts every trial."""

import contextlib
import io
from pathlib import Path

import pytest
import yaml

from segdet.launch.sweep_command import fit_arguments
from segdet.launch.sweep_file import Sweep, notes, read_sweep

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted(ROOT.glob("sweeps/*.yaml"))
METRICS = {"val/miou", "val/loc_acc", "val/map", "val/map_50"}


@pytest.fixture(params=SWEEPS, ids=lambda path: path.stem)
def sweep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(ROOT)
    return read_sweep(Path("sweeps") / request.param.name)


def test_a_sweep_is_described_and_its_metric_is_logged(sweep: Sweep) -> None:
    text = sweep.path.read_text(encoding="utf-8")
    opening = [line for line in text.splitlines() if line.startswith("# ")]
    assert len(opening) >= 3 and opening[1] == f"# segdet sweep {sweep.path}"
    assert sweep.metric is not None and sweep.metric.name in METRICS and sweep.metric.goal == "maximize"
    assert sweep.size is not None and list(notes(sweep)) == []
    # W&B requires the key, although the command does not use it.
    assert sweep.program == "segdet"


def test_early_termination_compares_trials_before_their_last_validation(sweep: Sweep) -> None:
    if sweep.early_terminate is None:
        return
    epochs = sweep.parameters["trainer.max_epochs"]["value"]
    validations = epochs // sweep.parameters["trainer.check_val_every_n_epoch"]["value"]
    assert validations > sweep.early_terminate.rungs[0]


def test_segdet_fit_accepts_every_value(sweep: Sweep) -> None:
    from segdet.cli.train import main

    for point in sweep.space.covering_points():
        arguments = fit_arguments(sweep.command_line(point, Path("arguments.json")))
        assert arguments is not None
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as leaving:
            main([*arguments, "--print_config"])
        assert leaving.value.code == 0
        config = yaml.safe_load(out.getvalue())
        for name, value in sweep.space.arguments(point).items():
            section, *keys = name.split(".")
            got = config[section]
            if section in ("model", "data") and keys:
                got = got["init_args"]
            for key in keys:
                got = got[key]
            if isinstance(value, dict):  # the other keys have their defaults
                got = {each: got[each] for each in value}
            if isinstance(value, str) and isinstance(got, dict):
                got = got["class_path"].rpartition(".")[2]
            assert got == value and (isinstance(value, str) or type(got) in (type(value), float)), name


@pytest.mark.filterwarnings(
    "ignore:Choices for a categorical distribution:UserWarning"
)  # lists, in W&B's conversion
def test_wandb_reads_the_same_search_space(sweep: Sweep) -> None:
    scheduler = pytest.importorskip(
        "wandb.sdk.sweeps.scheduler.optuna", reason="a private module of W&B has moved"
    )
    by_wandb = scheduler.search_space_from_sweep_config(yaml.safe_load(sweep.path.read_text())["parameters"])
    for name, leaf in sweep.space.named().items():
        grid, found = leaf.grid(), by_wandb[name]
        if grid is None:
            assert found == leaf.searched()
        else:
            assert list(found.choices) == grid
