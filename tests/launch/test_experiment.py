from pathlib import Path

import pytest
from experiment_files import FILE, write_dependent_runs

from segdet.launch.bench import plan
from segdet.launch.experiment import read_experiment
from segdet.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("budget:", "budgett:", "has the unknown key 'budgett'; did you mean budget?"),
        ("overrides:", "override:", "runs.fcn has the unknown key 'override'; did you mean overrides?"),
        ("test: false", "test: 0", "line 8: runs.ssd.test is 0 and should be true or false"),
        ("[0, 1]", "[0, 0]", "seeds is [0, 0]; give each seed once"),
        ("[0, 1]", "3", "seeds is 3 and should be a list"),
        ("budget:", "at_once: 0\nbudget:", "at_once is 0 and should be at least 1"),
        ("configs/ssd.yaml", "configs/sdd.yaml", "runs.ssd.configs names configs/sdd.yaml, which is not in"),
        ("configs/ssd.yaml", "configs/sdd.yaml", "did you mean configs/ssd.yaml?"),
        ("configs/ssd.yaml", "x.yaml", "paths are relative to the current directory"),
        ("  ssd:", "  fcn:", ", line 8: 'fcn' is a duplicate key"),
        ("  ssd:", "  a b:", "line 8: runs has the key 'a b'; use letters"),
        ("  ssd:", "  ssd-seed1:", "runs has the key 'ssd-seed1'; use letters"),
        ("{configs: configs/ssd.yaml, test: false}", "{test: false}", "runs.ssd has no key 'configs'"),
        ("{configs: configs/ssd.yaml, test: false}", "", "runs.ssd is None and should be a mapping"),
        (
            "model.optim.lr",
            "trainer.max_time",
            "runs.fcn.overrides sets 'trainer.max_time', which is in the budget",
        ),
        (
            "model.optim.lr",
            "run_dir",
            "line 7: runs.fcn.overrides has the key 'run_dir'; remove it, because segdet bench sets it",
        ),
        ("model.optim.lr", "--lr", "runs.fcn.overrides has the key '--lr'; write dotted keys"),
        (
            "segdet data make",
            "rm -rf",
            "line 3: prepare.0 is 'rm -rf data/shapes --images 8'; write segdet commands",
        ),
        ("runs:", "run: [", "line"),
        ("seeds:", "name: ../x\nseeds:", "name is '../x'"),
        (
            "00:00:10:00",
            "10:00:00",
            "line 5: YAML reads 10:00:00 as a base-60 number; put it in quotes",
        ),
        (
            "{configs: configs/ssd.yaml, test: false}",
            "{configs: 1}",
            "runs.ssd.configs is 1 and should be a list",
        ),
        (
            "{configs: configs/ssd.yaml, test: false}",
            "{configs: []}",
            "runs.ssd.configs is [] and needs at least 1",
        ),
    ],
)
def test_a_wrong_file_is_reported_in_one_line(folder: Path, before: str, after: str, message: str) -> None:
    assert FILE.count(before) >= 1
    Path("experiments/demo.yaml").write_text(FILE.replace(before, after, 1))
    with pytest.raises(UserError) as error:
        read_experiment("experiments/demo.yaml")
    assert str(error.value).startswith("experiments/demo.yaml") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ssd", "message"),
    [
        ("after: ssd", "runs.ssd.after is 'ssd'; it must be the name of a run above this one"),
        ("after: [fcn]", "runs.ssd.after is ['fcn'] and should be a string"),
        ("after: false", "runs.ssd.after is False and should be a string"),
        ("test: true", "runs.ssd uses '{after}'; name the other run with the key 'after'"),
    ],
)
def test_after_must_name_an_earlier_run(folder: Path, ssd: str, message: str) -> None:
    write_dependent_runs(ssd=ssd)
    text = Path("experiments/turn.yaml").read_text()
    Path("experiments/turn.yaml").write_text(text.replace("test: false, ", ""))
    with pytest.raises(UserError) as error:
        read_experiment("experiments/turn.yaml")
    assert message in str(error.value)


def test_after_and_its_placeholder_require_each_other(folder: Path) -> None:
    write_dependent_runs()
    path = Path("experiments/turn.yaml")
    text = path.read_text()
    path.write_text(text.replace('"{after}"', "1"))
    with pytest.raises(UserError, match=r"which is not used; write \{after\} in an override"):
        read_experiment(path)
    path.write_text('budget: {model.a: "{after}"}\n' + text)
    with pytest.raises(UserError, match=r"budget has '\{after\}'"):
        read_experiment(path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_experiment_is_valid_and_opens_with_its_command(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    experiment = read_experiment(path.relative_to(ROOT))
    lines = path.read_text().splitlines()[:3]
    assert all(line.startswith("# ") for line in lines)
    assert lines[1].startswith(f"# segdet bench experiments/{path.name}")
    assert len(plan(experiment, Path("absent"))) == len(experiment.runs) * len(experiment.seeds)
