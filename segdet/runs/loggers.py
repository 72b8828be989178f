"""Weights & Biases: online where there is an account, offline where there is none, never a question."""

import netrc
import os
import secrets
import socket
import string
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, WandbLogger

from segdet.util.errors import UserError

HOST = "https://api.wandb.ai"
MODES = ("online", "offline", "disabled", "shared")


def wandb_logger(folder: Path, project: str, continues: bool = False) -> list[Logger]:
    """The logger of a run's Weights & Biases record, or none where it is switched off.

    The run's id lies in ``<folder>/wandb/run_id.txt``, so that a resumed run goes on in its record.

    Args:
        folder: The run's folder; everything is written below it.
        project: The project there, unless WANDB_PROJECT names one.
        continues: For a command that adds to a run that is over. Offline it makes no record of its own:
            two offline records of one id overwrite each other when they are synchronized.
    """
    mode = wandb_mode()
    file = folder / "wandb" / "run_id.txt"
    if mode == "disabled" or (continues and (mode == "offline" or not file.exists())):
        return []
    import wandb

    for name, place in (("WANDB_CACHE_DIR", "cache"), ("WANDB_DATA_DIR", "data")):
        os.environ.setdefault(name, str((folder / "wandb" / place).resolve()))
    settings = wandb.Settings(
        x_transaction_log_flush_interval=1.0,  # what is killed within the default 15 s leaves no record
        silent=mode == "offline",
        init_timeout=30,
    )
    logger = WandbLogger(
        name=os.environ.get("WANDB_NAME", folder.name),
        save_dir=str(folder),
        id=os.environ.get("WANDB_RUN_ID") or _run_id(file),
        project=os.environ.get("WANDB_PROJECT", project),
        mode=mode,
        settings=settings,
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it, and W&B warns of it on every run
    return [logger]


def _run_id(file: Path) -> str:
    if file.exists():
        return file.read_text(encoding="utf-8").strip()
    name = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(name + "\n", encoding="utf-8")
    return name


def wandb_mode() -> str:
    """``online``, ``offline`` or ``disabled``: WANDB_MODE where it is set, else by account and network.

    Raises:
        UserError: If WANDB_MODE is none of the modes that Weights & Biases knows.
    """
    named = os.environ.get("WANDB_MODE", "").lower()
    if named:
        mode = {"dryrun": "offline", "run": "online"}.get(named, named)
        if mode not in MODES:
            raise UserError(f"WANDB_MODE {named}: no such mode; there are {', '.join(MODES)}")
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    if not has_account():
        return "offline"
    if not _reachable():
        sys.stderr.write(f"segdet: {_base_url()} does not answer; W&B records offline\n")
        return "offline"
    return "online"


def has_account() -> bool:
    """Whether this machine has a key for Weights & Biases."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(_base_url()).hostname or ""
    for place in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        file = Path(place).expanduser() if place else None
        if file is not None and file.is_file():
            try:
                found: Any = netrc.netrc(str(file)).authenticators(host)
            except (OSError, netrc.NetrcParseError):
                continue
            if found and found[2]:
                return True
    return False


def _base_url() -> str:
    return os.environ.get("WANDB_BASE_URL") or HOST


def _reachable(timeout: float = 3.0) -> bool:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # only the proxy can tell
    address = urlsplit(_base_url())
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout):
            return True
    except OSError:
        return False
