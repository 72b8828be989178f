"""Semantic segmentation: a class for every pixel. One file per family."""

from segdet.segmentation.base import Segmenter
from segdet.segmentation.deconvnet import DeconvNet
from segdet.segmentation.fcn import FCN
from segdet.segmentation.fcn_vgg16 import VGG16FCN
from segdet.segmentation.full_resolution import FullResolutionFCN
from segdet.segmentation.segnet import SegNet, SegNetBasic
from segdet.segmentation.sliding_window import SlidingWindow
from segdet.segmentation.smp import SMP
from segdet.segmentation.torchvision_models import LRASPP, DeepLabV3, TorchvisionFCN
from segdet.segmentation.unet import OriginalUNet, UNet
from segdet.segmentation.upsampling_fcn import UpsamplingFCN

__all__ = [
    "FCN",
    "LRASPP",
    "SMP",
    "VGG16FCN",
    "DeconvNet",
    "DeepLabV3",
    "FullResolutionFCN",
    "OriginalUNet",
    "SegNet",
    "SegNetBasic",
    "Segmenter",
    "SlidingWindow",
    "TorchvisionFCN",
    "UNet",
    "UpsamplingFCN",
]
