"""Python code on results pages prints the numbers in the text, and the files that pages name exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "printed"), [("detection_bccd", "945 900"), ("detection_tiny_coco", "405 of 465")]
)
def test_code_on_a_page_prints_the_numbers_in_the_text(page: str, printed: str, real_data: Path) -> None:
    text = (ROOT / f"experiments/results/{page}.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program = program.replace("path/to/", f"{real_data}/")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == printed, done.stderr


@pytest.mark.parametrize(
    "path",
    [
        path
        for pattern in (
            "*.md",
            "experiments/results/*.md",
            "experiments/*.yaml",
            "configs/**/*.yaml",
            "sweeps/*",
        )
        for path in sorted(ROOT.glob(pattern))
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_file_that_a_page_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(
        r"(?<![\w/.-])(?:configs|experiments|sweeps|tests|segdet)/[\w./-]*\.(?:yaml|py|md|png)", text
    )
    example = re.findall(r"Save it as `([^`]+)`", text)
    assert [name for name in named if not (ROOT / name).exists() and name not in example] == []
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
