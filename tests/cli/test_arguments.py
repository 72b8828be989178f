"""The parser that the data commands and `segdet proposals` share."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from segdet.cli.arguments import CommandParser, check_least, check_output, run_command
from segdet.util.errors import UserError


@pytest.mark.parametrize("command", ["check", "stats", "show", "make", "download"])
def test_help_does_not_import_torch(command: str) -> None:
    code = (
        "import sys; from segdet.cli.main import main; "
        f"status = main(['data', {command!r}, '--help']); sys.exit(status or ('torch' in sys.modules) * 3)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and f"usage: segdet data {command}" in result.stdout


def test_least_values() -> None:
    check_least(Namespace(workers=None, count=1), workers=1, count=1)
    with pytest.raises(UserError, match=r"^--workers 0: must be at least 1$"):
        check_least(Namespace(workers=0), workers=1)


def test_outputs_are_checked_and_left_as_they_are(tmp_path: Path) -> None:
    check_output("--json", None)
    check_output("--json", tmp_path / "new" / "a.json")
    assert not (tmp_path / "new" / "a.json").exists()
    (tmp_path / "b.png").write_text("content")
    check_output("--plot", tmp_path / "b.png", (".png",))
    assert (tmp_path / "b.png").read_text() == "content"
    with pytest.raises(UserError, match=r"--plot .*b\.pdf: must end in \.png or \.svg"):
        check_output("--plot", tmp_path / "b.pdf", (".png", ".svg"))
    with pytest.raises(UserError, match="cannot be written"):
        check_output("--json", tmp_path / "b.png" / "a.json")


def test_a_user_error_is_reported_in_one_line_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Namespace) -> int:
        raise UserError("a.txt: no such file; give another")

    assert run_command(CommandParser("segdet data check", ""), [], fail) == 2
    assert capsys.readouterr().err == "segdet data check: a.txt: no such file; give another\n"
