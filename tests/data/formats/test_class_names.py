import pytest

from segdet.data.formats.class_names import class_files_in, class_names_from, names_from, read_class_file
from segdet.util.errors import UserError

CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nred cat:48,112,32:head,tail:\ndog:::\n"


def test_labelmes_ignore_is_not_a_class(tmp_path):
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncat\n")
    assert names_from("labels.txt", tmp_path) == ["_background_", "cat"]
    assert class_names_from("__ignore__,_background_,cat", tmp_path) == ["_background_", "cat"]
    (tmp_path / "labels.txt").write_text("__ignore__\n")
    with pytest.raises(UserError, match="no class names"):
        names_from("labels.txt", tmp_path)


def test_cvats_label_map_has_names_and_colours(tmp_path):
    path = tmp_path / "labelmap.txt"
    path.write_text(CVAT)
    classes = read_class_file(path)
    assert classes.names == ["background", "red cat", "dog"] and classes.file == path
    assert classes.colours == {(0, 0, 0): "background", (48, 112, 32): "red cat"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [("bee:48,112,32::", "red cat and bee have the same colour"), ("bee:1,2,256::", "above 255")],
)
def test_wrong_colours_are_reported_in_one_line(tmp_path, line, fault):
    (tmp_path / "labelmap.txt").write_text(f"{CVAT}{line}\n")
    with pytest.raises(UserError, match=fault):
        read_class_file(tmp_path / "labelmap.txt")


def test_names_with_colons_and_hashes_are_names(tmp_path):
    (tmp_path / "labels.txt").write_text("#1\nratio 1:2\n")
    classes = read_class_file(tmp_path / "labels.txt")
    assert classes.names == ["#1", "ratio 1:2"] and not classes.colours


def test_class_files_are_found_in_the_order_of_folders(tmp_path):
    inner = tmp_path / "VOC2012"
    inner.mkdir()
    for path in (inner / "labels.txt", tmp_path / "labelmap.txt", tmp_path / "class_names.txt"):
        path.write_text("a\n")
    found = class_files_in([tmp_path, inner, inner])
    assert found == [tmp_path / "class_names.txt", tmp_path / "labelmap.txt", inner / "labels.txt"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0 background\n1 red cat\n", ["background", "red cat"]),
        ("0: background\n1:cat\n", ["background", "cat"]),
        ("background, red cat,dog\n", ["background", "red cat", "dog"]),
        ("1 cent\n2 cents\n", ["1 cent", "2 cents"]),
        ("0\n1\n", ["0", "1"]),
        ("cat\n", ["cat"]),
        ("7 up\ncola\n", ["7 up", "cola"]),
    ],
)
def test_numbers_and_commas_are_not_part_of_the_names(tmp_path, text, names):
    (tmp_path / "labels.txt").write_text(text)
    assert names_from("labels.txt", tmp_path) == names
