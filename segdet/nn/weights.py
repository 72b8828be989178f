"""Pretrained weights: read them by published name or from a file, and load them into a network.

Families accept weights in one notation: the name of weights that a library publishes (``IMAGENET1K_V1``), true for the
library's default ones, a local file, or a run or checkpoint of segdet. Names and files are loaded here while the
network is built. A checkpoint of segdet may hold parameters of all parts of a network, so it is loaded when the network
is complete, by `segdet.training.fine_tune`.
"""

from __future__ import annotations

import logging
import pickle
import sys
import textwrap
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from segdet.util.distributed import rank
from segdet.util.errors import UserError
from segdet.util.nouns import counted

StateDict = dict[str, Tensor]

DESCRIPTION = "segdet"
"""The key of a checkpoint for the description of its model: class, class names, size of images."""

_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""The keys under which training scripts store weights in a file, averaged ones first."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
"""The prefixes that wrappers of a network add to all parameter names."""

_SHOWN = 3
"""The number of parameters that a message lists by name."""


class Normalization(NamedTuple):
    """The mean and standard deviation of each channel, 0..1, that a network expects of its images."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load_weights(
    network: nn.Module,
    weights: bool | str,
    owner: str,
    published: Sequence[type[WeightsEnum]] = (),
    option: str = "--model.weights",
    convert: Callable[[StateDict], StateDict] | None = None,
) -> None:
    """Load pretrained weights of any kind into ``network``.

    Do nothing within `restoring`, and for a checkpoint of segdet.

    Args:
        network: The network.
        weights, owner, published, option: See `read_weights`.
        convert: A function that renames and reshapes the weights for ``network``.

    Raises:
        UserError: If the weights cannot be read, one is missing, or one has another shape than the network's.
    """
    source, state = read_weights(weights, owner, published, option)
    if state:
        load_state(network, convert(state) if convert else state, source, owner, given=state)


def read_weights(
    weights: bool | str,
    owner: str,
    published: Sequence[type[WeightsEnum]] = (),
    option: str = "--model.weights",
) -> tuple[str, StateDict]:
    """Return the source of pretrained weights, for messages, and the weights by parameter name.

    The weights are empty if there is nothing to load while the network is built: within `restoring`, where nothing is
    read or downloaded, and for a checkpoint of segdet.

    Args:
        weights: The name of one of ``published``; true for the default weights of the first of these; a local file
            (``.safetensors``, or written by ``torch.save``); or a run or checkpoint of segdet.
        owner: The name of the network, for error messages.
        published: The weights that torchvision publishes for the network.
        option: The option that set ``weights``, for error messages.

    Raises:
        UserError: If the weights do not exist, the file is missing or corrupt, or the download fails.
    """
    if is_restoring():
        return str(weights), {}
    members = {member.name: member for kind in reversed(published) for member in kind}
    if isinstance(weights, str) and weights not in (*members, "DEFAULT") and is_weights_file(weights):
        return weights, _read_state(Path(weights), owner)
    name = published_name(weights, owner, published, option)
    return name, _download(members[name], owner)


def load_state(
    network: nn.Module,
    state: StateDict,
    source: str,
    owner: str,
    names: Mapping[str, str] | None = None,
    given: StateDict | None = None,
) -> None:
    """Load ``state``, which must hold all parameters of ``network``, into it. Do nothing if ``state`` is empty.

    All names of the state may have a common prefix, such as ``module.`` or ``backbone.``. Batch counts of batch
    normalization may be missing. Entries without a parameter are not loaded; a line on stderr counts them.

    Args:
        network: The network.
        state: The weights by parameter name.
        source: The file or the published name of the weights, for messages.
        owner: The name of the network, for messages.
        names: The name in ``state`` of each parameter of the network; None if the names are equal.
        given: The weights before they were converted to ``state``, for the message; None if they were not converted.

    Raises:
        UserError: If a weight is missing or has another shape.
    """
    if not state:
        return
    own = network.state_dict()
    names = {key: key for key in own} if names is None else names
    given = state if given is None else given
    state = without_prefix(state, dict.fromkeys(names.values()))
    check_complete(own, [name for name in names.values() if name not in state], source, owner)
    used = {key: state[name] for key, name in names.items() if name in state}
    wrong = [key for key, value in used.items() if value.shape != own[key].shape]
    if wrong:
        raise UserError(
            f"{source}: {wrong[0]} has another shape than in {owner}; choose weights of this network"
        )
    network.load_state_dict(used, strict=False)
    report(f"{owner}: {count_used(given, used.values())} from {source}")


def count_used(given: StateDict, used: Iterable[Tensor]) -> str:
    """Return a text with the number of ``given`` weights that are ``used``, and the names of the unused ones."""
    addresses = {value.data_ptr() for value in used}
    unused = [key for key, value in given.items() if value.data_ptr() not in addresses]
    not_used = f", without {listed(unused)}" if unused else ""
    return f"{counted(len(given) - len(unused), 'weight')}{not_used}"


def listed(names: Sequence[str]) -> str:
    """Return the number of ``names`` and the first of them, or all if they are few: ``5 (a, b, c ...)``."""
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''})"


def without_prefix(state: StateDict, own: Mapping[str, Any]) -> StateDict:
    """Remove a prefix from the names of a state, so that most of them become names of ``own``.

    Wrappers prepend the name of their attribute to the names of all parameters: ``module.`` (data parallel),
    ``model.`` (training scripts), ``backbone.`` (detectors and segmentation networks).

    Args:
        state: The weights by parameter name.
        own: A mapping with the network's parameter names.

    Returns:
        The entries whose names have the prefix, without it; all entries if no prefix is needed.
    """
    matches: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                matches[".".join(parts[:start])] += 1
    if not matches or matches[""] == max(matches.values()):
        return state
    prefix = max(matches, key=lambda each: matches[each]) + "."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def check_complete(own: Mapping[str, Any], missing: Sequence[str], source: str, owner: str) -> None:
    """Raise `UserError` if weights of ``owner`` are ``missing``, other than counts of batches."""
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"{source}: not the weights of {owner}: {len(missing)} of {len(own)} are missing, such as "
            f"{missing[0]}; choose weights of this network"
        )


def report(line: str) -> None:
    """Print a line about weights on stderr, in one process."""
    if rank() == 0:
        sys.stderr.write(f"segdet: {line}\n")


def checkpoint_of(weights: bool | str | None) -> tuple[Path, dict[str, Any]] | None:
    """Return the path and the content of the segdet checkpoint that ``weights`` names; None for other weights.

    Args:
        weights: A checkpoint file, or the folder of a run, for its best checkpoint (``last.ckpt`` if there is none).

    Raises:
        UserError: If a folder holds no checkpoint, or the file is corrupt.
    """
    if not isinstance(weights, str) or is_restoring():
        return None
    path = Path(weights)
    if path.is_dir():
        folder = path if path.name == "checkpoints" else path / "checkpoints"
        files = [folder / f"{name}.ckpt" for name in ("best", "last")]
        path = next((file for file in files if file.is_file()), files[0])
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint; give the folder of a run that has saved one")
    elif path.suffix == ".safetensors" or not path.is_file():
        return None
    content = _read_file(path, "the model")
    if not isinstance(content.get(DESCRIPTION), dict) or not isinstance(content.get("state_dict"), dict):
        if path != Path(weights):
            raise UserError(f"{path}: not a checkpoint of segdet; give the folder of a run")
        return None
    return path, content


def published_normalization(
    weights: bool | str | None, published: Sequence[type[WeightsEnum]]
) -> Normalization | None:
    """Return the normalization that torchvision's metadata of ``weights`` contain; None if they contain none.

    Args:
        weights: A name or true. For a file, the metadata of the default weights are used.
        published: The weights that torchvision publishes for the network.
    """
    members = {member.name: member for kind in reversed(published) for member in kind}
    member = members.get(str(weights)) or (published[0]["DEFAULT"] if published else None)
    transforms: Any = None if member is None else member.transforms()
    if not hasattr(transforms, "mean") or not hasattr(transforms, "std"):
        return None
    return normalization(transforms.mean, transforms.std)


def normalization(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """Return the normalization with these values for the three channels."""
    (red, green, blue), (std_red, std_green, std_blue) = map(float, mean), map(float, std)
    return Normalization((red, green, blue), (std_red, std_green, std_blue))


def is_weights_file(weights: bool | str | None) -> bool:
    """Return whether ``weights`` is the path of a file or folder rather than the name of published weights."""
    suffixes = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")
    return isinstance(weights, str) and (
        "/" in weights or weights.endswith(suffixes) or Path(weights).exists()
    )


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


class _OneLineForRetries(logging.Filter):
    """Print one line for the first message of the hub's client about a failed request, and drop its messages."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self._owner = owner
        self._reported = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._reported:
            self._reported = True
            report(f"{self._owner}: the Hugging Face hub does not respond; trying again for up to a minute")
        return False


@contextmanager
def summarized_retries(owner: str) -> Iterator[None]:
    """Report the failed requests of a download from the Hugging Face hub in one line.

    Its client retries each request and logs two lines for each attempt.

    Args:
        owner: The name of the network, for the line.
    """
    client, one_line = logging.getLogger("huggingface_hub.utils._http"), _OneLineForRetries(owner)
    client.addFilter(one_line)
    try:
        yield
    finally:
        client.removeFilter(one_line)


def download_error(owner: str, error: Exception) -> UserError:
    """Return the error for weights that a library could not download."""
    lines = str(error).strip().splitlines()
    reason = textwrap.shorten(lines[0], 160, placeholder=" ...") if lines else type(error).__name__
    return UserError(
        f"{owner}: its weights cannot be downloaded ({reason}); give a local file, or null for random weights"
    )


def _download(member: WeightsEnum, owner: str) -> StateDict:
    try:
        return dict(member.get_state_dict(progress=False))
    except (OSError, RuntimeError) as error:
        raise download_error(owner, error) from error


def _read_state(path: Path, owner: str) -> StateDict:
    """Return the weights in a file by parameter name; none for a checkpoint of segdet."""
    if checkpoint_of(str(path)) is not None:
        return {}
    content = _read_file(path, owner)
    content = next((content[key] for key in _NESTED if isinstance(content.get(key), dict)), content)
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path}: the file holds no weights by parameter name; give a file with a state dict")
    while wrapper := next((w for w in _WRAPPERS if all(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def _read_file(path: Path, owner: str) -> dict[str, Any]:
    """Return the content of a file, with tensors on the CPU."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights for {owner}; give an existing one, or null")
    content: Any = None
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            mapped = zipfile.is_zipfile(path)  # files of old versions of torch cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except PermissionError:
        raise UserError(f"{path}: permission denied; make the file readable") from None
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):  # torch.load runs no code of a file
            raise UserError(
                f"{path}: the file holds Python objects besides weights; save the network's state_dict() alone"
            ) from error
        raise _unreadable(path) from error
    except Exception as error:  # a corrupt file makes the readers raise errors of many types
        raise _unreadable(path) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not weights by parameter name; give a state dict"
        )
    return {str(key): value for key, value in content.items()}


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path}: the file is corrupt or holds no weights; download it again or give another")


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
