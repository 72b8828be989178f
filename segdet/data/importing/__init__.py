"""Readers of the files of annotation tools, and `segdet data import`, which writes them as a VOC or COCO folder.

Each module except `source`, `foreign`, `geometry`, `split`, `plan` and `run` reads one foreign format.
"""
