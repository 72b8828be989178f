"""YAML values of options and files."""

import pytest
import yaml
from lightning.pytorch.callbacks.timer import Interval

from segdet.util.yaml_text import dump_yaml, load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("null", None),
        ("'None'", "None"),
        ("none", "none"),
        ("Nonesuch", "Nonesuch"),
        ("[None, {a: None}]", [None, {"a": None}]),
        ("1e-5", 1e-5),
        ("1.5E3", 1500.0),
        (".5e1", 5.0),
        ("2024-01-01", "2024-01-01"),
        ("{epoch}", "{epoch}"),
        ("{a, b}", "{a, b}"),
        ("word:", "word:"),
        ("{a: null, b: null}", {"a": None, "b": None}),
        ("yes", True),
        ("", None),
    ],
)
def test_values(text: str, value: object) -> None:
    assert load_yaml(text) == value


@pytest.mark.parametrize(
    "value",
    ["None", "null", "1e5", "1e-5", "2024-01-01", "true", None, 1e-5, [None, "None"], {"a": ["x: y"]}],
)
def test_dumped_values_are_read_back(value: object) -> None:
    assert load_yaml(dump_yaml(value)) == value
    assert yaml.safe_load(dump_yaml(value)) == value or isinstance(value, float)


def test_members_of_an_enumeration_are_dumped_as_their_values() -> None:
    assert load_yaml(dump_yaml({"interval": Interval.step})) == {"interval": "step"}
