"""Precision: bfloat16 is used only on CPUs with instructions for it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import accelerators

from segdet.cli.main import main
from segdet.runs import trainer_options
from segdet.training.load_checkpoint import DESCRIPTION
from segdet.training.precision import cpu_precision, has_bfloat16

OLD = "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu sse avx avx2\nbugs\t\t: x\n"
NEW = "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 amx_tile\n"
MATRICES = "flags\t\t: fpu avx2 amx_bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"
OLD_ARM = "processor\t: 0\nFeatures\t: fp asimd\n"
UNKNOWN = "processor\t: 0\nisa\t: rv64imafdc\n"


@pytest.fixture
def cpu(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file like ``/proc/cpuinfo`` with the parameter as its content."""
    file = tmp_path / "cpuinfo"
    file.write_text(request.param)
    monkeypatch.setattr(trainer_options, "cpu_precision", lambda requested: cpu_precision(requested, file))
    return file


@pytest.mark.parametrize(
    ("text", "native"),
    [(OLD, False), (NEW, True), (MATRICES, True), (ARM, True), (OLD_ARM, False), (UNKNOWN, None)],
)
def test_flags(text: str, native: bool | None, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert has_bfloat16(file) is native
    slow = native is False
    assert cpu_precision("bf16-mixed", file) == ("32-true" if slow else "bf16-mixed")
    assert [cpu_precision(requested, file) for requested in ("32-true", "16-mixed", 64, None)] == [
        "32-true", "16-mixed", 64, None,
    ]  # fmt: skip


def test_an_unknown_cpu_keeps_the_precision(tmp_path: Path) -> None:
    assert has_bfloat16(tmp_path / "none") is None
    assert cpu_precision("bf16-mixed", tmp_path / "none") == "bf16-mixed"


@pytest.mark.parametrize("cpu", [OLD], indirect=True)
def test_the_configuration_has_the_requested_precision_and_the_record_the_used_one(
    cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = [
        "fit", "--model=FCN", "--model.backbone=test_resnet", "--model.width=8", "--data=ShapesDataModule",
        f"--data.root={tmp_path}/shapes", "--data.num_train=4", "--data.num_val=2", "--data.num_test=2",
        "--data.image_size=[64, 64]", "--data.batch_size=2", "--data.num_workers=0", "--panels.images=0",
        "--trainer.accelerator=cpu", "--trainer.max_epochs=1", f"--run_dir={run}",
    ]  # fmt: skip
    assert main([*arguments, "--trainer.precision=bf16-mixed"]) == 0
    message = [line for line in capsys.readouterr().err.splitlines() if "bfloat16" in line]
    assert message == [
        "segdet: this CPU converts bfloat16 to float32 and back, which is slow; precision bf16-mixed becomes 32-true"
    ]
    assert json.loads((run / "result.json").read_text())["hardware"]["precision"] == "32-true"
    assert json.loads((run / "provenance.json").read_text())["precision"] == "32-true"
    # On a machine with bfloat16 the same configuration uses it.
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert yaml.safe_load(checkpoint[DESCRIPTION]["config"])["trainer"]["precision"] == "bf16-mixed"


def chosen(accelerator: str, requested: str) -> str:
    """Return the precision that the command uses in place of the requested one."""
    return str(trainer_options.choose_precision(requested, accelerator))


@pytest.mark.parametrize("cpu", [OLD], indirect=True)
def test_a_gpu_keeps_the_precision(cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for available in (True, False):
        monkeypatch.setattr(
            accelerators.CUDAAccelerator, "is_available", lambda available=available: available
        )
        monkeypatch.setattr(accelerators.MPSAccelerator, "is_available", lambda: False)
        expected = "bf16-mixed" if available else "32-true"
        assert chosen("auto", "bf16-mixed") == expected
        assert chosen("gpu", "bf16-mixed") == "bf16-mixed"
        assert chosen("cpu", "bf16-mixed") == "32-true"


@pytest.mark.parametrize("cpu", [NEW], indirect=True)
def test_a_cpu_with_bfloat16_keeps_the_precision(cpu: Path) -> None:
    assert chosen("cpu", "bf16-mixed") == "bf16-mixed"


@pytest.mark.parametrize("requested", ["bf16-true", "16-true", "64-true"])
def test_precisions_that_round_boxes_are_refused(
    requested: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is raised before a folder is created or cleared."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("epoch,step\n")
    options = ["--model=FCN", "--data=ShapesDataModule", f"--run_dir={run}", "--overwrite=true"]
    assert main(["fit", *options, f"--trainer.precision={requested}"]) == 2
    message = capsys.readouterr().err
    assert f"--trainer.precision {requested}: " in message and "; give 32-true, or bf16-mixed" in message
    assert (run / "metrics.csv").exists()
