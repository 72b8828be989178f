"""Pretrained weights: read them by published name, from a file or from a run, and load them into a network.

Families accept weights in one notation: a local file, the folder of a run, the name of weights that a library
publishes (``IMAGENET1K_V1``), or true for the library's default ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from segdet.util.errors import UserError

StateDict = dict[str, Tensor]


def load_weights(
    network: nn.Module,
    weights: bool | str,
    owner: str,
    published: Sequence[type[WeightsEnum]] = (),
    option: str = "--model.weights",
    convert: Callable[[StateDict], StateDict] | None = None,
) -> None:
    """Load pretrained weights of any kind into ``network``. Do nothing within `restoring`.

    Args:
        network: The network. Entries of the weights without a parameter of the same name are ignored.
        weights, owner, published, option: See `read_weights`.
        convert: A function that renames and reshapes the weights for ``network``.

    Raises:
        UserError: If the weights cannot be read, one is missing, or one has another shape than the network's.
    """
    source, state = read_weights(weights, owner, published, option)
    if not is_restoring():
        load_state(network, convert(state) if convert else state, source, owner)


def read_weights(
    weights: bool | str,
    owner: str,
    published: Sequence[type[WeightsEnum]] = (),
    option: str = "--model.weights",
) -> tuple[str, StateDict]:
    """Return the source of pretrained weights, for error messages, and the weights by parameter name.

    Within `restoring` nothing is read or downloaded, and the weights are empty.

    Args:
        weights: The name of one of ``published``; true for the default weights of the first of these; a local file
            (``.safetensors``, or written by ``torch.save``); or the folder of a run, for its best checkpoint.
        owner: The name of the network, for error messages.
        published: The weights that torchvision publishes for the network.
        option: The option that set ``weights``, for error messages.

    Raises:
        UserError: If the weights do not exist, the file is missing or corrupt, or the download fails.
    """
    members = {member.name: member for kind in reversed(published) for member in kind}
    if isinstance(weights, str) and weights not in (*members, "DEFAULT"):
        path = Path(weights)
        if is_weights_file(weights) or path.exists():
            path = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
            return str(path), {} if is_restoring() else _read_file(path, owner)
    name = published_name(weights, owner, published, option)
    return name, {} if is_restoring() else _download(members[name], owner)


def load_state(network: nn.Module, state: StateDict, source: str, owner: str) -> None:
    """Load ``state``, which must hold all parameters of ``network``, into it. Do nothing within `restoring`.

    Batch counts of batch normalization may be missing. Entries without a parameter are ignored.

    Args:
        network: The network.
        state: The weights by parameter name.
        source: The file or the published name of the weights, for error messages.
        owner: The name of the network, for error messages.

    Raises:
        UserError: If a weight is missing or has another shape.
    """
    if is_restoring():
        return
    own = network.state_dict()
    check_complete(own, [key for key in own if key not in state], source, owner)
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if wrong:
        raise UserError(
            f"{source}: {wrong[0]} has another shape than in {owner}; choose weights of this network"
        )
    network.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def check_complete(own: StateDict, missing: Sequence[str], source: str, owner: str) -> None:
    """Raise `UserError` if weights of ``owner`` are ``missing``; counts of batches may be missing."""
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"{source}: not the weights of {owner}: {len(missing)} of {len(own)} are missing, such as "
            f"{missing[0]}; choose weights of this network"
        )


def is_weights_file(weights: bool | str | None) -> bool:
    """Return whether ``weights`` is the path of a file rather than the name of published weights."""
    suffixes = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")
    return isinstance(weights, str) and ("/" in weights or weights.endswith(suffixes))


def published_name(
    weights: bool | str,
    owner: str,
    published: Sequence[type[WeightsEnum]],
    option: str = "--model.weights",
) -> str:
    """Return the name of published weights: ``weights``, or the default of the first enum if ``weights`` is true.

    Raises:
        UserError: If the weights do not exist.
    """
    if not published:
        raise UserError(f"{option}: there are no published weights of {owner}; give a local file, or null")
    if weights is True or weights == "DEFAULT":
        return published[0]["DEFAULT"].name
    names = [member.name for kind in published for member in kind]
    if weights not in names:
        raise UserError(
            f"{option}: torchvision has no weights {weights!r} of {owner}; it has {', '.join(names)}; or give "
            "a local file"
        )
    return str(weights)


def download_error(owner: str, error: Exception) -> UserError:
    """Return the error for weights that a library could not download."""
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return UserError(
        f"{owner}: its weights cannot be downloaded ({reason}); give a local file, or null for random weights"
    )


def _download(member: WeightsEnum, owner: str) -> StateDict:
    try:
        return dict(member.get_state_dict(progress=False))
    except (OSError, RuntimeError) as error:
        raise download_error(owner, error) from error


def _read_file(path: Path, owner: str) -> StateDict:
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights for {owner}; give an existing one, or null")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state.get("model", state))
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # a corrupt file makes the readers raise errors of many types
        raise UserError(
            f"{path}: the file is corrupt or holds no weights; download it again or give another"
        ) from error


_restored: ContextVar[frozenset[str] | None] = ContextVar("restored", default=None)


@contextmanager
def restoring(names: Iterable[str]) -> Iterator[None]:
    """Build networks for a checkpoint that will overwrite all their weights; do not read pretrained ones.

    A configuration still names the weights that a training started from, because they can decide how the network is
    built: torchvision freezes the batch normalization of some weights, and a tag of timm selects a variant of a
    network. Neither the weights file nor a network connection is needed. Within this context `read_weights` returns
    empty weights, `load_weights` and `load_state` do nothing, and `build_backbone` downloads nothing.

    Args:
        names: The parameter names in the checkpoint. They decide how the network is built.
    """
    token = _restored.set(frozenset(names))
    try:
        yield
    finally:
        _restored.reset(token)


def restored_names() -> frozenset[str] | None:
    """Return the parameter names of the checkpoint within `restoring`, else None."""
    return _restored.get()


def is_restoring() -> bool:
    """Return whether a checkpoint will overwrite all weights (see `restoring`)."""
    return _restored.get() is not None
