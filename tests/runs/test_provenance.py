import json
import subprocess
from pathlib import Path

from segdet.runs.provenance import git_state, provenance


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert not state["dirty"]
    (tmp_path / "a.txt").write_text("two")
    changed = git_state(tmp_path)
    assert changed is not None
    assert changed["dirty"]


def test_provenance_is_plain() -> None:
    about = json.loads(json.dumps(provenance("segdet fit")))
    assert about["command"] == "segdet fit"
    assert {"torch", "lightning", "numpy"} <= about["packages"].keys()
    assert about["hardware"]["cores"] >= 1
