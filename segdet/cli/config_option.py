"""The option ``--config``: a YAML file, or YAML text in place of a file."""

import argparse
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from segdet.util.errors import UserError
from segdet.util.validation import YamlFile
from segdet.util.yaml_text import load_yaml


class ConfigOption(ActionConfigFile):
    """Check the file before jsonargparse reads it, so that an error names the file."""

    def __call__(  # type: ignore[override]
        self, parser: argparse.ArgumentParser, cfg: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Apply the options in the file or text ``values``; null stands for no file.

        Raises:
            UserError: If the file cannot be read, is not YAML, or holds no options.
        """
        text = str(values)
        if not text.strip():
            raise UserError("--config: has no value; give a YAML file")
        try:
            inline = load_yaml(text)
        except yaml.YAMLError as error:
            if "\n" in text or text.lstrip().startswith("{"):
                raise UserError(
                    f"--config: the text is not YAML ({' '.join(str(error).split())}); fix it"
                ) from None
            inline = text
        if inline is None:
            return
        if not isinstance(inline, dict):
            _check_file(Path(text))
        assert isinstance(parser, ArgumentParser)
        super().__call__(parser, cfg, values, option_string)


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = path / "config.yaml"
        fix = f"give {inside}" if inside.is_file() else "give a YAML file"
        raise UserError(f"--config {path}: is a folder; {fix}")
    try:
        content = YamlFile.read(path).values
    except UserError as error:
        raise UserError(f"--config {error}") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else " ".join(str(content).split())[:60]
        raise UserError(
            f"--config {path}: expected options, such as 'trainer: {{max_epochs: 3}}', got {found}; fix the file"
        )
