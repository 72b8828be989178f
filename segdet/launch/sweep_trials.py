"""The trials of a sweep in Optuna's storage.

A trial has a number, its parameters and a state. While it runs, it has a claim: an owner, a lease that the owner
renews, and the number of attempts. Another worker may claim the trial again after its owner has given it up or the
lease has expired. It then continues the same run folder, so that no trial is lost and none is repeated under another
number.
"""

import datetime
import json
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from segdet.launch.sweep_file import Sweep
from segdet.launch.sweep_space import Choice, Point
from segdet.launch.sweep_storage import SweepStorage
from segdet.util.errors import UserError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

State = Literal["running", "finished", "stopped", "failed"]

LEASE = 120.0
"""The length of a lease in seconds. Another worker may continue a trial whose lease has expired."""

_CLAIM, _POINT, _REASON, _STOP = "claim", "parameters", "reason", "stop"


@dataclass(frozen=True)
class Claim:
    """The right of a worker to run a trial.

    Attributes:
        owner: The worker, or an empty string after it has given the trial up.
        until: The end of the lease, in seconds since 1970 by the clock of the storage.
        attempts: The number of claims so far.
        failures: The number of attempts in a row that failed.
    """

    owner: str
    until: float
    attempts: int
    failures: int = 0


@dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
        number: Its number, from 0.
        point: Its parameters by dotted name.
        state: Its state. ``stopped`` means early termination.
        score: The value of the metric, if it is finished or stopped.
        claim: The claim.
        reason: Why it failed.
        is_bad: Whether early termination has decided to stop it.
        values: The values of the metric so far. The key of the first one is 1.
    """

    number: int
    point: Point
    state: State
    score: float | None
    claim: Claim
    reason: str
    is_bad: bool
    values: Mapping[int, float]

    @property
    def name(self) -> str:
        """The name of the trial and of its run folder."""
        return f"trial-{self.number:03d}"


class SweepTrials:
    """The trials of a sweep. All workers of the sweep use the same storage.

    Args:
        sweep: The sweep.
        url: The storage, ``sqlite:///FILE`` or ``postgresql://...``.
        seed: The seed of the search. With None, an existing sweep keeps its seed, and a new one has the seed 0.
        lease: The seconds of a lease.

    Raises:
        UserError: If the storage cannot be used, or it contains this sweep with another search space or seed.
    """

    def __init__(self, sweep: Sweep, url: str, seed: int | None = None, lease: float = LEASE) -> None:
        import optuna

        self.sweep = sweep
        self.lease = lease
        self._shared = SweepStorage(url, sweep.folder_name)
        self._storage = self._shared.trials
        with self._shared.locked():
            self.study = self._open()
            stored = self.study.user_attrs
            changed = "settings" in stored and (
                stored["settings"] != sweep.settings() or seed not in (None, stored["seed"])
            )
            if changed and not self.study.get_trials():
                optuna.delete_study(
                    study_name=sweep.folder_name, storage=self._storage
                )  # the file has been corrected
                self.study = self._open()
                stored = self.study.user_attrs
            if "settings" in stored:
                self._check(stored["settings"], seed, stored["seed"])
                self.seed: int = stored["seed"]
            else:
                self.seed = seed or 0
                self.study.set_user_attr("seed", self.seed)
                self.study.set_user_attr("settings", sweep.settings())

    def _open(self) -> "optuna.Study":
        """Return the study, and create it if it does not exist."""
        import optuna

        metric = self.sweep.metric
        return optuna.create_study(
            storage=self._storage,
            study_name=self.sweep.folder_name,
            direction="minimize" if metric is None else metric.goal,
            load_if_exists=True,
        )

    def all(self) -> list[Trial]:
        """Return all trials by number."""
        return [trial_of(each) for each in self._frozen()]

    def is_complete(self) -> bool:
        """Return whether all trials have ended. No further trial starts after the metric's target is reached."""
        trials = self.all()
        ended = all(trial.state != "running" for trial in trials)
        return ended and (self._is_target_reached(trials) or len(trials) >= (self.sweep.size or 0))

    def claim(self, owner: str, busy: Callable[[Trial], bool] = lambda trial: False) -> Trial | None:
        """Claim a trial: one that its worker has given up or lost, otherwise the next new one.

        Args:
            owner: The worker, a string that no other worker uses.
            busy: A function that returns whether a process still works on a trial whose lease has expired.

        Returns:
            The trial, or None if there is none at the moment.
        """
        with self._shared.locked() as now:
            trials = self.all()
            for trial in trials:
                if trial.state == "running" and trial.claim.until < now and not busy(trial):
                    claim = Claim(owner, now + self.lease, trial.claim.attempts + 1, trial.claim.failures)
                    self._set(trial.number, claim)
                    return trial_of(self._frozen()[trial.number])
            if len(trials) >= (self.sweep.size or 0) or self._is_target_reached(trials):
                return None
            return self._create(Claim(owner, now + self.lease, 1), len(trials))

    def renew(self, owner: str, numbers: Collection[int]) -> list[int]:
        """Renew the leases of an owner's trials. Return the numbers of the trials that it has lost."""
        with self._shared.locked() as now:
            trials = self.all()
            lost = [number for number in numbers if not self._owns(trials[number], owner)]
            for number in set(numbers) - set(lost):
                claim = trials[number].claim
                self._set(number, Claim(owner, now + self.lease, claim.attempts, claim.failures))
            return lost

    def release(self, owner: str, number: int, failures: int) -> bool:
        """Give a trial up, so that any worker can continue it at once.

        Args:
            owner: The worker.
            number: The trial.
            failures: The number of attempts in a row that have failed.

        Returns:
            Whether the worker still owned the trial.
        """
        with self._shared.locked():
            trial = self.all()[number]
            if not self._owns(trial, owner):
                return False
            self._set(number, Claim("", 0.0, trial.claim.attempts, failures))
            return True

    def end(
        self, owner: str, number: int, state: State, score: float | None = None, reason: str = ""
    ) -> bool:
        """Record the end of a trial. Return False, and record nothing, if the worker no longer owns it."""
        from optuna.trial import TrialState

        with self._shared.locked():
            if not self._owns(self.all()[number], owner):
                return False
            identifier = self._identifier(number)
            if reason:
                self._storage.set_trial_user_attr(identifier, _REASON, reason)
            states = {
                "finished": TrialState.COMPLETE,
                "stopped": TrialState.PRUNED,
                "failed": TrialState.FAIL,
            }
            values = None if score is None else [score]
            self._storage.set_trial_state_values(identifier, states[state], values)
            return True

    def report(self, owner: str, number: int, values: Sequence[float]) -> bool:
        """Store the values of a running trial, and return whether it should be stopped early.

        Args:
            owner: The worker.
            number: The trial.
            values: All values of the metric so far, in order.
        """
        trial = trial_of(self._frozen()[number])
        if trial.is_bad or len(values) <= len(trial.values):
            return trial.is_bad
        with self._shared.locked():
            if not self._owns(self.all()[number], owner):
                return False
            identifier = self._identifier(number)
            for count in range(len(trial.values) + 1, len(values) + 1):
                self._storage.set_trial_intermediate_value(identifier, count, values[count - 1])
                if self._is_bad(number, count, values[:count]):
                    self._storage.set_trial_user_attr(identifier, _STOP, True)
                    return True
            return False

    def _is_bad(self, number: int, count: int, values: Sequence[float]) -> bool:
        """Return whether Optuna's pruner stops a trial after ``count`` values."""
        import optuna

        rule = self.sweep.early_terminate
        if rule is None or count not in rule.rungs:
            return False
        best = max if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else min
        trial = self._frozen()[number]
        trial.intermediate_values = {count: values[-1] if rule.strict else best(values)}
        pruner = optuna.pruners.SuccessiveHalvingPruner(rule.rungs[0], rule.eta)
        return pruner.prune(self.study, trial)

    def _create(self, claim: Claim, number: int) -> Trial:
        """Create the next trial, which is claimed already."""
        import optuna

        choice = self._next(number)
        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=choice.picked,
            distributions=self.sweep.space.searched(),
            user_attrs={_POINT: choice.point, _CLAIM: asdict(claim)},
        )
        frozen.datetime_start = datetime.datetime.now()
        self.study.add_trial(frozen)
        return trial_of(self._frozen()[number])

    def _next(self, number: int) -> Choice:
        """Return the parameters of a new trial."""
        space = self.sweep.space
        if self.sweep.method == "grid":
            return space.grid(self.seed, number)
        if self.sweep.method == "random":
            return space.random(self.seed, number)
        import optuna

        # Draw the parameters from a copy of the study: Optuna stores a new trial before its parameters, and a worker
        # that is killed in between would leave a trial without parameters.
        sampler = optuna.samplers.TPESampler(
            seed=zlib.crc32(f"{self.seed}/{number}".encode()), constant_liar=True
        )
        copy = optuna.create_study(sampler=sampler, direction=self.study.direction)
        copy.add_trials(self._frozen())
        return space.choice(copy.ask(space.searched()).params)

    def _check(self, stored: Mapping[str, Any], seed: int | None, stored_seed: int) -> None:
        """Raise an error if the stored sweep is another one."""
        now = self.sweep.settings()
        changes = [
            f"{key} is new"
            if key not in stored
            else f"{key} was {json.dumps(stored[key])} and is "
            + (json.dumps(now[key]) if key in now else "removed")
            for key in {**stored, **now}
            if stored.get(key) != now.get(key)
        ]
        if seed is not None and seed != stored_seed:
            changes.append(f"the seed was {stored_seed} and is {seed}")
        if changes:
            raise UserError(
                f"{self.sweep.path}: the sweep '{self.sweep.folder_name}' has trials of another search "
                f"({'; '.join(changes)}); undo the change, or give the sweep another name"
            )

    def _is_target_reached(self, trials: Sequence[Trial]) -> bool:
        metric = self.sweep.metric
        if metric is None or metric.target is None:
            return False
        scores = [trial.score for trial in trials if trial.score is not None]
        if metric.goal == "maximize":
            return any(score >= metric.target for score in scores)
        return any(score <= metric.target for score in scores)

    def _owns(self, trial: Trial, owner: str) -> bool:
        return trial.state == "running" and trial.claim.owner == owner

    def _set(self, number: int, claim: Claim) -> None:
        self._storage.set_trial_user_attr(self._identifier(number), _CLAIM, asdict(claim))

    def _identifier(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self.sweep.folder_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _frozen(self) -> "list[FrozenTrial]":
        with self._shared.reported():
            return self.study.get_trials()


def trial_of(frozen: "FrozenTrial") -> Trial:
    """Return a trial of a study as a `Trial`."""
    from optuna.trial import TrialState

    states: dict[TrialState, State] = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "stopped",
        TrialState.FAIL: "failed",
    }
    attributes = frozen.user_attrs
    return Trial(
        frozen.number,
        attributes[_POINT],
        states.get(frozen.state, "running"),
        frozen.value if frozen.state.is_finished() else None,
        Claim(**attributes[_CLAIM]),
        attributes.get(_REASON, ""),
        attributes.get(_STOP, False),
        dict(sorted(frozen.intermediate_values.items())),
    )
