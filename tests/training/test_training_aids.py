"""Moving average, freezing, multi-scale training and compilation; resuming with all of them gives the same result."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor, nn

from segdet.cli.main import main
from segdet.data import ShapesDataModule
from segdet.data.sample import Target
from segdet.data.transforms import ScaleJitter
from segdet.detection.detr import DETR
from segdet.detection.faster_rcnn import FasterRCNN
from segdet.detection.fcos import FCOS
from segdet.detection.mask_rcnn import MaskRCNN
from segdet.detection.overfeat import OverFeat
from segdet.detection.retinanet import RetinaNet
from segdet.detection.sliding_window_detector import SlidingWindowDetector
from segdet.detection.ssd import SSD
from segdet.detection.yolox import YOLOX
from segdet.runs.cost import measure_cost
from segdet.segmentation.sliding_window import SlidingWindow
from segdet.segmentation.torchvision_models import LRASPP
from segdet.task import Task
from segdet.training.ema import EMA
from segdet.training.optim import Optimization
from segdet.util.errors import UserError

# Lightning's warnings that the command suppresses are ignored, except those of weight averaging.
pytestmark = pytest.mark.filterwarnings("ignore", "error:.*WeightAveraging")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "shapes"


def data(root: Path) -> ShapesDataModule:
    return ShapesDataModule(
        root, task="detection", num_train=8, num_val=2, num_test=2, image_size=(64, 64), batch_size=2,
        num_workers=0, recipe=ScaleJitter(crop=(64, 64)),
    )  # fmt: skip


def ssd(**aids: Any) -> SSD:
    torch.manual_seed(0)
    return SSD(["a", "b", "c", "d", "e", "f"], backbone="test_resnet", width=8, extra_maps=1, **aids)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    callbacks = options.pop("callbacks", [])
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        default_root_dir=folder, num_sanity_val_steps=0, **{"max_epochs": 1, **options},
    )  # fmt: skip


class Watch(pl.Callback):
    """Record a weight after every step and during validation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.weights.append(pl_module.state_dict()[self.name].clone())

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.validated.append(pl_module.state_dict()[self.name].clone())


NAME = "head.classification_head.module_list.0.weight"


def test_the_average_is_validated_and_saved(shapes: Path, tmp_path: Path) -> None:
    watch, saving = Watch(NAME), ModelCheckpoint(tmp_path, "last", save_top_k=1)
    model = ssd()
    trainer(tmp_path, callbacks=[watch, saving, EMA(0.5)], max_epochs=2).fit(model, data(shapes))
    average = watch.weights[0]
    for n, learned in enumerate(watch.weights[1:], start=1):
        average = average + (1 - min(0.5, (1 + n) / (10 + n))) * (learned - average)
    checkpoint = torch.load(saving.best_model_path, weights_only=True)
    torch.testing.assert_close(checkpoint["state_dict"][NAME], average)
    torch.testing.assert_close(watch.validated[-1], average)
    assert torch.equal(checkpoint["current_model_state"][NAME], watch.weights[-1])
    assert not torch.allclose(average, watch.weights[-1])
    torch.testing.assert_close(model.state_dict()[NAME], average)  # after the training, too
    # A test without the callback loads the average.
    other = ssd()
    trainer(tmp_path).test(other, data(shapes), ckpt_path=saving.best_model_path, verbose=False)
    assert torch.equal(other.state_dict()[NAME], checkpoint["state_dict"][NAME])


@pytest.mark.parametrize("at", ["epoch", "step", "validation"])
def test_a_run_with_all_aids_resumes_exactly(at: str, shapes: Path, tmp_path: Path) -> None:
    aids: dict[str, Any] = {
        "multi_scale": [0.5, 1.0, 1.5], "multi_scale_every": 1,
        "freeze": ["backbone.body.body.layer1"], "optim": Optimization("muon", 1e-2, warmup_steps=0),
    }  # fmt: skip
    options: dict[str, Any] = {"gradient_clip_val": 0.1, "max_epochs": 2}

    class Stop(Checkpoint):
        """Save a checkpoint at some moment of the first epoch, after all other callbacks, as a signal does."""

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if at == "step" and trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "at.ckpt")

        def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if at == "validation" and trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "at.ckpt")

        def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if at == "epoch" and trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "at.ckpt")

    one = ssd(**aids)
    first = trainer(tmp_path, callbacks=[Stop(), EMA(0.9)], **options)
    first.fit(one, data(shapes))
    first.save_checkpoint(tmp_path / "one.ckpt")
    other = ssd(**aids)
    second = trainer(tmp_path, callbacks=[EMA(0.9)], **options)
    second.fit(other, data(shapes), ckpt_path=tmp_path / "at.ckpt", weights_only=True)
    second.save_checkpoint(tmp_path / "other.ckpt")
    states = [torch.load(tmp_path / name, weights_only=True) for name in ("one.ckpt", "other.ckpt")]
    assert states[0]["global_step"] == states[1]["global_step"] == 8
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key]), key


def test_frozen_modules_do_not_change(shapes: Path, tmp_path: Path) -> None:
    model = ssd(freeze=["backbone"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer(tmp_path).fit(model, data(shapes))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not any(key.startswith("backbone") for key in changed)
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    assert model.head.training and model.extras[0][0].training


def test_frozen_batch_normalization(shapes: Path, tmp_path: Path) -> None:
    model = ssd(frozen_batch_norm=True)
    names = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer(tmp_path).fit(model, data(shapes))
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] in names:
            assert torch.equal(value, before[key]), key
    assert not torch.equal(model.state_dict()[NAME], before[NAME])


def test_batch_normalization_stays_frozen_when_it_is_replaced() -> None:
    """Lightning replaces batch normalization for ``sync_batchnorm``, after `configure_model`."""
    model = ssd(frozen_batch_norm=True, freeze=["extras.0.0"])
    model.configure_model()
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.train()
    layers = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert layers and not any(layer.training or layer.weight.requires_grad for layer in layers)
    assert not model.extras[0][0].training and model.extras[0][1].training and model.head.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ["backbon"]}, "--model.freeze 'backbon': the network has no such part; did you mean backbone?"),
        ({"freeze": ["?"]}, "--model.freeze '?': the network has no such part; there are backbone, extras, head"),
        ({"multi_scale": [0.0]}, "--model.multi_scale [0.0]: must be one or more numbers, each above 0"),
        ({"compile": {"backend": "nothing"}}, "--model.compile {'backend': 'nothing'}: "),
        ({"compile": {"fast": True}}, "--model.compile {'fast': True}: "),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ssd(**options).configure_model()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_the_decay_of_an_average_is_between_0_and_1(decay: float) -> None:
    with pytest.raises(UserError, match=f"^--ema {decay}: must be above 0 and below 1$"):
        EMA(decay)


def test_freezing_everything_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all parameters are frozen"):
        trainer(tmp_path).fit(ssd(freeze=["backbone", "extras", "head"]), data(shapes))


def test_batches_come_in_several_sizes(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ssd(multi_scale=[0.5, 1.5], multi_scale_every=2)
    sizes: list[int] = []
    losses = model.losses

    def record_sizes(images: Tensor, targets: Any, scale: tuple[float, float]) -> dict[str, Tensor]:
        sizes.append(images.shape[3])
        assert scale == (images.shape[2] / 64, images.shape[3] / 64)
        assert max(float(t["boxes"].amax()) for t in targets if len(t["boxes"])) > 0.5 * images.shape[3]
        return losses(images, targets, scale)

    monkeypatch.setattr(model, "losses", record_sizes)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    trainer(tmp_path, max_epochs=4).fit(model, data(shapes))
    assert set(sizes) == {32, 96}
    assert sizes[::2] == sizes[1::2]


def test_compiled_parts_keep_their_names_and_their_cost() -> None:
    plain, compiled = ssd(), ssd(compile={"backend": "eager"})
    compiled.configure_model()
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert compiled.backbone._compiled_call_impl is not None  # type: ignore[union-attr]
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    plain.configure_model()
    with torch.inference_mode():
        one, other = (model.eval().predict_tensors(image)[0] for model in (plain, compiled))
    torch.testing.assert_close(one["boxes"], other["boxes"])
    costs = [measure_cost(model, image, repeats=1) for model in (plain, compiled)]
    assert costs[0].flops == costs[1].flops > 0
    assert costs[0].passes_per_image == costs[1].passes_per_image == 1


LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (SSD, {}),
        (RetinaNet, {}),
        (FCOS, {}),
        (FasterRCNN, {"head_width": 8}),
        (MaskRCNN, {"head_width": 8, "mask_width": 8}),
        (YOLOX, {}),
        (DETR, {"heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 8, "queries": 4}),
        (LRASPP, {"backbone": "mobilenet_v3_large"}),
        (
            SlidingWindow,
            {"channels": [4] * 9, "kernels": [3] * 9, "pools": [1] * 9, "hidden": 8, "window": 24},
        ),
    ],
)
def test_all_layers_are_compiled(family: type[Task], options: dict[str, Any]) -> None:
    """A layer outside of the compiled modules would not be faster."""
    compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        layers = [node for node in graph.graph.nodes if node.op.startswith("call")]
        layers = [node for node in layers if "conv" in str(node.target) or "linear" in str(node.target)]

        def run(*given: Tensor) -> Any:
            nonlocal compiled
            compiled += len(layers)
            return graph(*given)

        return run

    torch.compiler.reset()
    if family is not SlidingWindow:
        options = {"backbone": "test_resnet"} | options
    if family not in (LRASPP, SlidingWindow):
        options["width"] = 8
    image = torch.randint(
        0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    called: list[str] = []
    for compile in (False, {"backend": backend}):
        torch.manual_seed(0)
        model = family(["a", "b"], compile=compile, **options).eval()
        model.configure_model()
        if not compile:
            for name, module in model.named_modules():
                if isinstance(module, LAYERS):
                    module.register_forward_hook(lambda *_, name=name: called.append(name))  # type: ignore[misc]
        with torch.no_grad():
            model.predict_tensors(image)
    assert compiled == len(called) > 10


def test_a_dense_window_is_compiled() -> None:
    """The dense pass uses the weights of the classifier but calls none of its modules."""
    runs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        def run(*given: Tensor) -> Any:
            nonlocal runs
            runs += 1
            return graph(*given)

        return run

    torch.compiler.reset()
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    families: list[type[Task]] = [SlidingWindow, SlidingWindowDetector]
    for family in families:
        runs = 0
        model = family(["a", "b"], mode="dense", compile={"backend": backend}).eval()
        model.configure_model()
        with torch.no_grad():
            model.predict_tensors(image)
        assert runs >= 1
        if isinstance(model, SlidingWindowDetector):
            assert runs > len(model.layout(image).sizes)  # of each level, and the head


@pytest.mark.parametrize(("family", "twice"), [(SlidingWindowDetector, 0), (OverFeat, 1)])
def test_training_on_windows_uses_the_compiled_layers(
    family: type[SlidingWindowDetector], twice: int
) -> None:
    """Training calls the two parts of the network; OverFeat calls one layer for classes and for boxes."""
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    torch.compiler.reset()
    torch.manual_seed(0)
    model = family(["a"], compile={"backend": backend}, hard_negatives=0.0, scales=[0.5], aspects=[1.0])
    model.configure_model()
    target = Target(boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([1]))
    sum(model.train().losses(torch.rand(1, 3, 64, 64), [target]).values()).backward()  # type: ignore[union-attr]
    layers = [layer for layer in model.modules() if isinstance(layer, LAYERS)]
    assert sum("conv" in name or "linear" in name for name in graphs) == len(layers) + twice >= 5


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_gradients_are_clipped_for_every_optimizer(name: Any, shapes: Path, tmp_path: Path) -> None:
    norms: list[float] = []

    class Norm(SSD):
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            super().configure_gradient_clipping(*args, **kwargs)
            gradients = [p.grad.norm() for p in self.parameters() if p.grad is not None]
            norms.append(float(torch.stack(gradients).norm()))

    torch.manual_seed(0)
    model = Norm(["a"] * 6, backbone="test_resnet", width=8, optim=Optimization(name, 1e-3, warmup_steps=0))
    trainer(tmp_path, gradient_clip_val=0.01).fit(model, data(shapes))
    assert len(norms) == 4 and max(norms) == pytest.approx(0.01, rel=1e-3)


def test_the_command_has_options_for_all_aids(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shared = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--data.num_workers=0"]
    status = main(
        [
            "fit", "--model=SSD", "--model.backbone=test_resnet", "--model.width=8", "--data=ShapesDataModule",
            f"--data.root={shapes}", "--data.num_train=8", "--data.num_val=2", "--data.num_test=2",
            "--data.image_size=[64, 64]", "--data.batch_size=2", "--data.mosaic=0.5", "--data.mosaic_off_epochs=1",
            "--ema=0.9", "--model.freeze=[backbone.body.body.layer1]", "--model.multi_scale=[0.5, 1.0]",
            "--model.tta_flip=true", "--model.class_agnostic_nms=true", "--trainer.gradient_clip_val=1.0",
            "--panels.images=1", "--trainer.max_epochs=2", f"--run_dir={run}", *shared,
        ]
    )  # fmt: skip
    assert status == 0
    assert main(["test", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", *shared]) == 0
    assert json.loads((run / "result.json").read_text())["cost"]["passes_per_image"] == 2
    assert "WeightAveraging" not in capsys.readouterr().err


def test_synchronized_batch_normalization_needs_a_gpu(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(
        [
            "fit", "--model=SSD", "--model.backbone=test_resnet", "--data=ShapesDataModule", f"--data.root={shapes}",
            "--data.num_train=8", "--data.num_val=2", "--data.num_test=2", "--data.image_size=[64, 64]",
            "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp",
            "--trainer.sync_batchnorm=true", f"--run_dir={tmp_path / 'run'}",
        ]
    )  # fmt: skip
    assert status == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "sync_batchnorm" in line]
    assert lines == [
        "segdet: error: --trainer.sync_batchnorm true: torch supports it on GPUs only; leave it out on the CPU"
    ]
