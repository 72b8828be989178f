from pathlib import Path

import pytest

from segdet.util.errors import UserError
from segdet.util.validation import FileModel, YamlFile


class Inner(FileModel):
    sizes: list[int]


class Outer(FileModel):
    name: str = ""
    parts: dict[str, Inner]


def write(folder: Path, text: str) -> Path:
    path = folder / "a.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_a_model_and_numbers_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    file = YamlFile.read(write(tmp_path, "name: x\nparts:\n  a: {sizes: [1, 2]}\nrate: 1e-5\n"))
    assert file.values["rate"] == 1e-5
    assert file.lines["parts", "a", "sizes", 1] == 3
    del file.values["rate"]
    assert file.parse(Outer).parts["a"].sizes == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts:\n  a: {sizes: [1, x]}", ", line 2: parts.a.sizes.1 is 'x' and should be a whole number"),
        ("parts:\n  a: {sizes: 1}", ", line 2: parts.a.sizes is 1 and should be a list"),
        ("parts:\n  a: {size: [1]}", ", line 2: parts.a has the unknown key 'size'; did you mean sizes?"),
        ("parts:\n  a: {}", ", line 2: parts.a has no key 'sizes'; add it"),
        ("name: 1\nparts: {}", ", line 1: name is 1 and should be a string"),
        ("[1]", ": is [1] and should be a mapping"),
        ("", ": is None and should be a mapping"),
        ("parts: {}\nparts: {}", ", line 2: 'parts' is a duplicate key; remove one"),
        ("parts: [", ", line 1: "),
    ],
)
def test_an_error_names_file_line_and_key_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        YamlFile.read(path).parse(Outer)
    assert str(error.value).startswith(f"{path}{message}") and "\n" not in str(error.value)


def test_a_missing_file_is_reported_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(UserError, match=r"b\.yaml: no such file; did you mean .*a\.yaml\?"):
        YamlFile.read(tmp_path / "b.yaml")
