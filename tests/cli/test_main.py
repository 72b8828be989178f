"""The command itself: help, subcommands and exit statuses."""

import subprocess
import sys
import time

import pytest
from tiny_runs import Line

from segdet.cli.main import main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"]):
        assert main(argv) == 0
        message = capsys.readouterr().out
        assert all(name in message for name in ("fit", "test", "predict", "bench", "report", "data"))


@pytest.mark.parametrize("argv", [["--help"], [], ["fti"], ["data", "--help"], ["--version"]])
def test_responds_without_importing_torch(argv: list[str]) -> None:
    code = (
        "import sys; from segdet.cli.main import main; main(sys.argv[1:]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'jsonargparse', 'numpy')))"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *argv], check=True, capture_output=True)
    assert time.perf_counter() - start < 5  # 0.1 s on an idle machine


def test_mistyped_subcommand(line: Line) -> None:
    assert line(["fti"]) == "no command 'fti'; did you mean fit?"
    assert line(["train"]) == "no command 'train'; did you mean fit?"
    assert line(["data", "chekc"]) == "no command 'data chekc'; did you mean data check?"
    assert "choose from fit, validate" in line(["xyzzy"])


def test_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "segdet", "fti"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "segdet: error: no command 'fti'; did you mean fit?\n"
