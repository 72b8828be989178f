"""Network parts: layers, backbones, boxes, regions, pyramids, windows, upsampling."""
