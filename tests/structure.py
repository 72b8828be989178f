"""Print measures of the structure of the package: ``python tests/structure.py [ROOT]``.

``ROOT`` is a checkout, by default the one that holds this file. Imports inside functions and under ``TYPE_CHECKING``
count like all others. Only the syntax is read; nothing is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LAYERS = [
    {"__main__"},
    {"cli"},
    {"report"},
    {"explain"},
    {"launch"},
    {"profiling"},
    {"runs"},
    {"segmentation", "localization", "detection"},
    {"task"},
    {"training"},
    {"proposals"},
    {"metrics"},
    {"data"},
    {"nn"},
    {"util"},
]
"""Packages and modules of segdet from top to bottom. A part imports from lower layers and from itself."""

CONTRACT = "segdet.data.sample"
"""Samples, targets and predictions. It imports nothing of segdet, and every part may import it."""

ENTRIES = ("segdet.cli.train", "segdet.lightning_cli")
"""The entry module of the training command, under its present name and an earlier one."""

MOST_LINES = 600
MOST_METHODS = 20


def part_of(module: str) -> str:
    """Return the part of ``module``: ``data`` for ``segdet.data.sample``."""
    return [*module.split("."), ""][1]


def layer_of(part: str) -> int | None:
    """Return the position of a part in `LAYERS`, or None for a part that is not listed."""
    return next((position for position, parts in enumerate(LAYERS) if part in parts), None)


def imported_names(source: str) -> Iterator[str]:
    """Yield the dotted names of segdet that a file imports.

    ``from segdet.data import sample`` yields ``segdet.data.sample``, which may be a module or a name of the package.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "segdet")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "segdet":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward_imports(module: str, source: str) -> list[str]:
    """Return the imports in ``source``, the text of ``module``, that do not run downward."""
    own = layer_of(part_of(module))
    found = []
    for name in imported_names(source):
        if module == CONTRACT:
            found.append(name)
            continue
        other = layer_of(part_of(name))
        if name.startswith(CONTRACT) or own is None or other is None or part_of(name) == part_of(module):
            continue
        if other <= own:
            found.append(name)
    return found


@dataclass
class Structure:
    """The syntax of all modules of a checkout.

    Attributes:
        root: The checkout.
    """

    root: Path

    @cached_property
    def sources(self) -> dict[str, str]:
        """The text of each module by its dotted name; a package has the text of its ``__init__.py``."""
        sources = {}
        for path in sorted((self.root / "segdet").rglob("*.py")):
            name = ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__")
            sources[name] = path.read_text(encoding="utf-8")
        return sources

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The modules that each module imports."""
        imports = {}
        for module, text in self.sources.items():
            names = imported_names(text)
            targets = {name if name in self.sources else name.rsplit(".", 1)[0] for name in names}
            imports[module] = {target for target in targets if target in self.sources and target != module}
        return imports

    def lines(self) -> int:
        """Return the number of lines of the package."""
        return sum(len(text.splitlines()) for text in self.sources.values())

    def long_files(self) -> list[str]:
        """Return the modules of more than 600 lines."""
        lengths = {module: len(text.splitlines()) for module, text in self.sources.items()}
        return [f"{module} ({lines})" for module, lines in lengths.items() if lines > MOST_LINES]

    def large_classes(self) -> list[str]:
        """Return the classes of more than 20 methods."""
        found = []
        for module, text in self.sources.items():
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                    if len(methods) > MOST_METHODS:
                        found.append(f"{module}.{node.name} ({len(methods)})")
        return found

    def cycles(self) -> list[str]:
        """Return the groups of modules that import each other, directly or through others."""
        reached = {module: self._reachable(module) for module in self.sources}
        groups = {
            frozenset(other for other in reached[module] if module in reached[other])
            for module in self.sources
            if module in reached[module]
        }
        return sorted(" <-> ".join(sorted(group)) for group in groups)

    def _reachable(self, module: str) -> set[str]:
        seen: set[str] = set()
        pending = list(self.imports[module])
        while pending:
            current = pending.pop()
            if current not in seen:
                seen.add(current)
                pending += self.imports[current]
        return seen

    def upward(self) -> list[str]:
        """Return the imports that do not run downward."""
        return [
            f"{module} -> {name}"
            for module, text in self.sources.items()
            for name in upward_imports(module, text)
        ]

    def unlisted(self) -> list[str]:
        """Return the parts that no layer lists."""
        parts = {part_of(module) for module in self.sources} - {""}
        return sorted(part for part in parts if layer_of(part) is None)

    def entry_imports(self) -> list[str]:
        """Return the modules of segdet that the entry module of the training command imports."""
        entry = next(name for name in ENTRIES if name in self.sources)
        return sorted(self.imports[entry])

    def closest_match_files(self) -> list[str]:
        """Return the modules that call ``difflib.get_close_matches``."""
        return [module for module, text in self.sources.items() if "get_close_matches(" in text]

    def atomic_writes(self) -> list[str]:
        """Return the places that rename a file over another: ``os.replace(a, b)`` or ``path.replace(target)``."""
        found = []
        for module, text in self.sources.items():
            for node in ast.walk(ast.parse(text)):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
                renames = node.func.attr in ("replace", "rename", "move")
                if renames and (of_os or (len(node.args) == 1 and not node.keywords)):
                    found.append(f"{module}:{node.lineno}")
        return found


def main(argv: list[str]) -> None:
    """Print every measure, with the places that it counts."""
    structure = Structure(Path(argv[0]) if argv else Path(__file__).resolve().parents[1])
    for title, places in (
        (f"files over {MOST_LINES} lines", structure.long_files()),
        (f"classes over {MOST_METHODS} methods", structure.large_classes()),
        ("import cycles", structure.cycles()),
        ("upward imports", structure.upward()),
        ("parts outside the layout", structure.unlisted()),
        ("segdet modules imported by the training command's entry module", structure.entry_imports()),
        ("files with get_close_matches", structure.closest_match_files()),
        ("places with an atomic write", structure.atomic_writes()),
    ):
        print(f"{title}: {len(places)}")
        for place in places:
            print(f"    {place}")
    print(f"lines of segdet/: {structure.lines():,}")


if __name__ == "__main__":
    main(sys.argv[1:])
