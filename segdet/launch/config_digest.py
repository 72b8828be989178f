"""Digests of config files, by which a bench or a sweep notices that a config has changed."""

import contextlib
import hashlib
import json
from pathlib import Path

import yaml

from segdet.util.yaml_text import load_yaml


def config_digest(config: Path) -> str:
    """Return a digest of the values in a config file and in the files that it names. Comments have no effect."""
    content = config.read_bytes()
    with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):  # the run will report the error
        values = load_yaml(content.decode())
        content = json.dumps(values, sort_keys=True, default=str).encode()
        for value in values.values() if isinstance(values, dict) else ():
            if isinstance(value, str) and (config.parent / value).is_file():  # such as ``data: data.yaml``
                content += config_digest(config.parent / value).encode()
    return hashlib.sha256(content).hexdigest()[:16]
