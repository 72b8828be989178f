"""Writers of VOC, COCO and Cityscapes folders, for `segdet data make`, `import` and `convert`."""
