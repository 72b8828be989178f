"""Each shipped experiment file is valid, and `segdet fit` accepts the arguments of each run."""

import contextlib
import io
from pathlib import Path

import pytest
import yaml

from segdet.launch.bench import plan
from segdet.launch.experiment import read_experiment

EXPERIMENTS = sorted(Path(__file__).resolve().parents[2].glob("experiments/*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_fit_accepts_the_arguments_of_every_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdet.cli.train import main

    monkeypatch.chdir(path.parents[1])
    experiment = read_experiment(path.relative_to(path.parents[1]))
    assert all(words[0] in ("data", "proposals") for words in experiment.prepare)
    jobs = plan(experiment, tmp_path)
    assert len(jobs) == len(experiment.runs) * len(experiment.seeds)
    seen = []
    for run, job in zip(experiment.runs.values(), jobs, strict=True):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as leaving:
            main([*job.command, "--print_config"])
        assert leaving.value.code == 0
        config = yaml.safe_load(out.getvalue())
        for name, value in {**run.overrides, **experiment.budget}.items():
            section, *keys = name.split(".")
            if name in ("model", "data"):
                assert config[name]["class_path"].endswith("." + value), (job.name, name)
                continue
            got = config[section]["init_args"] if section in ("model", "data") else config[section]
            for key in keys:
                got = got[key]
            if isinstance(value, dict):  # a class with its arguments
                assert got["class_path"].endswith("." + value["class_path"]), (job.name, name)
                given = {
                    key: str(text).replace("{after}", str(job.after))
                    for key, text in value["init_args"].items()
                }
                assert given == {key: str(got["init_args"][key]) for key in given}, (job.name, name)
                continue
            assert got == value, (job.name, name)
        seen.append({section: config[section] for section in ("model", "data", "trainer")})
    assert all(one not in seen[:number] for number, one in enumerate(seen))  # all runs differ


def test_there_are_experiments() -> None:
    assert len(EXPERIMENTS) >= 3
