"""The structure of the package: imports run downward, and modules stay small enough to read."""

from pathlib import Path

import pytest
from structure import Structure, main, upward_imports

STRUCTURE = Structure(Path(__file__).resolve().parents[1])


def test_imports_run_downward() -> None:
    assert STRUCTURE.upward() == []


def test_every_part_has_a_layer() -> None:
    assert STRUCTURE.unlisted() == []


def test_no_modules_import_each_other() -> None:
    assert STRUCTURE.cycles() == []


def test_files_and_classes_are_small() -> None:
    assert STRUCTURE.long_files() == []
    assert STRUCTURE.large_classes() == []


def test_the_training_command_imports_few_modules() -> None:
    assert len(STRUCTURE.entry_imports()) <= 10


def test_name_suggestions_and_atomic_writes_are_each_in_one_module() -> None:
    assert STRUCTURE.closest_match_files() == ["segdet.util.suggest"]
    assert {place.split(":")[0] for place in STRUCTURE.atomic_writes()} == {"segdet.util.files"}


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("segdet.runs.folder_layout", "from segdet.launch.bench import main", ["segdet.launch.bench.main"]),
        ("segdet.detection.ssd", "from segdet import segmentation", ["segdet.segmentation"]),
        ("segdet.launch.bench", "def f():\n    import segdet.cli.train", ["segdet.cli.train"]),
        ("segdet.util.errors", "from segdet.data.dataset import X", ["segdet.data.dataset.X"]),
        ("segdet.nn.boxes", "from segdet.data.dataset import X", ["segdet.data.dataset.X"]),
        ("segdet.nn.boxes", "from segdet.data.sample import Target", []),
        (
            "segdet.data.sample",
            "from segdet.data.images import read_image",
            ["segdet.data.images.read_image"],
        ),
        ("segdet.data.sample", "from segdet.util.errors import UserError", ["segdet.util.errors.UserError"]),
        ("segdet.detection.ssd", "from segdet.detection.base import Detector", []),
        ("segdet.detection.ssd", "from segdet.proposals import Proposer", []),
        ("segdet.cli.train", "from segdet.cli.main import main\nfrom segdet import detection", []),
    ],
)
def test_upward_imports_are_found(module: str, line: str, found: list[str]) -> None:
    assert upward_imports(module, line) == found


def write_package(root: Path, **modules: str) -> Structure:
    for name, text in modules.items():
        path = root / "segdet" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Structure(root)


def test_a_cycle_is_found_through_a_third_module_and_inside_functions(tmp_path: Path) -> None:
    structure = write_package(
        tmp_path,
        data__a="from segdet.data import b",
        data__b="def f():\n    from segdet.data.c import x",
        data__c="import segdet.data.a",
        data__d="from segdet.data import a",
    )
    assert structure.cycles() == ["segdet.data.a <-> segdet.data.b <-> segdet.data.c"]


def test_renamed_files_are_found_and_string_replacements_are_not(tmp_path: Path) -> None:
    text = (
        "import os\nos.replace(a, b)\npartial.replace(path)\n'a'.replace('a', 'b')\nreplace(record, name=1)\n"
    )
    assert write_package(tmp_path, a=text).atomic_writes() == ["segdet.a:2", "segdet.a:3"]


def test_large_files_and_classes_are_found(tmp_path: Path) -> None:
    methods = "".join(f"    def f{number}(self): ...\n" for number in range(21))
    structure = write_package(tmp_path, a="\n" * 601, b=f"class C:\n{methods}")
    assert structure.long_files() == ["segdet.a (601)"]
    assert structure.large_classes() == ["segdet.b.C (21)"]


def test_the_script_prints_every_measure(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    assert "import cycles: 0" in printed and "lines of segdet/: " in printed
