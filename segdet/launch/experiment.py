"""Experiment files: the runs of a comparison and their shared settings.

An example file::

    # A description, the command, and the expected time and score.
    seeds: [0, 1]                     # default [0]
    prepare: [segdet data make data/shapes]
    data: my_data.yaml                # a config with a section `data`, passed to every run after its own configs
    budget: {trainer.max_time: "00:00:10:00"}
    at_once: 2                        # default 1
    runs:
      fcn: {configs: configs/shapes/fcn.yaml}
      unet: {configs: configs/shapes/unet.yaml, overrides: {model.optim.lr: 0.01}, test: false}
      tuned: {configs: configs/shapes/unet.yaml, after: unet, overrides: {model.weights: "{after}"}}

``after`` is the name of an earlier run that this run uses. ``{after}`` is replaced by the folder of that run with the
same seed.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, StrictBool, StrictInt, StrictStr

from segdet.util.suggest import closest
from segdet.util.validation import FileModel, Key, YamlFile

AFTER = "{after}"
"""The placeholder for the folder of the run that ``after`` names."""


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or re.search(r"-seed\d+$", name):
        raise ValueError(
            "use letters, digits, '.', '_' and '-' (no '-seed<S>' at the end): it names a folder"
        )
    return name


def _check_override(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w-]*(\.[\w-]+)*", key):
        raise ValueError("write dotted keys, such as trainer.max_epochs")
    if key.split(".")[0] in ("config", "run_dir", "seed_everything", "ckpt_path"):
        raise ValueError("remove it, because segdet bench sets it for every run")
    return key


def _check_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("give each seed once")
    return seeds


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_words(line: Any) -> list[str]:
    words = shlex.split(line) if isinstance(line, str) else []
    if len(words) < 2 or words[0] != "segdet":
        raise ValueError("write segdet commands, such as 'segdet data make data/shapes'")
    return words[1:]


Name = Annotated[StrictStr, AfterValidator(_check_name)]
Configs = Annotated[tuple[StrictStr, ...], BeforeValidator(_as_list)]
Command = Annotated[tuple[str, ...], BeforeValidator(_as_words)]
Overrides = dict[Annotated[StrictStr, AfterValidator(_check_override)], Any]


class Run(FileModel):
    """One run of an experiment.

    Attributes:
        configs: Config files. Later files take precedence.
        overrides: Options by their dotted keys, as on the command line.
        test: Whether to test the run after training.
        after: The run that must be finished first. Its folder replaces ``{after}`` in the overrides.
    """

    configs: Annotated[Configs, Field(min_length=1)]
    overrides: Overrides = {}
    test: StrictBool = True
    after: StrictStr | None = None


class Experiment(FileModel):
    """The content of an experiment file.

    Attributes:
        name: The name of the experiment and of its folder. The default is the file's name.
        seeds: The seeds. Every run is trained once with each of them.
        prepare: The arguments of segdet commands to run first.
        data: Config files that are passed to every run after its own, for example one with a section ``data``.
        budget: Options of all runs. The overrides of a run must not change them.
        at_once: The number of runs that train at the same time.
        runs: The runs by name. The table has the same order.
    """

    name: Name
    seeds: Annotated[
        tuple[Annotated[StrictInt, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_check_seeds)
    ] = (0,)
    prepare: Annotated[tuple[Command, ...], BeforeValidator(_as_list)] = ()
    data: Configs = ()
    budget: Overrides = {}
    at_once: Annotated[StrictInt, Field(ge=1)] = 1
    runs: Annotated[dict[Name, Run], Field(min_length=1)]
    _path: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """The experiment file."""
        return self._path


def read_experiment(path: Path | str) -> Experiment:
    """Read the experiment file ``path``. Paths in it are relative to the current directory.

    Raises:
        UserError: If the file cannot be read, has an unknown key or a wrong value, or names a config file that
            does not exist.
    """
    file = YamlFile.read(path)
    if isinstance(file.values, dict):
        file.values.setdefault("name", file.path.stem)
    experiment = file.parse(Experiment)
    for key, message in _conflicts(experiment):
        raise file.error(key, f"{'.'.join(map(str, key))} {message}")
    experiment._path = file.path
    return experiment


def _conflicts(experiment: Experiment) -> Iterator[tuple[Key, str]]:
    """Yield the errors that involve more than one value or other files."""
    yield from _missing_files(("data",), experiment.data)
    if AFTER in json.dumps(experiment.budget, default=str):
        yield ("budget",), f"has '{AFTER}'; only the overrides of a run can use another run"
    earlier: list[str] = []
    for name, run in experiment.runs.items():
        key: Key = ("runs", name)
        yield from _missing_files((*key, "configs"), run.configs)
        for override in run.overrides:
            if override in experiment.budget:
                yield (
                    (*key, "overrides"),
                    f"sets '{override}', which is in the budget; remove it there or here",
                )
        uses_other = AFTER in json.dumps(run.overrides, default=str)
        if run.after is None:
            if uses_other:
                yield key, f"uses '{AFTER}'; name the other run with the key 'after'"
        elif run.after not in earlier:
            yield (*key, "after"), f"is {run.after!r}; it must be the name of a run above this one"
        elif not uses_other:
            yield (*key, "after"), f"is {run.after!r}, which is not used; write {AFTER} in an override"
        earlier.append(name)


def _missing_files(key: Key, paths: tuple[str, ...]) -> Iterator[tuple[Key, str]]:
    for path in paths:
        if not Path(path).is_file():
            near = closest(path, [other.as_posix() for other in Path(path).parent.glob("*.yaml")])
            hint = f"did you mean {near}?" if near else "paths are relative to the current directory"
            yield key, f"names {path}, which is not in {Path.cwd()}; {hint}"
