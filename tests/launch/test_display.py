"""The table of runs: what it reads from their files, and how it is drawn."""

import io
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from segdet.cli.main import main
from segdet.launch.display import LiveTable, Row, read_row, render, table
from segdet.launch.job import Job
from segdet.launch.state import find_runs, read_state, write_fault, write_runs
from segdet.runs.ownership import Ownership
from segdet.runs.record import Cost, Record, Status


def write_run(
    folder: Path, epochs: int = 0, status: Status | None = None, test: float | None = None, minutes: int = 10
) -> None:
    """Write the files of a run that has trained for some of its 10 epochs, 4 steps each."""
    (folder / "checkpoints").mkdir(parents=True)
    folder.with_name(f"{folder.name}.log").touch()
    (folder / "config.yaml").write_text("trainer: {max_epochs: 10, max_time: null}\n")
    started = datetime.now(UTC) - timedelta(minutes=minutes)
    (folder / "provenance.json").write_text(json.dumps({"started": started.isoformat()}))
    rows = ["epoch,step,train/loss,val/map"]
    for epoch in range(epochs):
        rows += [f"{epoch},{epoch * 4 + 1},0.5,", f"{epoch},{epoch * 4 + 3},,{0.3 - 0.01 * epoch}"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    if epochs:
        (folder / "checkpoints/last.ckpt").touch()
    if status is not None:
        metrics: dict[str, float | None] = {"val/map": 0.3} | ({} if test is None else {"test/map": test})
        Record(folder.name, "detection", "SSD", "S", 0, status, metrics, Cost(), epochs).write(
            folder / "result.json"
        )


@pytest.mark.parametrize(
    ("epochs", "status", "test", "state", "epoch", "score"),
    [
        (0, None, None, "new", "", ""),
        (3, None, None, "stopped", "3/10", "val/map 0.300"),
        (3, "interrupted", None, "stopped", "3/10", "val/map 0.300"),
        (3, "diverged", None, "diverged", "3/10", "val/map 0.300"),
        (3, "failed", None, "failed", "3/10", "val/map 0.300"),
        (10, "finished", None, "finished", "10/10", "val/map 0.300"),
        (10, "finished", 0.25, "tested", "10/10", "test/map 0.250"),
    ],
)
def test_the_state_of_a_run_is_read_from_its_files(
    epochs: int, status: Status | None, test: float | None, state: str, epoch: str, score: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", epochs, status, test)
    row = read_row(tmp_path / "run")
    assert (row.state, row.epoch, row.score, row.left) == (state, epoch, score, "")
    assert row.log == str(tmp_path / "run.log")
    assert read_state(tmp_path / "run").has_checkpoint is (epochs > 0)


def test_a_running_run_has_an_owner_and_the_time_left(tmp_path: Path) -> None:
    write_run(tmp_path / "run", epochs=5)
    owner = Ownership(tmp_path / "run")
    row = read_row(tmp_path / "run")
    assert (row.state, row.epoch, row.left) == ("training", "5/10", "10 min")
    state = read_state(tmp_path / "run")
    assert state.owner is not None and state.owner.pid == os.getpid()
    owner.release()
    assert read_row(tmp_path / "run").state == "stopped"


def test_a_duration_limits_the_time_left(tmp_path: Path) -> None:
    write_run(tmp_path / "run", epochs=1, minutes=10)
    (tmp_path / "run/config.yaml").write_text("trainer: {max_epochs: -1, max_time: '00:01:15:00'}\n")
    owner = Ownership(tmp_path / "run")
    assert read_row(tmp_path / "run").left == "1 h 05 min"
    owner.release()


def test_runs_that_wait_have_not_started_or_failed_early(tmp_path: Path) -> None:
    write_runs(tmp_path, {"a": None, "b": "a"})
    write_runs(tmp_path, {"c": None})  # another bench of other runs
    write_fault(tmp_path / "c", "fit ended with exit status 2 (no such file)")
    rows = table(find_runs(tmp_path), {"a": "queued (Priority)"})
    assert [(row.name, row.state) for row in rows] == [
        ("a", "queued (Priority)"), ("b", "waits for a"), ("c", "failed"),
    ]  # fmt: skip
    assert rows[2].fault == "fit ended with exit status 2 (no such file)"
    write_run(tmp_path / "a", 10, "finished")
    assert [row.state for row in table(find_runs(tmp_path))] == ["finished", "new", "failed"]


def test_the_table_fits_the_terminal() -> None:
    rows = [Row(f"run{i}", "new" if i else "tested") for i in range(30)]
    rows[20] = Row("run20", "training", "1/2", "val/map 0.1", "3 min", "a/very/long/path/to/a/file.log")
    rows[25] = Row("run25", "failed")
    lines = render(rows, width=46, height=8).splitlines()
    assert len(lines) == 7 and max(map(len, lines)) <= 46
    assert lines[0].split()[:5] == ["run", "state", "epoch", "score", "left"]
    assert any(line.startswith("run20  training") for line in lines)
    assert any(line.startswith("run25  failed") for line in lines)
    assert lines[-1].startswith("30 runs: 1 tested, 27 new, 1 training, 1")
    assert "left" not in render([Row("a", "new")])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO) -> list[str]:
    """Return the lines on the screen."""
    lines = [""]
    row = 0
    for part in re.split(r"(\x1b\[\d*[FJK]|\n)", stream.getvalue()):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("F") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            lines[row:] = [""]
        elif part != "\x1b[K":
            lines[row] = part if part else lines[row]
    return [line for line in lines if line]


def test_a_terminal_shows_one_table_that_is_redrawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segdet.launch.display.INTERVAL", 0.0)
    stream = Terminal()
    write_run(tmp_path / "a", 1)
    with LiveTable(lambda: {tmp_path / "a": None, tmp_path / "b": None}, stream) as display:
        display.update(())
        assert [line.split()[:2] for line in shown(stream)[1:3]] == [["a", "stopped"], ["b", "new"]]
        display.message("b: finished")
        write_run(tmp_path / "b", 10, "finished", 0.5)
    lines = shown(stream)
    assert lines[0] == "b: finished" and len(lines) == 5
    assert [line.split()[:2] for line in lines[2:4]] == [["a", "stopped"], ["b", "tested"]]
    assert lines[-1] == "2 runs: 1 stopped, 1 tested"


def test_other_outputs_show_changes_as_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segdet.launch.display.INTERVAL", 0.0)
    stream = io.StringIO()
    write_run(tmp_path / "a", 10, "finished", 0.5)
    write_run(tmp_path / "b", 2)
    with LiveTable(lambda: {tmp_path / "a": None, tmp_path / "b": None}, stream) as display:
        owner = Ownership(tmp_path / "b")
        display.update(())
        display.update(())
        owner.release()
        display.message("b: stopped")
    assert stream.getvalue().splitlines() == [
        "b: training, epoch 2/10, val/map 0.300, 40 min left",
        "b: stopped",
        "b: stopped, epoch 2/10, val/map 0.300",
    ]


def test_a_run_whose_process_is_ending_is_not_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdet.launch.display.INTERVAL", 0.0)
    stream = io.StringIO()
    write_run(tmp_path / "a", 10)
    job = Job(tmp_path / "a", ())
    with LiveTable(lambda: {tmp_path / "a": None}, stream) as display:
        display.update([job])
        display.message("the process claims the folder")
        owner = Ownership(tmp_path / "a")
        display.update([job])
        display.message("the process releases the folder")
        owner.release()
        display.update([job])
        display.message("the process has ended")
        display.update(())
        display.message("the next process")
        display.update([job])
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "a: starting",
        "the process claims the folder",
        "a: training",
        "the process releases the folder",
        "the process has ended",
        "a: stopped",
        "the next process",
        "a: starting",
        "a: stopped",
    ]


def test_status_prints_the_table_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path, {"a": None, "b": "a"})
    write_run(tmp_path / "a", 3)
    write_fault(tmp_path / "a", "fit ended with exit status 2")
    assert main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["run", "state", "epoch"], ["a", "failed", "3/10"], ["b", "waits", "for"],
    ]  # fmt: skip
    assert lines[3:] == ["2 runs: 1 failed, 1 waiting", "a: fit ended with exit status 2"]
    assert main(["status", str(tmp_path / "a" / "checkpoints")]) == 2
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    code = (
        "import sys; from segdet.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "status", str(tmp_path)], check=True, capture_output=True)


def test_status_is_shown_when_the_queue_does_not_respond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", 3)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/demo-1.json").write_text('["a"]')
    monkeypatch.setenv("PATH", "")
    assert main(["status", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "a    stopped" in out and "squeue cannot be run" in err and len(err.splitlines()) == 1
