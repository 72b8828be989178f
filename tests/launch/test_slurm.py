"""SLURM without a cluster: the file with the resources, and the job scripts."""

import subprocess
from pathlib import Path

import pytest

from segdet.launch.slurm import Entry, Slurm, Submission, Task, read_queue, read_slurm
from segdet.util.errors import UserError

PRESET = Path(__file__).resolve().parents[2] / "configs" / "trainers" / "slurm.yaml"


def tasks(folder: Path, *afters: tuple[str, ...]) -> list[Task]:
    return [
        Task(f"run{index}", (("fit", f"--run_dir={folder}/run{index}"),), folder / f"run{index}.log", after)
        for index, after in enumerate(afters)
    ]


def test_the_preset_is_valid() -> None:
    assert read_slurm(PRESET) == Slurm(time="04:00:00")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitions: gpu", "line 1: has the unknown key 'partitions'; did you mean partition?"),
        ("nodes: 1\ngpus: -1", "line 2: gpus is -1 and should be at least 0"),
        ("time: 10:00:00", "line 1: YAML reads 10:00:00 as a base-60 number; put it in quotes"),
        ("time: 4h", "line 1: time is '4h'; write HH:MM:SS, D-HH:MM:SS or minutes, in quotes"),
        ("options: [exclusive]", "line 1: options.0 is 'exclusive'; write options of sbatch"),
    ],
)
def test_an_invalid_file_is_explained(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_slurm(path)
    assert str(error.value).startswith(f"{path}, {message}")


def test_each_gpu_gets_a_process() -> None:
    settings = Slurm(nodes=2, gpus=4, account="lab", memory="32G", options=("--qos=long",))
    assert settings.directives() == [
        "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=4", "--gres=gpu:4", "--account=lab", "--mem=32G",
        "--qos=long",
    ]  # fmt: skip
    assert "--trainer.devices=4" in settings.trainer_options
    assert "--trainer.num_nodes=2" in settings.trainer_options
    assert "--trainer.strategy=ddp" not in Slurm().trainer_options


def test_runs_that_can_start_together_form_one_array(tmp_path: Path) -> None:
    submission = Submission("demo", tmp_path, Slurm(setup=("module load cuda",)))
    submission.add(tasks(tmp_path, (), (), ("run0",), ("run0",), ("run1",)))
    assert [[task.name for task in array.tasks] for array in submission.arrays] == [
        ["run0", "run1"], ["run2", "run3"], ["run4"],
    ]  # fmt: skip
    first, second, third = submission.arrays
    numbers = {"run0": "17_0", "run1": "17_1"}
    assert submission.dependency(first, numbers) == []
    assert submission.dependency(second, numbers)[0] == "--dependency=afterok:17_0"
    assert submission.dependency(third, numbers)[0] == "--dependency=afterok:17_1"
    assert submission.dependency(third, {}) == []  # run1 has finished
    text = submission.script(first)
    assert "#SBATCH --array=0-1\n" in text and "\nmodule load cuda\n" in text
    assert f"exec >>{tmp_path}/run1.log 2>&1\n" in text
    preview = submission.preview({"run1": Entry("9_4", "RUNNING", "")})
    assert f"--dependency=afterok:JOB-OF-{first.name}_0 " in preview


@pytest.mark.parametrize("launched", [True, False])
def test_scripts_are_valid_with_any_folder_name(launched: bool, tmp_path: Path) -> None:
    folder = tmp_path / "my runs; it's"
    submission = Submission("demo", folder, Slurm())
    submission.add(tasks(folder, (), ()), launched)
    text = submission.script(submission.arrays[0])
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert f'#SBATCH --output="{folder}/slurm/' in text


def test_slurm_is_not_asked_for_a_folder_without_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_queue(tmp_path) == {}
    submission = Submission("demo", tmp_path, Slurm())
    submission.add(tasks(tmp_path, ()))
    with pytest.raises(UserError, match=r"sbatch cannot be run .*; use a machine with SLURM's commands"):
        submission.submit({})
