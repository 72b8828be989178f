"""Detection: all objects of an image, each with class and box. One file per family."""

from segdet.detection.base import Detector
from segdet.detection.detr import DETR
from segdet.detection.fast_rcnn import FastRCNN
from segdet.detection.faster_rcnn import FasterRCNN, TorchvisionFasterRCNN
from segdet.detection.fcos import FCOS, TorchvisionFCOS
from segdet.detection.mask_rcnn import MaskRCNN, TorchvisionMaskRCNN
from segdet.detection.overfeat import OverFeat
from segdet.detection.rcnn import RCNN
from segdet.detection.retinanet import RetinaNet, TorchvisionRetinaNet
from segdet.detection.rpn_proposer import RPN
from segdet.detection.sliding_window_detector import SlidingWindowDetector
from segdet.detection.ssd import SSD
from segdet.detection.ssd_lite import SSDLite
from segdet.detection.ssd_vgg16 import SSD300, SSD512
from segdet.detection.yolo_v1 import YOLOv1
from segdet.detection.yolox import YOLOX

__all__ = [
    "DETR",
    "FCOS",
    "RCNN",
    "RPN",
    "SSD",
    "SSD300",
    "SSD512",
    "YOLOX",
    "Detector",
    "FastRCNN",
    "FasterRCNN",
    "MaskRCNN",
    "OverFeat",
    "RetinaNet",
    "SSDLite",
    "SlidingWindowDetector",
    "TorchvisionFCOS",
    "TorchvisionFasterRCNN",
    "TorchvisionMaskRCNN",
    "TorchvisionRetinaNet",
    "YOLOv1",
]
