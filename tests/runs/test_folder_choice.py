"""A test that differs from the run uses a separate folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from segdet.cli.main import main
from segdet.training.load_checkpoint import DESCRIPTION


@pytest.mark.parametrize(
    "case",
    [
        "other data",
        "other data options",
        "last",
        "other model options",
        "part of the data",
        "one batch",
        "less precision",
    ],
)
def test_scores_of_a_different_test_are_kept_out_of_the_record(
    case: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "result.json").read_text()
    name = "last" if case == "last" else "best"
    given = {
        "other data": ["--data.num_test=3", f"--data.root={run.parent}/more"],
        "other data options": ["--data.max_proposals=5"],
        "other model options": ["--model.tta_flip=true"],
        "one batch": ["--trainer.fast_dev_run=true"],
        "less precision": ["--trainer.precision=bf16-mixed"],
        "part of the data": ["--trainer.limit_test_batches=1"],
    }.get(case, [])
    assert main(["test", f"--ckpt_path={run}/checkpoints/{name}.ckpt", *given]) == 0
    message = capsys.readouterr().err
    assert (run / "result.json").read_text() == before
    (separate,) = run.parent.glob("run-test-*")
    record = json.loads((separate / "result.json").read_text())
    assert "test/map" in record["metrics"]
    assert message.splitlines()[-1].endswith(f"see {separate}/result.json")


def test_a_test_with_neutral_options_adds_to_the_record(run: Path) -> None:
    before = json.loads((run / "result.json").read_text())["metrics"]
    given = ["--data.batch_size=2", "--model.channels_last=false", "--trainer.limit_test_batches=1.0"]
    moved = shutil.copytree(
        yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["root"],
        run.parent / "moved",
    )
    assert main(["test", f"--ckpt_path={run}", f"--data.root={moved}", *given]) == 0
    assert not list(run.parent.glob("run-test-*"))
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert "test/map" in metrics and metrics.items() >= before.items()


@pytest.mark.parametrize("form", ["not given", "argument", "config"])
def test_an_option_that_an_old_checkpoint_lacks_makes_a_difference_if_it_is_given(
    form: str, run: Path, tmp_path: Path
) -> None:
    best = run / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    config = yaml.safe_load(content[DESCRIPTION]["config"])
    del config["model"]["init_args"]["tta_flip"]
    content[DESCRIPTION]["config"] = yaml.safe_dump(config)
    torch.save(content, best)
    before = (run / "result.json").read_text()
    file = tmp_path / "more.yaml"
    file.write_text("model: {init_args: {tta_flip: true}}\n")
    given = {"not given": [], "argument": ["--model.tta_flip=true"], "config": ["--config", str(file)]}[form]
    assert main(["test", f"--ckpt_path={run}", *given]) == 0
    separate = form != "not given"
    assert len(list(run.parent.glob("run-test-*"))) == separate
    assert ((run / "result.json").read_text() == before) == separate
