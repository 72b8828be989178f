from segdet.data.formats.detect import find_dataset


def open_readers(root, **options):
    """Return the readers of a folder's splits, by split; the options are those of `find_dataset`."""
    dataset = find_dataset(root, **options)
    return {split: dataset.open(split) for split in dataset.splits}
