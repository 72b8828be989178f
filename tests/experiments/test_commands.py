"""segdet accepts the training commands in the README, the results pages, the experiments and the configs."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("experiments/results/*.md")),
    *sorted(ROOT.glob("experiments/*.yaml")),
    *sorted(ROOT.glob("configs/**/*.yaml")),
]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words after ``segdet`` of every complete command on a page."""
    lines = re.findall(r"^(?:# )?segdet ([a-z].*)$", text, re.MULTILINE)
    for command in [*lines, *re.findall(r"`segdet ([a-z][^`]*)`", text)]:
        words = shlex.split(command.replace("\n", " "), comments=True)
        if "..." not in words:
            yield words


TRAININGS = sorted(
    {
        (str(path.relative_to(ROOT)), tuple(words))
        for path in PAGES
        for words in commands(path.read_text(encoding="utf-8"))
        if words[0] == "fit" and "--ckpt_path" not in words and "runs/NAME/config.yaml" not in words
    }
)


@pytest.mark.parametrize(
    ("page", "words"), TRAININGS, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60]
)
def test_segdet_accepts_the_command(
    page: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdet.cli.train import main

    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as leaving:
        main([*words, "--print_config"])
    assert leaving.value.code == 0, page


def test_every_config_contains_its_command() -> None:
    for path in ROOT.glob("configs/*/**/*.yaml"):
        if path.parent.name != "trainers":
            text = path.read_text(encoding="utf-8")
            assert any(str(path.relative_to(ROOT)) in words for words in commands(text)), path


def test_many_commands_are_found() -> None:
    assert len(TRAININGS) > 120
