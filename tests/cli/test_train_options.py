"""The source of each option: the command line, a config file, a checkpoint, or the defaults."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import MODELS, TINY

from segdet.cli.main import main
from segdet.cli.train_options import parse_command
from segdet.training.load_checkpoint import DESCRIPTION
from segdet.util.errors import UserError


def write_checkpoint(path: str | Path, config: str) -> None:
    """Write a checkpoint without weights that contains the text of a configuration."""
    content = {"pytorch-lightning_version": "2.6.0", "state_dict": {}, DESCRIPTION: {"config": config}}
    torch.save(content, path)


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize(
    ("given", "other"),
    [
        (["--data=Images", "--data.paths=[.]"], True),
        (["--data", "segdet.data.datamodules.Images", "--data.paths=."], True),
        (["--data.class_path=Images", "--data.paths=."], True),
        (["--data.class_path", "Images", "--data.paths", "[a, b]"], True),
        (["--data={class_path: Images, init_args: {paths: [.]}}"], True),
        (["--data=folder.yaml"], True),
        (["--config=config.yaml"], True),
        (["-c", "config.yaml"], True),
        (["--config", "{data: Images}", "--data.paths=."], True),
        # Images does not accept a file of names, so it is lost before the class changes again
        (["--data=Images", "--data.class_path=VOCDataModule", "--data.root=voc"], True),
        (["--data=VOCDataModule", "--data.root=elsewhere"], False),
        (["--data.root=elsewhere"], False),
        (["--config", "{model: {init_args: {width: 8}}}"], False),
    ],
)
def test_another_data_module_does_not_inherit_the_class_names(
    given: list[str], other: bool, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for every form of the option. Other arguments that both classes have are inherited."""
    monkeypatch.chdir(tmp_path)
    folder = "{class_path: Images, init_args: {paths: [.]}}"
    Path("folder.yaml").write_text(folder)
    Path("config.yaml").write_text(f"data: {folder}")
    model = {"class_path": "segdet.detection.ssd.SSD", "init_args": {"width": 16}}
    arguments = {"root": "voc", "class_names": "names.txt", "batch_size": 3}
    embedded = {
        "model": model,
        "data": {"class_path": "segdet.data.datamodules.VOCDataModule", "init_args": arguments},
    }
    write_checkpoint("a.ckpt", yaml.safe_dump(embedded))
    options = parse_command([command, "--ckpt_path=a.ckpt", *given])
    data = options.config.data.init_args
    assert data.batch_size == 3
    assert data.class_names == (None if other else "names.txt")


@pytest.mark.parametrize(("given", "expected"), [("1", 1), ("1.0", 1.0), ("3", 3), ("0.5", 0.5)])
def test_1_is_one_batch_and_1_0_is_all_batches(
    given: str, expected: int | float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    limits = [f"--trainer.limit_{stage}_batches" for stage in ("train", "val", "test", "predict")]
    arguments = ["fit", *MODELS["detection"], *TINY, f"--data.root={tmp_path}", "--print_config"]
    assert main([*arguments, *(f"{limit}={given}" for limit in limits)]) == 0
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    for limit in limits:
        parsed = trainer[limit.removeprefix("--trainer.")]
        assert (type(parsed), parsed) == (type(expected), expected)


def test_abbreviated_options_of_classes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        ["fit", "--model=FCN", "--data=VOCDataModule", f"--data.root={tmp_path}", "--model.optim.nam=sgd"]
    )
    assert status == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--model.optim.nam: " in message


def test_given_options_come_from_the_command_line_and_from_files(tmp_path: Path) -> None:
    """Defaults and options of the checkpoint do not count as given."""
    config = tmp_path / "more.yaml"
    config.write_text("model: {init_args: {width: 8}}\ntrainer: {max_epochs: 2}\n")
    embedded = {
        "seed_everything": 3,
        "model": {
            "class_path": "segdet.detection.ssd.SSD",
            "init_args": {"backbone": "test_resnet", "width": 16},
        },
        "data": {"class_path": "segdet.data.VOCDataModule", "init_args": {"root": "voc", "batch_size": 3}},
    }
    checkpoint = tmp_path / "a.ckpt"
    write_checkpoint(checkpoint, yaml.safe_dump(embedded))
    arguments = ["--config", str(config), "--model.optim.lr=0.5", "--data.recipe=ScaleJitter"]
    options = parse_command(["test", "--ckpt_path", str(checkpoint), *arguments])
    given = options.given
    for name in ("model.width", "model.optim.lr", "model.optim", "trainer.max_epochs", "data.recipe"):
        assert name in given, name
    for name in (
        "model.backbone",
        "model.score_threshold",
        "data.root",
        "data.batch_size",
        "seed_everything",
    ):
        assert name not in given, name
    assert given.values["data.recipe.class_path"].endswith("ScaleJitter")
    model, data = options.config.model.init_args, options.config.data.init_args
    assert (model.width, model.backbone, model.optim.lr) == (8, "test_resnet", 0.5)
    assert (data.root, data.batch_size, options.config.seed_everything) == ("voc", 3, 3)


def test_a_config_file_may_name_the_checkpoint(tmp_path: Path) -> None:
    embedded = {
        "model": {"class_path": "segdet.detection.ssd.SSD", "init_args": {"width": 16}},
        "data": {"class_path": "segdet.data.VOCDataModule", "init_args": {"root": "voc"}},
    }
    write_checkpoint(tmp_path / "a.ckpt", yaml.safe_dump(embedded))
    (tmp_path / "c.yaml").write_text(f"ckpt_path: {tmp_path}/a.ckpt\n")
    options = parse_command(["fit", "--config", f"{tmp_path}/c.yaml", "--trainer.max_epochs=2"])
    assert options.config.model.init_args.width == 16
    assert options.checkpoint is not None
    assert options.config.ckpt_path == f"{tmp_path}/a.ckpt"


def test_a_configuration_of_another_version_is_reported_in_one_line(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.ckpt", "modle: {a: 1}\n")
    with pytest.raises(UserError, match=r'a.ckpt: its configuration does not suit this version .*"modle"'):
        parse_command(["fit", f"--ckpt_path={tmp_path}/a.ckpt"])


def test_an_option_without_its_value_is_reported_in_one_line() -> None:
    with pytest.raises(UserError, match="--ckpt_path: expected one argument; give it a value"):
        parse_command(["test", "--ckpt_path"])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_print_config_prints_the_options_after_a_config_file_too(
    place: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("model: SSD\ndata: ShapesDataModule\ntrainer: {max_epochs: 2}\n")
    arguments = [f"--config={tmp_path / 'a.yaml'}", "--trainer.max_epochs=8"]
    arguments.insert(place, "--print_config")
    assert main(["fit", *arguments]) == 0
    assert "max_epochs: 8" in capsys.readouterr().out


def test_help_and_print_config_need_no_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["test", "--help"]) == 0
    assert "--ckpt_path" in capsys.readouterr().out
    arguments = [*MODELS["detection"], *TINY, f"--data.root={tmp_path}"]
    assert main(["test", *arguments, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["width"] == 16


def test_null_overrides_a_config_file(tmp_path: Path) -> None:
    arguments = [*MODELS["detection"], *TINY, f"--data.root={tmp_path}", "--run_dir=null"]
    assert parse_command(["fit", *arguments, "--ckpt_path", "null"]).config.run_dir is None
    (tmp_path / "c.yaml").write_text("ckpt_path: gone.ckpt\nrun_dir: elsewhere\n")
    options = parse_command(["fit", "--config", f"{tmp_path}/c.yaml", *arguments, "--ckpt_path=null"])
    assert options.checkpoint is None
    assert (options.config.ckpt_path, options.config.run_dir) == (None, None)
