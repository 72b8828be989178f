"""The Shapes generator and the writers of VOC, COCO and Cityscapes folders."""
