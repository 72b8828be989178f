"""A job: one run of an experiment or a sweep, and the command that executes it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from segdet.launch.state import RunState, read_state
from segdet.util.errors import UserError

Action = Literal["train", "resume", "test", "skip"]


@dataclass(frozen=True)
class Job:
    """One run, which is trained and optionally tested by one command.

    Attributes:
        folder: The run folder.
        arguments: The arguments of ``segdet fit``, without those that a job sets: the folder, ``resume`` and ``test``.
        settings: All settings of the training: the arguments, and the digests of the config files. For a trial of a
            sweep, its parameters. They are kept beside the folder, so that changed settings are noticed.
        test: Whether to test the run after training.
        after: The folder of the run that must be finished first, or None.
        action: The action that was left to do when the job was planned.
        planned: The files of the run when the job was planned, from `_fingerprint`. None if it was not planned.
    """

    folder: Path
    arguments: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    test: bool = True
    after: Path | None = None
    action: Action = "train"
    planned: tuple[object, ...] | None = None

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments of segdet that start or resume the run, and test it. Repeating the command does no harm."""
        test = ("--test=true",) if self.test else ()
        return ("fit", *self.arguments, f"--run_dir={self.folder}", "--resume=auto", *test)

    @property
    def settings_path(self) -> Path:
        """The file with the settings of the training, beside the run folder."""
        return self.folder.with_name(f"{self.name}.json")

    @property
    def log_path(self) -> Path:
        """The file with the output of the run, beside the run folder."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def trains(self) -> bool:
        """Whether training was left to do."""
        return self.action in ("train", "resume")

    def state(self) -> RunState:
        """Return the state of the run."""
        return read_state(self.folder, self.after)

    def start(self, source: Path) -> Action:
        """Prepare the folder for the command, and return the action that is left to do.

        The caller has claimed the run. If another process has trained or tested it since the job was planned, its
        settings must be those of this job, and its results are kept.

        Args:
            source: The file that describes the runs, for messages.

        Raises:
            UserError: If another process has trained the run with other settings.
        """
        unchanged = self.planned == _fingerprint(self.settings_path, self.state())
        job = self if unchanged else self.with_action(source, rerun=False)
        if job.action == "train":
            shutil.rmtree(self.folder, ignore_errors=True)
            self.log_path.unlink(missing_ok=True)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.settings_path.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
        return job.action

    def with_action(self, source: Path, rerun: bool) -> "Job":
        """Return the job with the action that the state of its folder requires.

        Raises:
            UserError: If ``rerun`` is not set and the run was trained with other settings than those in the
                experiment file ``source``.
        """
        state = self.state()
        planned = replace(self, planned=_fingerprint(self.settings_path, state))
        if not state.is_finished and not state.has_checkpoint:
            return replace(planned, action="train")  # without a checkpoint there is nothing to resume
        if difference := self.difference():
            if rerun:
                return replace(planned, action="train")
            raise UserError(
                f"{source}: {self.folder} was trained with other settings ({difference}); "
                "pass --rerun to remove it and train it again, or another --runs_dir to keep both"
            )
        if not state.is_finished:
            return replace(planned, action="resume")
        return replace(planned, action="skip" if state.is_tested or not self.test else "test")

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


def _fingerprint(settings_path: Path, state: RunState) -> tuple[object, ...]:
    """Return values that differ after another process has started, resumed, finished or tested the run."""
    try:
        written = settings_path.stat().st_mtime_ns
    except OSError:
        written = 0
    return written, state.has_checkpoint, state.is_finished, state.is_tested
