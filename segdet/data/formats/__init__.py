"""Readers of VOC, COCO, Cityscapes and plain image folders, and format detection."""
