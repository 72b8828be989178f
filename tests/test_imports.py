"""Imports run downward through the house and never back up."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import segdet

ROOT = Path(segdet.__file__).parent

LAYERS = [
    ["cli", "lightning_cli", "parser_errors", "__main__"],
    ["report"],
    ["benchmark"],
    ["sweep"],
    ["callbacks"],
    ["segmentation", "localization", "detection"],  # which do not know each other
    ["task"],
    ["proposals"],
    ["metrics"],
    ["data"],
    ["nn"],
]
"""The packages and modules of segdet from top to bottom; modules that are not named stand below all of them."""

CONTRACT = "segdet.data.sample"
"""What samples, targets and predictions are: all speak of it."""


def imports(source: str) -> Iterator[str]:
    """The modules of segdet that a file names in its imports, also in those that wait within a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "segdet")
        elif isinstance(node, ast.ImportFrom) and node.module == "segdet":
            yield from (f"segdet.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("segdet."):
            yield str(node.module)


def height(part: str) -> int:
    """How far above the ground a package or module stands."""
    return next((len(LAYERS) - place for place, names in enumerate(LAYERS) if part in names), 0)


def upward(part: str, source: str) -> list[str]:
    """The imports of ``source``, a file of the package or module ``part``, that do not run downward."""
    cli = LAYERS[0]
    return [
        name
        for name in imports(source)
        if name != CONTRACT
        and (other := name.split(".")[1]) != part
        and height(other) >= max(height(part), 1)
        and not (part in cli and other in cli)
    ]


@pytest.mark.parametrize("part", sorted(path.stem for path in ROOT.iterdir() if path.stem != "__pycache__"))
def test_imports_run_downward(part: str) -> None:
    package = ROOT / part
    for path in sorted(package.rglob("*.py")) if package.is_dir() else [ROOT / f"{part}.py"]:
        assert upward(part, path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    ("part", "line", "found"),
    [
        ("callbacks", "from segdet.benchmark.record import Record", ["segdet.benchmark.record"]),
        ("detection", "from segdet import segmentation", ["segdet.segmentation"]),
        ("benchmark", "def f():\n    import segdet.cli.train", ["segdet.cli.train"]),
        ("errors", "from segdet.data.formats.reader import Reader", ["segdet.data.formats.reader"]),
        ("nn", "from segdet.data.formats.reader import Reader", ["segdet.data.formats.reader"]),
        ("nn", "from segdet.data.sample import Target\nfrom segdet.util.errors import UserError", []),
        (
            "detection",
            "from segdet.detection.base import Detector\nfrom segdet.proposals import Proposer",
            [],
        ),
        ("lightning_cli", "from segdet.cli.main import main\nfrom segdet import detection", []),
    ],
)
def test_other_directions_are_found(part: str, line: str, found: list[str]) -> None:
    assert upward(part, line) == found
