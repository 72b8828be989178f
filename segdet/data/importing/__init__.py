"""Import for `segdet data import`: read the files of annotation tools and write a VOC or COCO folder.

Each module reads one foreign format, except `source`, `foreign`, `geometry`, `split`, `plan` and `run`.
"""
