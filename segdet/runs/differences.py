"""The differences between two runs in data, code, settings, packages and hardware."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdet.runs.folder_layout import first_provenance
from segdet.runs.inputs import Digests, Inputs

KINDS = ("data", "code", "settings", "packages", "hardware")

HARDWARE = ("cpu", "instructions", "cores", "threads", "gpus", "cuda")
"""The properties of a machine that can change a result."""

NEUTRAL = {"run_dir", "overwrite", "wandb", "wandb_project"}
"""Options of a run that do not change its result."""


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        kind: One of `KINDS`.
        subject: The file, package or property. The subset precedes a file of the dataset: ``train: a.jpg``.
        detail: The change, such as ``changed`` or ``2 -> 4``.
        missing: Whether the subject is a file that no longer exists.
    """

    kind: str
    subject: str
    detail: str
    missing: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject} {self.detail}"


@dataclass(frozen=True)
class Description:
    """The conditions of a run.

    Attributes:
        provenance: The content of ``provenance.json``.
        inputs: The inputs; None if an earlier version did not record them.
        config: The configuration.
    """

    provenance: Mapping[str, Any]
    inputs: Inputs | None
    config: Mapping[str, Any]


def differences(before: Description, now: Description) -> list[Difference]:
    """Return the differences between two runs, in the order of `KINDS`."""
    return [
        *_data(before, now),
        *_code(before, now),
        *_settings(before, now),
        *_packages(before.provenance, now.provenance),
        *_hardware(before.provenance, now.provenance),
    ]


def _data(before: Description, now: Description) -> Iterator[Difference]:
    if before.inputs is None or now.inputs is None:
        old, new = (str(each.provenance.get("fingerprint", "")) for each in (before, now))
        if old != new:
            detail = f"{old or 'unknown'} -> {new or 'unknown'}"
            yield Difference("data", "the fingerprint of names and sizes", detail)
        return
    for subset in dict.fromkeys([*before.inputs.data, *now.inputs.data]):
        old_files, new_files = before.inputs.data.get(subset, {}), now.inputs.data.get(subset, {})
        yield from _files("data", old_files, new_files, f"{subset}: ")
        shared = [name for name in old_files if name in new_files]
        if shared != [name for name in new_files if name in old_files]:
            yield Difference("data", subset, "has the same images in another order")
    if before.inputs.classes != now.inputs.classes:
        lists = (", ".join(each.inputs.classes) for each in (before, now))  # type: ignore[union-attr]
        yield Difference("data", "the classes", " -> ".join(f"[{names}]" for names in lists))
    yield from _files("data", before.inputs.named, now.inputs.named)


def _code(before: Description, now: Description) -> Iterator[Difference]:
    if before.inputs is not None and now.inputs is not None:
        yield from _files("code", before.inputs.code, now.inputs.code)
        if before.inputs.code == now.inputs.code:
            return  # other commits and uncommitted changes have no effect
    old, new = (each.provenance.get("git") for each in (before, now))
    if old and new and old != new:
        yield Difference("code", "the commit", f"{_commit(old)} -> {_commit(new)}")


def _commit(state: Mapping[str, Any]) -> str:
    changes = " with uncommitted changes" if state.get("dirty") else ""
    return f"{str(state.get('commit'))[:10]}{changes}"


def _files(kind: str, before: Digests, now: Digests, where: str = "") -> Iterator[Difference]:
    for name, digest in before.items():
        if now.get(name) == digest:
            continue
        missing = now.get(name) is None
        yield Difference(kind, f"{where}{name}", "is missing" if missing else "changed", missing)
    for name, digest in now.items():
        if name not in before and digest is not None:
            yield Difference(kind, f"{where}{name}", "is new")


def _settings(before: Description, now: Description) -> Iterator[Difference]:
    for part in before.provenance.get("resumed", []):
        for change in part.get("changes", []):
            yield Difference("settings", "the original was resumed with", str(change))
        recorded = before.provenance.get("inputs")
        if recorded and part.get("inputs") and part["inputs"] != recorded:
            yield Difference("settings", "data or code", "changed before the original was resumed")
    old, new = flat_settings(before.config), flat_settings(now.config)
    for name in dict.fromkeys([*old, *new]):
        if name.split(".")[0] not in NEUTRAL and old.get(name) != new.get(name):
            yield Difference("settings", f"--{name}", f"{old.get(name)} -> {new.get(name)}")
    for name in ("processes", "precision"):
        values = [each.provenance.get(name) for each in (before, now)]
        if None not in values and values[0] != values[1]:
            yield Difference("settings", name, f"{values[0]} -> {values[1]}")


def flat_settings(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested configuration by dotted name, without jsonargparse's ``init_args``."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        path = prefix if name == "init_args" else f"{prefix}.{name}" if prefix else str(name)
        flat |= flat_settings(value, path)
    return flat


def _packages(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    old, new = (each.get("packages") or {} for each in (before, now))
    if before.get("python") != now.get("python"):
        yield Difference("packages", "python", f"{before.get('python')} -> {now.get('python')}")
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Difference("packages", name, f"{old.get(name, 'none')} -> {new.get(name, 'none')}")


def _hardware(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    old, new = (each.get("hardware") or {} for each in (before, now))
    for name in HARDWARE:
        if name in old and name in new and old[name] != new[name]:
            fix = f" (OMP_NUM_THREADS={old[name]} restores it)" if name == "threads" else ""
            yield Difference("hardware", name, f"{old[name]} -> {new[name]}{fix}")


def description_of(folder: Path, config: Mapping[str, Any]) -> Description:
    """Return the recorded conditions of the run in ``folder``."""
    return Description(first_provenance(folder), Inputs.read(folder), config)
