"""The rungs of the ladder: one for each family, in the order in which the ideas build on each other.

The sentences form a sequence: each describes the idea that the family adds to the rung above it. They are in one table
because of this sequence, and because reading them from the classes would import torch, which reports do not need. A
family without a rung is shown with the first sentence of its docstring, from its record.

The published figures come from the papers and from the model pages of torchvision. They were measured on other data
and hardware than the runs, and mostly on different training sets. They show the order of magnitude.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segdet.report.ladder import pictures
from segdet.report.ladder.symbols import svg

TASKS = ("segmentation", "localization", "detection")
"""The tasks in the order of a report."""


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        value: The figure, as published.
        metric: The metric.
        data: The test data and, where it matters, the training data.
        speed: The published time per image and its hardware, or an empty string.
    """

    value: float
    metric: str
    data: str
    speed: str = ""

    def __str__(self) -> str:
        value = f"{self.value:.1f}" if self.value >= 1 else f"{self.value:g}"
        return ", ".join(filter(None, (f"{value} {self.metric}", self.data, self.speed)))


@dataclass(frozen=True)
class Rung:
    """A family as a step of its task's progression.

    Attributes:
        task: ``segmentation``, ``localization`` or ``detection``.
        family: The name of the class.
        name: The display name.
        idea: One sentence: what the family adds to the rung above.
        picture: A function that draws the content of the picture.
        paper: Authors and venue. Empty for constructions without a paper of their own.
        year: The year of the publication, or None.
        published: A published figure of the family, or None.
        settings: Options of the model that distinguish two rungs of the same family.
    """

    task: str
    family: str
    name: str
    idea: str
    picture: Callable[[], str]
    paper: str = ""
    year: int | None = None
    published: Published | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def svg(self) -> str:
        """The picture as a complete SVG element."""
        return svg(self.picture(), f"{self.name}: {self.idea}" if self.idea else self.name)

    @property
    def labels(self) -> dict[str, Any]:
        """The values by which loggers group and sort runs."""
        return {"task": self.task, "rung": self.name, "rung_order": self.order, "family": self.family}

    @property
    def order(self) -> int:
        """The position in the ladder, over all tasks. Families without a rung follow those of their task."""
        if self in RUNGS:
            return RUNGS.index(self)
        return max(
            (index + 1 for index, rung in enumerate(RUNGS) if rung.task == self.task), default=len(RUNGS)
        )


VOC07, VOC0712 = "VOC 2007 test, trained on 07", "VOC 2007 test, trained on 07+12"
COCO = "COCO test-dev"

RUNGS: tuple[Rung, ...] = (
    Rung(
        "segmentation", "SlidingWindow", "Sliding window",
        "Classifies the centre pixel of every window, one window at a time.",
        pictures.sliding_window, "Ciresan, Giusti, Gambardella, Schmidhuber, NIPS", 2012,
        Published(0.0613, "pixel error", "ISBI 2012"),
    ),
    Rung(
        "segmentation", "SlidingWindow", "Sliding window, dense",
        "Applies the same classifier to the whole image in one pass, with equal results.",
        pictures.dense_window, "Sermanet et al., ICLR; Long, Shelhamer, Darrell, CVPR", 2014,
        settings={"mode": "dense"},
    ),
    Rung(
        "segmentation", "FullResolutionFCN", "FCN at full resolution",
        "Classifies all pixels with layers as large as the image, at a high cost per layer.",
        pictures.full_resolution,
    ),
    Rung(
        "segmentation", "UpsamplingFCN", "Downsampling and upsampling",
        "Computes most features at low resolution and upsamples them to the image.",
        pictures.upsampling,
    ),
    Rung(
        "segmentation", "FCN", "FCN",
        "Turns a classification network into a segmenter and adds scores of finer maps.",
        pictures.skips, "Long, Shelhamer, Darrell, CVPR", 2015,
        Published(62.2, "mIoU", "VOC 2012 test", "175 ms"),
    ),
    Rung(
        "segmentation", "VGG16FCN", "FCN-32s, 16s, 8s on VGG16",
        "Converts the fully connected layers of VGG16 to convolutions and keeps their weights.",
        pictures.fully_convolutional_vgg, "Shelhamer, Long, Darrell, PAMI", 2017,
        Published(67.2, "mIoU", "VOC 2012 test"),
    ),
    Rung(
        "segmentation", "DeconvNet", "DeconvNet",
        "Reconstructs the objects from one vector by unpooling and transposed convolutions.",
        pictures.deconvnet, "Noh, Hong, Han, ICCV", 2015,
        Published(69.6, "mIoU", "VOC 2012 test"),
    ),
    Rung(
        "segmentation", "SegNetBasic", "SegNet-Basic",
        "Stores only the positions of the pooled maxima, in four stages of one convolution.",
        pictures.segnet_basic, "Badrinarayanan, Kendall, Cipolla, PAMI", 2017,
        Published(47.7, "mIoU", "CamVid test, 367 training images", "52.6 ms on a Titan"),
    ),
    Rung(
        "segmentation", "SegNet", "SegNet",
        "Mirrors all of VGG16 in a decoder that unpools to the positions of the maxima.",
        pictures.segnet, "Badrinarayanan, Kendall, Cipolla, PAMI", 2017,
        Published(60.1, "mIoU", "CamVid test, 3433 training images", "422.5 ms on a Titan"),
    ),
    Rung(
        "segmentation", "OriginalUNet", "U-Net, original",
        "Concatenates the encoder's maps with the decoder's; unpadded, so the output is smaller.",
        pictures.original_unet, "Ronneberger, Fischer, Brox, MICCAI", 2015,
        Published(0.9203, "IoU", "PhC-U373"),
    ),
    Rung(
        "segmentation", "UNet", "U-Net",
        "Uses any backbone as encoder and pads, so that the output is as large as the image.",
        pictures.unet, "Ronneberger, Fischer, Brox, MICCAI", 2015,
    ),
    Rung(
        "segmentation", "TorchvisionFCN", "FCN, dilated (torchvision)",
        "Replaces the last strides by dilations, so that no map is coarser than stride 8.",
        pictures.dilation, "Long, Shelhamer, Darrell, CVPR", 2015,
        Published(60.5, "mIoU", "COCO val2017, VOC classes"),
    ),
    Rung(
        "segmentation", "DeepLabV3", "DeepLabV3",
        "Adds context at several scales around each pixel by parallel dilated convolutions.",
        pictures.spatial_pyramid, "Chen, Papandreou, Schroff, Adam", 2017,
        Published(85.7, "mIoU", "VOC 2012 test"),
    ),
    Rung(
        "segmentation", "LRASPP", "Lite R-ASPP",
        "Keeps only the image's mean as context and one skip, for phones.",
        pictures.light_head, "Howard et al., ICCV", 2019,
    ),
    Rung(
        "segmentation", "SMP", "segmentation_models_pytorch",
        "Combines the library's decoders with its encoders.",
        pictures.any_decoder,
    ),
    Rung(
        "localization", "BoxHead", "Box head",
        "Regresses the box of the only object with a second head beside the classifier.",
        pictures.box_head, "Sermanet et al., ICLR; Simonyan, Zisserman, ICLR", 2015,
        Published(26.7, "percent top-5 error", "ILSVRC 2014 localization test, one network"),
    ),
    Rung(
        "detection", "SlidingWindowDetector", "Sliding window",
        "Classifies windows of all positions, sizes and shapes, one at a time.",
        pictures.windows_of_pyramid, "Rowley, Baluja, Kanade, PAMI; Viola, Jones, CVPR", 1998,
    ),
    Rung(
        "detection", "SlidingWindowDetector", "Sliding window, dense",
        "Shares the convolutions of all windows: one pass per size instead of thousands.",
        pictures.dense_windows_of_pyramid, "Sermanet et al., ICLR", 2014,
        settings={"mode": "dense"},
    ),
    Rung(
        "detection", "OverFeat", "OverFeat",
        "Regresses a box from every window and merges the boxes that agree.",
        pictures.overfeat, "Sermanet et al., ICLR", 2014,
        Published(24.3, "mAP", "ILSVRC 2013 detection"),
    ),
    Rung(
        "detection", "RCNN", "R-CNN",
        "Replaces the windows by region proposals and runs a network on each of them.",
        pictures.rcnn, "Girshick, Donahue, Darrell, Malik, CVPR", 2014,
        Published(66.0, "mAP", VOC07, "47 s on a K40"),
    ),
    Rung(
        "detection", "FastRCNN", "Fast R-CNN",
        "Runs the network once per image and pools each proposal's features from its map.",
        pictures.fast_rcnn, "Girshick, ICCV", 2015,
        Published(66.9, "mAP", VOC07, "0.32 s without proposals"),
    ),
    Rung(
        "detection", "FasterRCNN", "Faster R-CNN",
        "Predicts the proposals with a small network on the same feature map.",
        pictures.faster_rcnn, "Ren, He, Girshick, Sun, NIPS", 2015,
        Published(69.9, "mAP", VOC07, "198 ms on a K40"),
    ),
    Rung(
        "detection", "TorchvisionFasterRCNN", "Faster R-CNN, pyramid (torchvision)",
        "Takes small objects from fine maps and large ones from coarse maps of a pyramid.",
        pictures.pyramid_rcnn, "Lin et al., CVPR", 2017,
        Published(37.0, "AP", "COCO val2017"),
    ),
    Rung(
        "detection", "MaskRCNN", "Mask R-CNN",
        "Adds a branch that predicts a mask in each box, with exactly aligned features.",
        pictures.mask_rcnn, "He, Gkioxari, Dollár, Girshick, ICCV", 2017,
        Published(38.2, "box AP", COCO, "195 ms on an M40"),
    ),
    Rung(
        "detection", "TorchvisionMaskRCNN", "Mask R-CNN, pyramid (torchvision)",
        "Predicts masks from the maps of a feature pyramid.",
        pictures.pyramid_mask_rcnn, "He, Gkioxari, Dollár, Girshick, ICCV", 2017,
        Published(37.9, "box AP", "COCO val2017"),
    ),
    Rung(
        "detection", "YOLOv1", "YOLO v1",
        "Drops the proposals: a grid of cells regresses classes and boxes in one pass.",
        pictures.yolo, "Redmon, Divvala, Girshick, Farhadi, CVPR", 2016,
        Published(63.4, "mAP", VOC0712, "45 frames per second"),
    ),
    Rung(
        "detection", "SSD", "SSD",
        "Predicts from default boxes on several maps: fine maps for small objects, coarse for large.",
        pictures.ssd, "Liu et al., ECCV", 2016,
    ),
    Rung(
        "detection", "SSD300", "SSD300 on VGG16",
        "Uses six maps of VGG16 with 8,732 default boxes, as published.",
        pictures.ssd300, "Liu et al., ECCV", 2016,
        Published(74.3, "mAP", VOC0712, "46 frames per second"),
    ),
    Rung(
        "detection", "SSD512", "SSD512 on VGG16",
        "Enlarges the image and adds a seventh map, with 24,564 default boxes.",
        pictures.ssd512, "Liu et al., ECCV", 2016,
        Published(76.8, "mAP", VOC0712, "19 frames per second"),
    ),
    Rung(
        "detection", "SSDLite", "SSDLite",
        "Splits each convolution into one per channel and one across channels, for phones.",
        pictures.ssd_lite, "Sandler et al., CVPR", 2018,
    ),
    Rung(
        "detection", "RetinaNet", "RetinaNet",
        "Adds a top-down pyramid and a loss that the many easy anchors do not dominate.",
        pictures.retinanet, "Lin, Goyal, Girshick, He, Dollár, ICCV", 2017,
        Published(39.1, "AP", COCO),
    ),
    Rung(
        "detection", "TorchvisionRetinaNet", "RetinaNet (torchvision)",
        "Is the same network in torchvision's form, with its published weights.",
        pictures.retinanet, "Lin, Goyal, Girshick, He, Dollár, ICCV", 2017,
        Published(36.4, "AP", "COCO val2017"),
    ),
    Rung(
        "detection", "FCOS", "FCOS",
        "Drops the anchors: each location in an object regresses the distances to its sides.",
        pictures.fcos, "Tian, Shen, Chen, He, ICCV", 2019,
        Published(38.7, "AP", "COCO minival", "71 ms"),
    ),
    Rung(
        "detection", "TorchvisionFCOS", "FCOS (torchvision)",
        "Is the same network in torchvision's form, with its published weights.",
        pictures.fcos, "Tian, Shen, Chen, He, ICCV", 2019,
        Published(39.2, "AP", "COCO val2017"),
    ),
    Rung(
        "detection", "YOLOX", "YOLOX",
        "Assigns each object to the cells whose current predictions suit it best.",
        pictures.yolox, "Ge, Liu, Wang, Li, Sun", 2021,
    ),
    Rung(
        "detection", "DETR", "DETR",
        "Predicts a set of boxes from learned queries: no anchors and no suppression of duplicates.",
        pictures.detr, "Carion et al., ECCV", 2020,
        Published(42.0, "AP", "COCO val2017", "28 frames per second"),
    ),
)  # fmt: skip
"""All rungs in order. Where a family has two, the one with settings is used for runs that have these settings."""

_GENERIC = {
    "segmentation": pictures.generic_segmentation,
    "localization": pictures.generic_localization,
    "detection": pictures.generic_detection,
}


def rung_of(
    task: str, family: str, settings: Mapping[str, Any] | None = None, description: str | None = None
) -> Rung:
    """Return the rung of a run.

    Args:
        task: The task of the run.
        family: The name of the model's class.
        settings: The options of the model. They distinguish two rungs of the same family.
        description: The idea of a family without a rung: the first sentence of its docstring, from the record.

    Returns:
        The rung. For a family that the ladder does not have, a rung with a generic picture and ``description``.
    """
    known = [rung for rung in RUNGS if (rung.task, rung.family) == (task, family)]
    if not known:
        return Rung(task, family, family, description or "", _GENERIC[task])
    fitting = [rung for rung in known if rung.settings and rung.settings.items() <= (settings or {}).items()]
    return (fitting or [rung for rung in known if not rung.settings])[0]
