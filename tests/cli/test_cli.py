"""The command, run in this process on a handful of tiny scenes: what it writes, refuses and obeys."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from segdet.cli import train as lightning_cli
from segdet.cli.main import _told_by_another, find_user_error, main
from segdet.cli.train import latest_checkpoint, with_embedded_config
from segdet.data.formats.cityscapes import LABELS
from segdet.data.formats.voc import VOCReader
from segdet.data.shapes.make import make_shapes
from segdet.runs.folder import EMBEDDED
from segdet.util.errors import BadSample, UserError

TINY = [
    "--data=ShapesDataModule", "--data.num_train=8", "--data.num_val=4", "--data.num_test=4",
    "--data.image_size=[64, 64]", "--data.batch_size=4", "--data.num_workers=0", "--panels.images=2",
    "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
]  # fmt: skip
MODELS = {
    "segmentation": [
        "--model=FCN",
        "--model.backbone=test_resnet",
        "--model.width=8",
    ],
    "localization": ["--model=BoxHead", "--model.backbone=test_resnet"],
    "detection": ["--model=SSD", "--model.backbone=test_resnet", "--model.width=16"],
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture(scope="module")
def fitted(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished detection run."""
    folder = tmp_path_factory.mktemp("runs") / "fitted"
    assert main(["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, for a test to change."""
    return Path(shutil.copytree(fitted, tmp_path / "run"))


Line = Callable[[list[str]], str]


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    """Runs a command that is a user's mistake and gives the one line that it says."""
    monkeypatch.chdir(tmp_path)

    def mistaken(argv: list[str]) -> str:
        capsys.readouterr()
        assert main(argv) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1, said
        assert said[0].startswith("segdet: error: ")
        assert not (tmp_path / "runs").exists()
        return said[0].removeprefix("segdet: error: ")

    return mistaken


class TestRoot:
    def test_help_names_every_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        for argv in ([], ["--help"]):
            assert main(argv) == 0
            said = capsys.readouterr().out
            assert all(name in said for name in ("fit", "test", "predict", "bench", "report", "data"))

    @pytest.mark.parametrize("argv", [["--help"], [], ["fti"], ["data", "--help"], ["--version"]])
    def test_answers_without_torch(self, argv: list[str]) -> None:
        code = (
            "import sys; from segdet.cli.main import main; main(sys.argv[1:]); "
            "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'jsonargparse', 'numpy')))"
        )
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *argv], check=True, capture_output=True)
        assert time.perf_counter() - start < 5  # 0.1 s on an idle machine

    def test_mistyped_subcommand(self, line: Line) -> None:
        assert line(["fti"]) == "no command 'fti'; did you mean fit?"
        assert line(["data", "chekc"]) == "no command 'data chekc'; did you mean data check?"
        assert "choose from fit, validate" in line(["xyzzy"])

    def test_module_runs_as_the_command_does(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "segdet", "fti"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "segdet: error: no command 'fti'; did you mean fit?\n"


class TestFindUserError:
    def test_direct_caused_and_unrelated(self) -> None:
        assert find_user_error(UserError("a: b; c")) == "a: b; c"
        try:
            try:
                raise BadSample("x.jpg", "is torn")
            except UserError as error:
                raise RuntimeError("step failed") from error
        except RuntimeError as outer:
            assert find_user_error(outer) == "x.jpg: is torn; fix or remove the file"
        assert find_user_error(RuntimeError("a bug")) is None

    @pytest.mark.parametrize(
        "error", [BadSample("x.jpg", "is torn", "remove it"), UserError("x.jpg: is torn; remove it")]
    )
    def test_from_a_worker_process(self, error: UserError) -> None:
        class Torn(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return 1

            def __getitem__(self, index: int) -> int:
                raise error

        with pytest.raises((UserError, RuntimeError)) as caught:
            next(iter(torch.utils.data.DataLoader(Torn(), num_workers=1)))
        assert "Traceback" in str(caught.value)
        assert find_user_error(caught.value) == "x.jpg: is torn; remove it"


class TestToldByAnother:
    @pytest.fixture
    def told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("SEGDET_RUN_DIR", str(tmp_path))
        monkeypatch.setattr("segdet.cli.main.PATIENCE", 0.0)
        return tmp_path / "error.txt"

    def test_a_lost_peer_is_no_news_once_it_has_spoken(
        self, told: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_RANK", "0")
        lost, bug = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]"), RuntimeError("a bug")
        assert not _told_by_another(lost)
        told.write_text("x.jpg: is torn; mend it\n")
        assert _told_by_another(lost)
        assert not _told_by_another(bug)
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert _told_by_another(bug)

    def test_a_process_alone_has_no_peer(self, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        told.write_text("of an earlier run\n")
        assert not _told_by_another(RuntimeError("Connection closed by peer"))


class TestFit:
    def test_run_folder_holds_everything(self, fitted: Path) -> None:
        names = {path.relative_to(fitted).as_posix() for path in fitted.rglob("*") if path.is_file()}
        assert names == {
            "config.yaml", "provenance.json", "metrics.csv", "result.json", "checkpoints/best.ckpt",
            "checkpoints/last.ckpt", "predictions/val_0001.png",
        }  # fmt: skip

    def test_record(self, fitted: Path, shapes: Path) -> None:
        record = json.loads((fitted / "result.json").read_text())
        assert (record["task"], record["model"], record["data"]) == ("detection", "SSD", "ShapesDataModule")
        assert (record["status"], record["epochs"], record["steps"], record["seed"]) == ("finished", 1, 2, 0)
        assert {"val/map", "val/map_50", "train/loss"} <= record["metrics"].keys()
        assert record["cost"]["parameters"] > 1000
        assert record["cost"]["train_seconds"] > 0
        assert record["command"].startswith("segdet fit --model=SSD")
        assert record["backbone"] == "test_resnet"

    def test_provenance(self, fitted: Path) -> None:
        about = json.loads((fitted / "provenance.json").read_text())
        assert about["packages"]["torch"] == torch.__version__.split("+")[0] or about["packages"]["torch"]
        assert about["hardware"]["cores"] >= 1
        assert about["hardware"]["cpu"]
        assert about["fingerprint"]
        assert about["seed"] == 0
        assert about["command"].startswith("segdet fit")
        assert "git" in about

    def test_metrics_file(self, fitted: Path) -> None:
        rows = list(csv.DictReader((fitted / "metrics.csv").read_text().splitlines()))
        trained = [row for row in rows if row["train/loss"]]
        scored = [row for row in rows if row["val/map"]]
        assert [row["step"] for row in trained] == ["1"]
        assert [row["step"] for row in scored] == ["1"]
        parts = float(trained[0]["train/loss_class"]) + float(trained[0]["train/loss_box"])
        assert float(trained[0]["train/loss"]) == pytest.approx(parts, rel=1e-5)
        assert float(trained[0]["lr"]) > 0

    def test_config_starts_the_same_run(self, fitted: Path, tmp_path: Path) -> None:
        config = yaml.safe_load((fitted / "config.yaml").read_text())
        assert config["run_dir"] is None
        again = tmp_path / "again"
        assert main(["fit", "--config", str(fitted / "config.yaml"), "--run_dir", str(again)]) == 0
        assert yaml.safe_load((again / "config.yaml").read_text()) == config
        first, second = (json.loads((folder / "result.json").read_text()) for folder in (fitted, again))
        assert first["metrics"] == second["metrics"]

    def test_checkpoint_knows_its_configuration(self, fitted: Path) -> None:
        for name in ("best", "last"):
            content = torch.load(fitted / "checkpoints" / f"{name}.ckpt", weights_only=True)
            about = content[EMBEDDED]
            assert yaml.safe_load(about["config"])["model"]["class_path"].endswith("SSD")
            assert len(about["class_names"]) == len(about["category_ids"]) >= 5
            assert about["task"] == "detection"

    def test_default_folder_is_named_after_model_and_data(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}"]) == 0
        assert main(["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}"]) == 0
        made = sorted(path.name for path in (tmp_path / "runs").iterdir())
        assert len(made) == 2
        assert all(name.startswith("fcn-shapes-20") for name in made)
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    @pytest.mark.parametrize("task", ["segmentation", "localization"])
    def test_data_follow_the_task_of_the_model(self, task: str, shapes: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        assert main(["fit", *MODELS[task], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
        assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]["task"] == task

    def test_a_run_is_not_overwritten(self, run: Path, shapes: Path, line: Line) -> None:
        before = (run / "result.json").read_text()
        arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={run}"]
        said = line(arguments)
        assert said.startswith(f"{run}: holds a run; ")
        assert "--ckpt_path last" in said
        assert (run / "result.json").read_text() == before
        (run / "mine.txt").write_text("kept")
        (run / "predictions" / "old.png").write_text("")
        assert main([*arguments, "--overwrite=true"]) == 0
        assert (run / "mine.txt").exists()
        assert not (run / "predictions" / "old.png").exists()

    def test_resume_goes_on_in_the_same_folder(self, run: Path) -> None:
        rows = (run / "metrics.csv").read_text().splitlines()
        first = json.loads((run / "result.json").read_text())["command"]
        assert main(["fit", "--run_dir", str(run), "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
        record = json.loads((run / "result.json").read_text())
        assert record["command"].startswith(f"{first} && segdet fit --run_dir {run}")
        assert (record["epochs"], record["steps"], record["status"]) == (2, 4, "finished")
        new = (run / "metrics.csv").read_text().splitlines()
        assert new[: len(rows)] == rows
        assert len(new) == len(rows) + 2
        about = json.loads((run / "provenance.json").read_text())
        assert len(about["resumed"]) == 1
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]

    def test_a_torn_provenance_takes_no_command_out_of_the_record(self, run: Path) -> None:
        first = json.loads((run / "result.json").read_text())["command"]
        (run / "provenance.json").write_text('{"command": "seg')
        resume = ["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]
        assert main(resume) == 0
        said = json.loads((run / "result.json").read_text())["command"]
        assert said == f"{first} && segdet fit --ckpt_path={run} --trainer.max_epochs=2"

    def test_a_checkpoint_alone_is_enough_to_resume(self, run: Path) -> None:
        last = run / "checkpoints" / "last.ckpt"
        assert main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs=2"]) == 0
        assert json.loads((run / "result.json").read_text())["epochs"] == 2

    def test_a_resume_that_fails_leaves_the_run_as_it_was(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = ("result.json", "config.yaml", "provenance.json")
        before = [(run / name).read_text() for name in names]
        # The weights do not fit.
        assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2", "--model.width=8"]) == 2
        assert [(run / name).read_text() for name in names] == before

    def test_a_resume_with_nothing_left_keeps_the_record(self, run: Path) -> None:
        before = (run / "result.json").read_text()
        assert main(["fit", f"--ckpt_path={run}"]) == 0
        assert (run / "result.json").read_text() == before

    def test_a_resumed_run_that_fails_keeps_its_scores(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from segdet.training.progress import StepLogger

        def fail(self: StepLogger, *_: object) -> None:
            raise UserError("a: b; c")

        before = json.loads((run / "result.json").read_text())
        # As if the run until here had taken an hour: what it took is to be carried on, not begun anew.
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        (state,) = (kept for kept in last["callbacks"].values() if "seconds" in kept)
        state["seconds"] = 3600.0
        torch.save(last, run / "checkpoints" / "last.ckpt")
        monkeypatch.setattr(StepLogger, "on_train_batch_end", fail)
        assert main(["fit", f"--ckpt_path={run}", "--trainer.max_epochs=2"]) == 2
        after = json.loads((run / "result.json").read_text())
        assert after["status"] == "failed"
        assert after["metrics"]["val/map"] == before["metrics"]["val/map"]
        assert (
            after["command"] == before["command"] + f" && segdet fit --ckpt_path={run} --trainer.max_epochs=2"
        )
        assert after["cost"]["train_seconds"] > 3600

    def test_a_job_that_slurm_restarts_goes_on(
        self, run: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={run}"]
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert main([*arguments, "--trainer.max_epochs=2", "--overwrite=true"]) == 0
        record = json.loads((run / "result.json").read_text())
        assert (record["epochs"], record["steps"]) == (2, 4)
        assert len(json.loads((run / "provenance.json").read_text())["resumed"]) == 1

    def test_a_requeued_job_finds_its_folder(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One task, no --run_dir, and two commands in the script: each goes on with its own run."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        monkeypatch.setenv("SLURM_JOB_NAME", "train.sh")
        first = ["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", "--panels.images=0"]
        second = [*first, "--model.optim.lr=0.02"]
        assert main(first) == main(second) == 0
        folders = [tmp_path / "runs" / name for name in ("fcn-shapes-4711", "fcn-shapes-4711-2")]
        assert sorted((tmp_path / "runs").iterdir()) == folders
        (folders[1] / "result.json").unlink()  # it was cut off
        last = folders[1] / "checkpoints" / "last.ckpt"
        state = torch.load(last, weights_only=True)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert main(first) == main(second) == 0
        assert sorted((tmp_path / "runs").iterdir()) == folders
        assert (folders[1] / "result.json").exists()
        assert torch.load(last, weights_only=True)["global_step"] == state["global_step"]
        assert len(json.loads((folders[0] / "provenance.json").read_text()).get("resumed", [])) == 0

    def test_a_shell_on_a_node_is_no_job(
        self, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
        arguments = ["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", "--panels.images=0"]
        assert main(arguments) == 0
        (made,) = (tmp_path / "runs").iterdir()
        assert "4711" not in made.name

    def test_a_run_that_slurm_stopped_goes_on_at_that_moment(
        self, run: Path, shapes: Path, tmp_path: Path, line: Line
    ) -> None:
        arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", f"--run_dir={run}"]
        (run / "checkpoints" / "last.ckpt").rename(run / "hpc_ckpt_1.ckpt")
        assert "holds a run" in line(arguments)  # for it was finished all the same
        record = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(record | {"status": "interrupted"}))
        assert main([*arguments, "--trainer.max_epochs=2"]) == 0
        assert json.loads((run / "result.json").read_text())["epochs"] == 2

    def test_all_processes_of_a_job_find_the_same_checkpoint(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last one written that is whole; of those of one moment the farthest, in whatever order they are found."""
        (tmp_path / "checkpoints").mkdir()
        assert latest_checkpoint(tmp_path) is None
        files = {"checkpoints/last.ckpt": 5, "hpc_ckpt_1.ckpt": 7, "checkpoints/hpc_ckpt_2.ckpt": 9}
        for name, steps in files.items():
            torch.save({"state_dict": {}, "global_step": steps}, tmp_path / name)
        found: Any = latest_checkpoint

        def times(*seconds: int) -> None:
            for name, second in zip(files, seconds, strict=True):
                os.utime(tmp_path / name, (second, second))

        times(30, 20, 10)
        assert found(tmp_path).steps == 5
        times(10, 30, 30)
        for turn in (1, -1):
            order = [tmp_path / name for name in files][1:][::turn]
            monkeypatch.setattr(lightning_cli, "requeued_checkpoints", lambda _, order=order: order)
            assert found(tmp_path).steps == 9
        times(10, 20, 30)
        torn = tmp_path / "checkpoints" / "hpc_ckpt_2.ckpt"
        torn.write_bytes(torn.read_bytes()[:50])
        times(10, 20, 30)
        assert found(tmp_path).steps == 7
        assert f"segdet: {torn}: torn" in capsys.readouterr().err

    def test_a_command_of_several_lines_leaves_the_configuration_readable(
        self, shapes: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        given = ["--config", "trainer:\n  max_epochs: 3\n  fast_dev_run: true\n", f"--run_dir={folder}"]
        arguments = [word for word in TINY if "max_epochs" not in word]
        assert main(["fit", *MODELS["detection"], *arguments, f"--data.root={shapes}", *given]) == 0
        assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 3

    @pytest.mark.parametrize(
        "end", [["--trainer.max_epochs=1"], ["--trainer.max_epochs=3", "--trainer.max_steps=1"]]
    )
    def test_a_training_that_ends_before_its_first_validation_has_a_score_and_a_best_checkpoint(
        self, end: list[str], shapes: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        arguments = [*MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]
        assert main(["fit", *arguments, "--trainer.check_val_every_n_epoch=5", *end]) == 0
        assert (folder / "predictions" / "val_0001.png").exists()
        assert "val/miou" in json.loads((folder / "result.json").read_text())["metrics"]
        assert (folder / "checkpoints" / "best.ckpt").exists()
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["trainer"]["check_val_every_n_epoch"] == 5

    def test_interrupt_saves_and_tells_how_to_go_on(
        self,
        shapes: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        import signal

        from segdet.training.progress import StepLogger

        def interrupt(self: StepLogger, trainer: object, *_: object) -> None:
            if trainer.global_step == 3:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        monkeypatch.setattr(StepLogger, "on_train_batch_end", interrupt)
        handler = signal.getsignal(signal.SIGINT)
        folder = tmp_path / "run"
        arguments = [*MODELS["segmentation"], *TINY, f"--data.root={shapes}", "--trainer.max_epochs=3"]
        try:
            assert main(["fit", *arguments, f"--run_dir={folder}"]) == 130
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning lets go of it
        said = capsys.readouterr().err
        assert f"go on with: segdet fit --ckpt_path {folder}/checkpoints/last.ckpt" in said
        record = json.loads((folder / "result.json").read_text())
        assert (record["status"], record["steps"]) == ("interrupted", 3)
        assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3

    @pytest.mark.parametrize("command", ["validate", "test", "predict"])
    def test_what_does_not_train_is_not_said_to_go_on(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").touch()
        cli: Any = SimpleNamespace(chosen=command, run_dir=tmp_path)
        lightning_cli._tell_how_to_resume(cli)
        assert capsys.readouterr().err == "segdet: interrupted\n"

    def test_bad_sample_in_a_worker_is_one_line(
        self, shapes: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = Path(shutil.copytree(shapes, tmp_path / "shapes"))
        for image in (root / "JPEGImages").iterdir():
            image.write_bytes(image.read_bytes()[:200])
        folder = tmp_path / "run"
        arguments = [*MODELS["segmentation"], *TINY, f"--data.root={root}", "--data.num_workers=1"]
        assert main(["fit", *arguments, f"--run_dir={folder}"]) == 2
        said = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
        assert len(said) == 1
        assert said[0].startswith(f"segdet: error: {root}/JPEGImages/")
        assert json.loads((folder / "result.json").read_text())["status"] == "failed"


class TestEvaluate:
    def test_test_adds_to_the_record_of_the_run(self, run: Path) -> None:
        config = (run / "config.yaml").read_text()
        assert main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
        record = json.loads((run / "result.json").read_text())
        assert {"val/map", "test/map"} <= record["metrics"].keys()
        assert record["cost"]["flops"] > 0
        assert record["cost"]["ms_per_image"] > 0
        assert record["cost"]["passes_per_image"] == 1
        assert record["cost"]["train_seconds"] > 0
        assert record["command"].startswith("segdet fit")
        assert (run / "config.yaml").read_text() == config

    def test_validate_gives_the_score_of_the_fit(self, run: Path) -> None:
        fitted = json.loads((run / "result.json").read_text())["metrics"]
        assert main(["validate", "--ckpt_path", "best", "--run_dir", str(run)]) == 0
        again = json.loads((run / "result.json").read_text())["metrics"]
        assert again["val/map_50"] == pytest.approx(fitted["val/map_50"])

    @pytest.mark.parametrize("form", ["argument", "config"])
    def test_what_is_given_beats_the_checkpoint(self, form: str, run: Path, tmp_path: Path) -> None:
        given = ["--model.score_threshold", "0.875"]
        if form == "config":
            (tmp_path / "more.yaml").write_text("model: {init_args: {score_threshold: 0.875}}")
            given = ["--config", str(tmp_path / "more.yaml")]
        other = tmp_path / "other"
        assert main(["test", "--ckpt_path", str(run), "--run_dir", str(other), *given]) == 0
        arguments = yaml.safe_load((other / "config.yaml").read_text())["model"]["init_args"]
        assert arguments["score_threshold"] == 0.875
        assert arguments["backbone"] == "test_resnet"
        assert not json.loads((other / "result.json").read_text())["metrics"]["test/mar_100"]

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
    def test_other_scores_stay_out_of_the_record(
        self, case: str, run: Path, capsys: pytest.CaptureFixture[str]
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
        said = capsys.readouterr().err
        assert (run / "result.json").read_text() == before
        (other,) = run.parent.glob("run-test-*")
        record = json.loads((other / "result.json").read_text())
        assert "test/map" in record["metrics"]
        assert said.splitlines()[-1].endswith(f"see {other}/result.json")

    def test_what_changes_no_score_goes_into_the_record(self, run: Path) -> None:
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

    def test_an_option_that_the_checkpoint_does_not_know_counts_if_it_is_given(self, run: Path) -> None:
        best = run / "checkpoints" / "best.ckpt"
        content = torch.load(best, weights_only=True)
        config = yaml.safe_load(content[EMBEDDED]["config"])
        del config["model"]["init_args"]["tta_flip"]
        content[EMBEDDED]["config"] = yaml.safe_dump(config)
        torch.save(content, best)
        cases: list[tuple[list[str], int]] = [([], 0), (["--model.tta_flip=true"], 1)]
        for given, apart in cases:
            assert main(["test", f"--ckpt_path={run}", *given]) == 0
            assert len(list(run.parent.glob("run-test-*"))) == apart

    def test_no_checkpoint(self, line: Line) -> None:
        for command in ("test", "validate", "predict"):
            said = line([command, *MODELS["detection"], *TINY])
            assert said.startswith(f"segdet {command}: of which run? give --ckpt_path")
            assert line([command]) == said

    def test_other_classes_are_refused(self, run: Path, tmp_path: Path, line: Line) -> None:
        arguments = ["--data=ImageFolder", f"--data.root={run}/predictions", "--data.class_names=[cat, dog]"]
        said = line(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), *arguments])
        assert "the data has 2 (cat, dog)" in said


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize(
    ("given", "other"),
    [
        (["--data=ImageFolder"], True),
        (["--data", "segdet.data.datamodules.ImageFolder"], True),
        (["--data.class_path=ImageFolder"], True),
        (["--data.class_path", "ImageFolder"], True),
        (["--data={class_path: ImageFolder, init_args: {root: x}}"], True),
        (["--data=folder.yaml"], True),
        (["--config=config.yaml"], True),
        (["-c", "config.yaml"], True),
        (["--config", "{data: ImageFolder}"], True),
        (["--data=ImageFolder", "--data.class_path=VOCDataModule"], False),  # the last one counts
        (["--data=VOCDataModule", "--data.root=elsewhere"], False),
        (["--data.root=elsewhere"], False),
        (["--config", "{model: {init_args: {width: 8}}}"], False),
        (["--config", "none.yaml"], False),
    ],
)
def test_another_data_module_does_not_inherit_the_class_names(
    given: list[str], other: bool, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever way it is named; all other arguments that both know stay as they are."""
    monkeypatch.chdir(tmp_path)
    folder = "{class_path: ImageFolder, init_args: {root: x}}"
    Path("folder.yaml").write_text(folder)
    Path("config.yaml").write_text(f"data: {folder}")
    arguments = {"root": "voc", "class_names": "names.txt"}
    embedded = {"data": {"class_path": "segdet.data.datamodules.VOCDataModule", "init_args": arguments}}
    torch.save({"state_dict": {}, EMBEDDED: {"config": yaml.safe_dump(embedded)}}, "a.ckpt")
    completed, checkpoint = with_embedded_config([command, "--ckpt_path=a.ckpt", *given])
    assert checkpoint is not None
    assert completed[1] == "--config"
    kept = yaml.safe_load(completed[2])["data"]["init_args"]
    assert kept == ({"root": "voc"} if other else arguments)
    assert completed[3:] == ["--ckpt_path=a.ckpt", *given]


class TestOnlyTheTestFolder:
    """Whoever has but the split to test on, or to predict on, can do so: the checkpoint knows the classes."""

    @pytest.fixture
    def folder(self, shapes: Path, tmp_path: Path) -> Path:
        """Two images of the test split, which do not hold every class, and nothing of the other splits."""
        folder = tmp_path / "only"
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        stems = (shapes / "ImageSets" / "Main" / "test.txt").read_text().split()[:2]
        (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            shutil.copy(shapes / "Annotations" / f"{stem}.xml", folder / "Annotations")
            shutil.copy(next((shapes / "JPEGImages").glob(f"{stem}.*")), folder / "JPEGImages")
        return folder

    @staticmethod
    def given(run: Path, folder: Path) -> list[str]:
        data = ["--data=VOCDataModule", f"--data.root={folder}", "--data.test=[test]"]
        return [f"--ckpt_path={run}", *data, f"--run_dir={folder.parent}/out", "--trainer.accelerator=cpu"]

    @staticmethod
    def numbered_otherwise(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
        """A folder of COCO's shape, its test split's file, and what is in it with other ids of the categories."""
        folder = make_shapes(
            tmp_path / "coco", "coco", train=1, val=1, test=2, size=(64, 64), workers=1, progress=False
        )
        file = folder / "annotations" / "instances_test2017.json"
        document = json.loads(file.read_text())
        for entry in (*document["categories"], *document["annotations"]):
            key = "category_id" if "category_id" in entry else "id"
            entry[key] += 500
        return folder, file, document

    def test_test(self, run: Path, folder: Path, recwarn: pytest.WarningsRecorder) -> None:
        trained = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)[EMBEDDED]["class_names"]
        found = VOCReader(folder, ["test"], "detection").class_names
        assert set(found) < set(trained)
        assert main(["test", *self.given(run, folder)]) == 0
        metrics = json.loads((folder.parent / "out" / "result.json").read_text())["metrics"]
        assert {name.removeprefix("test/ap/") for name in metrics if "/ap/" in name} == set(found)

    def test_predict(self, run: Path, folder: Path) -> None:
        assert main(["predict", *self.given(run, folder)]) == 0
        assert len(list((folder.parent / "out" / "predictions" / "overlays").rglob("*.png"))) == 2

    def test_predict_without_annotations(self, run: Path, folder: Path) -> None:
        shutil.rmtree(folder / "Annotations")
        assert main(["predict", *self.given(run, folder)]) == 0
        assert len(list((folder.parent / "out" / "predictions" / "overlays").rglob("*.png"))) == 2

    def test_to_test_without_annotations_is_one_line(
        self, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (missing,) = sorted((folder / "Annotations").iterdir())[:1]
        missing.unlink()
        assert main(["test", *self.given(run, folder)]) == 2
        assert f"error: {missing}: " in capsys.readouterr().err

    def test_predict_on_the_images_of_cocos_server(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It gives the images' ids and the categories, and keeps the annotations."""
        folder, file, document = self.numbered_otherwise(tmp_path)
        del document["annotations"]
        file.rename(file.with_name("image_info_test-dev2017.json")).write_text(json.dumps(document))
        data = ["--data=COCODataModule", f"--data.root={folder}", "--data.test=test-dev2017"]
        assert main(["predict", f"--ckpt_path={run}", *data]) == 0
        results = json.loads((run / "predictions" / "predictions.json").read_text())
        assert {entry["image_id"] for entry in results} <= {image["id"] for image in document["images"]}
        assert results
        ids = {category["id"]: category["name"] for category in document["categories"]}
        assert all(ids[entry["category_id"]] == entry["category"] for entry in results)
        assert "results are written with the data's ids" in capsys.readouterr().err
        assert main(["test", f"--ckpt_path={run}", *data]) == 2
        error = capsys.readouterr().err
        assert f"{folder}/annotations/image_info_test-dev2017.json: images without annotations" in error
        for command in ("check", "stats", "show"):
            assert main(["data", command, str(folder), "--split", "test-dev2017"]) == 2
            assert "names images alone; `segdet predict` can use them" in capsys.readouterr().err

    def test_an_image_without_annotation_is_upright(self, run: Path, folder: Path) -> None:
        """As it is in a folder of images; annotated, it lies as its boxes do."""
        exif = Image.Exif()
        exif[0x0112] = 6
        names = (folder / "ImageSets" / "Main" / "test.txt").read_text().split()
        for name in names:
            (path,) = (folder / "JPEGImages").glob(f"{name}.*")
            path.unlink()
            Image.new("RGB", (60, 40)).save(path.with_suffix(".jpg"), exif=exif)
        annotation = folder / "Annotations" / f"{names[1]}.xml"
        annotation.write_text(re.sub(r"<(width|height)>\d+", r"<\1>0", annotation.read_text()))
        (folder / "Annotations" / f"{names[0]}.xml").unlink()
        assert main(["predict", *self.given(run, folder)]) == 0
        sizes = []
        for name in names:
            (picture,) = (folder.parent / "out" / "predictions" / "overlays").rglob(f"{name}.png")
            with Image.open(picture) as overlay:
                sizes.append(overlay.size)
        assert sizes == [(40, 60), (60, 40)]

    def test_a_class_that_the_checkpoint_does_not_know(
        self, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        annotation = sorted((folder / "Annotations").iterdir())[0]
        annotation.write_text(
            re.sub(r"<name>\w+</name>", "<name>zebra</name>", annotation.read_text(), count=1)
        )
        assert main(["test", *self.given(run, folder)]) == 2
        assert f"error: {annotation}: unknown class 'zebra'" in capsys.readouterr().err

    def test_categories_that_are_numbered_otherwise(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, file, document = self.numbered_otherwise(tmp_path)
        file.write_text(json.dumps(document))
        (folder / "annotations" / "instances_train2017.json").unlink()
        data = ["--data=COCODataModule", f"--data.root={folder}", "--data.test=test2017"]
        assert main(["predict", f"--ckpt_path={run}", *data]) == 0
        results = json.loads((run / "predictions" / "predictions.json").read_text())
        assert results
        assert min(entry["category_id"] for entry in results) > 500
        assert "results are written with the data's ids" in capsys.readouterr().err


class TestPredict:
    def test_boxes(self, run: Path, shapes: Path, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        (photos / "more").mkdir(parents=True)
        for path, name in zip(sorted((shapes / "JPEGImages").iterdir()), ("a", "more/a"), strict=False):
            shutil.copy(path, photos / f"{name}.jpg")
        out = tmp_path / "out"
        arguments = ["--data=ImageFolder", f"--data.root={photos}", f"--run_dir={out}"]
        assert main(["predict", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), *arguments]) == 0
        results = json.loads((out / "predictions" / "predictions.json").read_text())
        assert {entry["file_name"] for entry in results} <= {"a.jpg", "more/a.jpg"}
        assert results
        for entry in results:
            x, y, width, height = entry["bbox"]
            assert -0.01 <= x <= x + width <= 64.01
            assert -0.01 <= y <= y + height <= 64.01
            assert 0 < entry["score"] <= 1
        overlays = {p.relative_to(out).as_posix() for p in (out / "predictions" / "overlays").rglob("*.png")}
        assert overlays == {"predictions/overlays/a.png", "predictions/overlays/more/a.png"}
        assert not list((out / "predictions").glob(".*"))

    def test_photographs_are_upright_and_keep_their_names_apart(self, run: Path, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        picture = Image.fromarray(np.full((40, 70, 3), 90, np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        picture.save(photos / "a.jpg", exif=exif)
        picture.save(photos / "a.png")
        assert main(["predict", f"--ckpt_path={run}", "--data=ImageFolder", f"--data.root={photos}"]) == 0
        sizes = {}
        for path in (run / "predictions" / "overlays").iterdir():
            with Image.open(path) as overlay:
                sizes[path.name] = overlay.size
        assert sizes == {"a.jpg.png": (40, 70), "a.png.png": (70, 40)}

    @pytest.mark.usefixtures("fitted")  # which has made the data
    def test_classes_are_the_checkpoint_s(self, shapes: Path, tmp_path: Path) -> None:
        """A model of a file of class names, which a folder of images does not take."""
        folder, photos = tmp_path / "run", tmp_path / "photos"
        classes = VOCReader(shapes, ["train"], "detection").class_names
        (tmp_path / "names.txt").write_text("\n".join(classes) + "\n")
        voc = ["--data=VOCDataModule", f"--data.root={shapes}", f"--data.class_names={tmp_path}/names.txt"]
        tiny = [word for word in TINY if not word.startswith("--data")]
        loading = ["--data.batch_size=4", "--data.num_workers=0"]
        assert main(["fit", *MODELS["detection"], *voc, *loading, *tiny, f"--run_dir={folder}"]) == 0
        photos.mkdir()
        Image.fromarray(np.full((70, 50, 3), 90, np.uint8)).save(photos / "grey.png")
        arguments = ["--data=ImageFolder", f"--data.root={photos}"]
        assert main(["predict", f"--ckpt_path={folder}", *arguments]) == 0
        assert (folder / "predictions" / "predictions.json").exists()

    def test_masks(self, shapes: Path, tmp_path: Path) -> None:
        folder, photos = tmp_path / "run", tmp_path / "photos"
        assert (
            main(["fit", *MODELS["segmentation"], *TINY, f"--data.root={shapes}", f"--run_dir={folder}"]) == 0
        )
        photos.mkdir()
        Image.fromarray(np.full((70, 50, 3), 90, np.uint8)).save(photos / "grey.png")
        arguments = ["--data=ImageFolder", f"--data.root={photos}"]
        assert main(["predict", f"--ckpt_path={folder}", *arguments]) == 0
        with Image.open(folder / "predictions" / "masks" / "grey.png") as mask:
            assert (mask.mode, mask.size) == ("P", (50, 70))
            assert np.asarray(mask).max() <= 6
            assert mask.getpalette()[3:6] == [128, 0, 0]
        assert (folder / "predictions" / "overlays" / "grey.png").exists()

    def test_masks_of_cityscapes_hold_its_label_ids(self, tmp_path: Path) -> None:
        """Of a folder of photographs as well as of a split: the checkpoint knows the ids."""
        root = make_shapes(
            tmp_path / "city", "cityscapes", train=4, val=2, test=2, size=(64, 64), workers=1, progress=False
        )
        folder, photos = tmp_path / "run", tmp_path / "photos"
        tiny = [word for word in TINY if not word.startswith("--data")]
        data = ["--data=CityscapesDataModule", f"--data.root={root}", "--data.test=test"]
        loading = ["--data.batch_size=2", "--data.num_workers=0"]
        assert main(["fit", *MODELS["segmentation"], *data, *loading, *tiny, f"--run_dir={folder}"]) == 0
        photos.mkdir()
        for image in sorted((root / "leftImg8bit" / "test").rglob("*.png")):
            shutil.copy(image, photos)
        (root / "leftImg8bit" / "train").rename(root / "elsewhere")  # only what is read need be there
        out = [tmp_path / "out", tmp_path / "photos_out"]
        assert main(["predict", f"--ckpt_path={folder}", *data[2:], f"--run_dir={out[0]}"]) == 0
        of_photos = ["--data=ImageFolder", f"--data.root={photos}"]
        assert main(["predict", f"--ckpt_path={folder}", *of_photos, f"--run_dir={out[1]}"]) == 0
        masks = [sorted((place / "predictions" / "masks").rglob("*.png")) for place in out]
        assert [len(paths) for paths in masks] == [2, 2]
        for split, photo in zip(*masks, strict=True):
            with Image.open(split) as one, Image.open(photo) as other:
                assert one.mode == other.mode == "L"
                assert np.array_equal(one, other)
                assert set(np.unique(one)) <= {label.id for label in LABELS if not label.ignored}


@pytest.mark.parametrize(("given", "meant"), [("1", 1), ("1.0", 1.0), ("3", 3), ("0.5", 0.5)])
def test_one_batch_is_not_all_of_them(
    given: str, meant: int | float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    limits = [f"--trainer.limit_{stage}_batches" for stage in ("train", "val", "test", "predict")]
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={tmp_path}", "--print_config"]
    assert main([*arguments, *(f"{limit}={given}" for limit in limits)]) == 0
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    for limit in limits:
        read = trainer[limit.removeprefix("--trainer.")]
        assert (type(read), read) == (type(meant), meant)


class TestMistakes:
    def test_key(self, line: Line) -> None:
        assert line(["fit", "--model=SSD", "--model.bakbone=resnet18"]) == (
            "--model.bakbone: SSD has no argument 'bakbone'; did you mean backbone?"
        )
        assert line(["fit", "--model=SSD", "--model.optim.lrr=0.1"]) == (
            "--model.optim.lrr: SSD has no argument 'optim.lrr'; did you mean optim.lr?"
        )
        said = line(["fit", *MODELS["detection"], *TINY, "--trainer.max_epoch=3"])  # no abbreviation either
        assert said.startswith("--trainer.max_epoch: no such option; did you mean --trainer.max_epochs?")
        said = line(["fit", *MODELS["detection"], *TINY, "--run_dri=x"])
        assert said.startswith("--run_dri: no such option; did you mean --run_dir?")

    def test_key_in_a_file(self, line: Line, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("trainer: {max_epoch: 3}\n")
        assert (
            line(["fit", "--config=c.yaml"])
            == "trainer.max_epoch: no such key; did you mean trainer.max_epochs?"
        )
        (tmp_path / "c.yaml").write_text("modle: {class_path: SSD}\n")
        assert line(["fit", "--config=c.yaml"]) == "modle: no such key; did you mean model?"
        (tmp_path / "c.yaml").write_text("model: {class_path: SSD, init_args: {optim: {lrr: 1}}}\n")
        said = line(["fit", "--config=c.yaml"])
        assert "lrr" in said
        assert "lr" in said.split("did you mean")[1]

    def test_value(self, line: Line) -> None:
        assert (
            line(["fit", "--model=SSD", "--model.width=wide"])
            == "--model.width: expected a whole number, got wide"
        )
        said = line(["fit", *MODELS["detection"], *TINY, "--trainer.max_epochs=many"])
        assert said == "--trainer.max_epochs: expected a whole number, got many"
        said = line(["fit", *MODELS["detection"], *TINY, "--data.on_bad_sample=ignore"])
        assert said == "--data.on_bad_sample: expected one of raise, skip, got ignore"

    def test_class(self, line: Line) -> None:
        assert line(["fit", "--model=SDS"]) == "--model SDS: no such model; did you mean SSD?"
        said = line(["fit", "--model=SSD", "--data=VOCDatamodul"])
        assert said == "--data VOCDatamodul: no such data module; did you mean VOCDataModule?"

    def test_missing(self, line: Line) -> None:
        assert line(["fit"]).startswith("--data, --model: missing")
        assert line(["fit", "--model=SSD", "--data=VOCDataModule"]).startswith(
            "--data.root: missing, VOCDataModule"
        )
        assert line(["fit", "--config=none.yaml"]).endswith("none.yaml: no such file; mend the path")

    def test_torn_config(self, line: Line, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("model: [a\n b: 3")
        assert line(["fit", "--config=c.yaml"]).startswith("--config: no valid YAML: ")

    def test_task(self, line: Line, shapes: Path) -> None:
        said = line(["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--data.task=segmentation"])
        assert (
            said == "--data.task segmentation: SSD is a detection model; give --data.task detection, or "
            "none at all"
        )

    def test_checkpoint(self, line: Line, tmp_path: Path, fitted: Path) -> None:
        assert line(["test", "--ckpt_path=none.ckpt"]).startswith("none.ckpt: no such checkpoint")
        assert line(["test", "--ckpt_path=best"]).startswith("--ckpt_path best: of which run?")
        assert "no such checkpoint" in line(["fit", "--ckpt_path=last", "--run_dir=nowhere"])
        (tmp_path / "torn.ckpt").write_bytes((fitted / "checkpoints" / "best.ckpt").read_bytes()[:5000])
        assert line(["test", "--ckpt_path=torn.ckpt"]).startswith("torn.ckpt: torn or no checkpoint")
        torch.save({"a": 1}, tmp_path / "other.ckpt")
        assert line(["test", "--ckpt_path=other.ckpt"]).startswith("other.ckpt: no checkpoint of a training")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_absent_device(self, line: Line, shapes: Path, tmp_path: Path) -> None:
        said = line(
            ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--trainer.accelerator=cuda",
             "--run_dir=here"]
        )  # fmt: skip
        assert said.startswith("--trainer: ")
        assert "CUDA" in said

    def test_time(self, line: Line, shapes: Path) -> None:
        arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--run_dir=here"]
        assert "abc" in line([*arguments, "--trainer.max_time=abc"])

    def test_model_that_cannot_be_built(self, line: Line, shapes: Path) -> None:
        arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={shapes}", "--run_dir=here"]
        said = line([*arguments, "--model.backbone=resnet1888"])
        assert "resnet1888" in said

    def test_data_folder(self, line: Line, tmp_path: Path) -> None:
        said = line(
            ["fit", *MODELS["detection"], "--data=VOCDataModule", "--data.root=nowhere", "--run_dir=here"]
        )
        assert said.startswith("nowhere")
        assert not (tmp_path / "here" / "config.yaml").exists()


def test_keys_inside_of_classes_are_not_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        ["fit", "--model=FCN", "--data=VOCDataModule", f"--data.root={tmp_path}", "--model.optim.nam=sgd"]
    )
    assert status == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--model.optim.nam: " in said


def test_too_little_memory_is_one_line() -> None:
    data = SimpleNamespace(batch_size=64, eval_batch_size=32, num_workers=6)
    device = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB.")
    outer = RuntimeError("while it was compiled")
    outer.__cause__ = device
    for error in (device, outer):
        said = lightning_cli.too_little_memory(error, data) or ""
        assert said.startswith("the device's memory is too small (CUDA out of memory.") and "\n" not in said
        assert "give a smaller --data.batch_size (now 64), --data.eval_batch_size (now 32)" in said
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "the machine's memory" in (lightning_cli.too_little_memory(caught.value, data) or "")
    killed = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    killed.__cause__ = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit."
    )
    said = lightning_cli.too_little_memory(killed, data) or ""
    assert said.startswith("--data.num_workers 6: a process that reads images") and "/dev/shm" in said
    assert (
        lightning_cli.too_little_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), data)
        is None
    )


def test_what_a_user_cannot_mend_is_not_said() -> None:
    from segdet.cli.train import _quiet

    with _quiet():  # warnings are errors here
        warnings.warn("\n  Dump of a value that does not round-trip: a tuple is", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning):
            warnings.warn("another", UserWarning, stacklevel=1)
