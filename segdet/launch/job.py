"""A job: one run of an experiment with one seed, and the action that is left to do."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from segdet.runs.folder_layout import read_record
from segdet.util.errors import UserError

Action = Literal["train", "resume", "test", "skip"]


@dataclass(frozen=True)
class Job:
    """One run with one seed.

    Attributes:
        folder: The run folder.
        fit: The arguments of the segdet command that trains the run.
        test: The arguments of the command that tests it, or None to leave the test out.
        settings: All settings of the training: the arguments, and the digests of the config files.
        action: The action that is left to do.
        after: The folder of the run that must be finished first, or None.
    """

    folder: Path
    fit: tuple[str, ...]
    test: tuple[str, ...] | None
    settings: Mapping[str, str]
    action: Action = "train"
    after: Path | None = None

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def settings_path(self) -> Path:
        """The file with the settings of the training, beside the run folder."""
        return self.folder.with_name(f"{self.name}.json")

    @property
    def log_path(self) -> Path:
        """The file with the output of the run, beside the run folder."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def fit_command(self) -> tuple[str, ...]:
        """The arguments that train the run, or that resume it."""
        return (*self.fit, f"--ckpt_path={self.last}") if self.action == "resume" else self.fit

    @property
    def trains(self) -> bool:
        """Whether training is left to do."""
        return self.action in ("train", "resume")

    def start(self) -> None:
        """Remove the files of an earlier training and save the settings, unless the training is resumed."""
        if self.action == "train":
            shutil.rmtree(self.folder, ignore_errors=True)
            self.settings_path.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")

    def with_action(self, source: Path, rerun: bool) -> "Job":
        """Return the job with the action that the state of its folder requires.

        Raises:
            UserError: If ``rerun`` is not set and the run was trained with other settings than those in the
                experiment file ``source``.
        """
        record = read_record(self.folder)
        finished = record is not None and record.status == "finished"
        if not finished and not self.last.exists():
            return replace(self, action="train")  # without a checkpoint there is nothing to resume
        if difference := self.difference():
            if rerun:
                return replace(self, action="train")
            raise UserError(
                f"{source}: {self.folder} was trained with other settings ({difference}); "
                "pass --rerun to remove it and train it again, or another --runs_dir to keep both"
            )
        if record is None or not finished:
            return replace(self, action="resume")
        return replace(self, action="skip" if self.test is None or record.is_tested else "test")

    def difference(self) -> str:
        """Describe how the settings differ from those of the earlier training. Empty if they are equal."""
        try:
            before = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"{self.settings_path}, the file of its settings, is missing or corrupt"

        def describe(key: str) -> str:
            if key not in before:
                return f"{key} is new"
            if key not in self.settings:
                return f"{key} was removed"
            return f"{key} was {before[key]}" if key.startswith("--") else f"{key} changed"

        changed = [key for key in {**before, **self.settings} if before.get(key) != self.settings.get(key)]
        return ", ".join(map(describe, changed))


def is_finished(folder: Path) -> bool:
    """Return whether the run in ``folder`` was trained to the end."""
    record = read_record(folder)
    return record is not None and record.status == "finished"
