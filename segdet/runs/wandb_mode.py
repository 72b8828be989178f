"""Whether Weights & Biases records online, offline or not at all. This module imports neither torch nor wandb."""

import contextlib
import netrc
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from segdet.util.errors import UserError

HOST = "https://api.wandb.ai"
MODES = ("online", "offline", "disabled", "shared")


def wandb_mode() -> str:
    """Return ``online``, ``offline`` or ``disabled``: WANDB_MODE if it is set, otherwise by account and network.

    Raises:
        UserError: If WANDB_MODE is not a mode of Weights & Biases.
    """
    named = os.environ.get("WANDB_MODE", "").lower()
    if named:
        mode = {"dryrun": "offline", "run": "online"}.get(named, named)
        if mode not in MODES:
            raise UserError(f"WANDB_MODE {named}: no such mode; choose from {', '.join(MODES)}")
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    if not has_account():
        return "offline"
    if not _reachable():
        sys.stderr.write(f"segdet: {_base_url()} does not respond; W&B records offline\n")
        return "offline"
    return "online"


def has_account() -> bool:
    """Return whether this machine has an API key for Weights & Biases."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(_base_url()).hostname or ""
    for path in filter(None, (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            entry = netrc.netrc(Path(path).expanduser()).authenticators(host)
            if entry and entry[2]:
                return True
    return False


def _base_url() -> str:
    return os.environ.get("WANDB_BASE_URL") or HOST


def _reachable(timeout: float = 3.0) -> bool:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # the proxy may reach the server even if this machine cannot
    address = urlsplit(_base_url())
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((address.hostname or "", port), timeout):
            return True
    except OSError:
        return False
