"""Download, verify and unpack public datasets.

Interrupted downloads are resumed, checksums are verified, and existing files are never changed.
"""

import hashlib
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from segdet.util.errors import UserError

_CHUNK = 1 << 20
_IN_BYTES: dict[str, Any] = {
    "unit": "B",
    "unit_scale": True,
    "unit_divisor": 1024,
}  # options of progress bars
_TIMEOUT = 30.0  # seconds without data after which an attempt fails
_USER_AGENT = "segdet"


@dataclass(frozen=True)
class Part:
    """One archive of a dataset.

    Attributes:
        name: The name for ``--parts``.
        urls: Addresses, in order of preference.
        md5: The checksum.
        bytes: The size. Unpacked files take about the same size again, because images hardly compress.
        marker: A path in the dataset's folder that exists once the part is unpacked.
        elsewhere: Other paths that also show that the part is present.
        inside: The folder of the archive to unpack into the dataset's folder; empty for the whole archive.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    bytes: int
    marker: str
    elsewhere: tuple[str, ...] = ()
    inside: str = ""

    @property
    def archive(self) -> str:
        """The file name of the archive."""
        return self.urls[0].rsplit("/", 1)[-1]

    def present(self, root: Path) -> Path | None:
        """Return the path in ``root`` that marks the part as present, or None if the part is missing."""
        places = (root / place for place in (self.marker, *self.elsewhere))
        return next((place for place in places if place.exists()), None)


def _voc(split: str, path: str, md5: str, size: int, year: int) -> Part:
    hosts = ("https://thor.robots.ox.ac.uk", "http://host.robots.ox.ac.uk")
    marker = f"VOC{year}/ImageSets/Main/{split}.txt"
    urls = tuple(f"{host}/pascal/VOC/voc{year}/{path}" for host in hosts)
    return Part(split, urls, md5, size, marker, (f"VOCdevkit/{marker}",), "VOCdevkit")


def _coco(name: str, path: str, md5: str, size: int, marker: str) -> Part:
    # The owner's server has no HTTPS; the checksum ensures integrity.
    return Part(name, (f"http://images.cocodataset.org/{path}",), md5, size, marker)


DATASETS: dict[str, tuple[Part, ...]] = {
    "voc2007": (
        _voc("trainval", "VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", 460_032_000, 2007),
        _voc("test", "VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 451_020_800, 2007),
    ),
    "voc2012": (
        _voc("trainval", "VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 1_999_639_040, 2012),
    ),
    "coco2017": (
        _coco("annotations", "annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c",
              252_907_541, "annotations/instances_train2017.json"),
        _coco("val", "zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330, "val2017"),
        _coco("train", "zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798, "train2017"),
    ),
}  # fmt: skip
"""Datasets that can be downloaded without registration."""


class _Unfinished(Exception):
    """An interrupted transfer; the received bytes are kept."""


def fetch(urls: Sequence[str], path: Path, md5: str | None, *, attempts: int = 4, pause: float = 1.0) -> None:
    """Download one file, resuming an earlier attempt.

    Bytes are written to ``<path>.part``, which is renamed to ``path`` after its checksum has been verified.

    Args:
        urls: Addresses of the file, tried in this order.
        path: The file to write.
        md5: The checksum; None to skip the verification.
        attempts: Attempts per address.
        pause: Seconds before the second attempt, doubled for each later one.

    Raises:
        UserError: If the file cannot be downloaded from any address, or the checksum is wrong.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        for attempt in range(attempts):
            had = part.stat().st_size if part.exists() else 0
            try:
                _transfer(url, part)
            except urllib.error.HTTPError as error:
                reason = f"{url}: HTTP status {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 429):
                    break  # the server rejects the request; retrying does not help
            except (_Unfinished, urllib.error.URLError, HTTPException, OSError) as error:
                reason = f"{url}: {getattr(error, 'reason', None) or error}"
                progressed = part.exists() and part.stat().st_size > had
                if isinstance(error, urllib.error.URLError) and not progressed and attempt:
                    break  # the host is unreachable; try the next one
            else:
                _verify(part, md5, url)
                shutil.move(part, path)
                return
            if attempt + 1 < attempts:
                time.sleep(pause * 2**attempt)
        reasons.append(reason)
    kept = f" ({_size(part.stat().st_size)} were received in {part.name})" if part.exists() else ""
    raise UserError(
        f"{path}: cannot be downloaded ({'; '.join(reasons)}){kept}; "
        f"download {urls[0]} manually to {path} and run the same command again"
    )


def _transfer(url: str, part: Path) -> None:
    """Append the missing bytes of ``url`` to ``part``."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": _USER_AGENT} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # The range starts at or after the end: the partial file is complete or belongs to another file.
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        error.close()
        if total == str(start):
            return
        part.unlink()
        raise _Unfinished(
            "the partial file was longer than the complete file; the download is restarted"
        ) from None
    with response:
        if start and response.status != 206:
            tqdm.write(
                f"{part.name}: the server cannot resume the download; it is restarted", file=sys.stderr
            )
            start = 0
        length = response.headers.get("Content-Length")
        total_bytes = start + int(length) if length else None
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(None, part.stem, total_bytes, initial=start, delay=0.5, **_IN_BYTES) as progress,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    size = part.stat().st_size
    if total_bytes is not None and size < total_bytes:
        raise _Unfinished(f"the connection was interrupted at {_size(size)} of {_size(total_bytes)}")


def _verify(path: Path, md5: str | None, origin: str) -> None:
    """Delete the file and raise `UserError` if its checksum is wrong."""
    if md5 is not None and (found := checksum(path)) != md5:
        path.unlink()
        raise UserError(
            f"{path}: the file from {origin} has the MD5 {found} instead of {md5} and was deleted; run the command "
            "again"
        )


def checksum(path: Path) -> str:
    """Return the MD5 of a file in hexadecimal, with a progress bar for large files."""
    digest = hashlib.md5(usedforsecurity=False)
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(None, f"checking {path.name}", size, delay=2.0, **_IN_BYTES) as progress,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()


def unpack(archive: Path, root: Path, marker: str = "", inside: str = "") -> None:
    """Add the files of an archive to ``root``; existing files are kept.

    Files are unpacked to a temporary folder first, and ``marker`` is moved last, so that it exists only in complete
    datasets.

    Args:
        archive: A tar or zip file.
        root: The target folder, created if missing.
        marker: See `Part`.
        inside: See `Part`.

    Raises:
        UserError: If the archive is corrupt, or contains a path outside ``root``.
    """
    staging = root / f".unpacking-{archive.name}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, staging)
        else:
            with tarfile.open(archive) as tar:
                for member in tqdm(tar, f"unpacking {archive.name}", unit=" files", delay=1.0):
                    tar.extract(member, staging, filter="data")
        source = staging / inside
        _merge(source if source.is_dir() else staging, root, root / marker)
    except tarfile.FilterError as error:
        raise _unsafe(archive, error) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{archive}: corrupt or not an archive ({error}); delete it and run the command again"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unsafe(archive: Path, path: object) -> UserError:
    return UserError(f"{archive}: contains an unsafe path ({path}); delete it and download it from its owner")


def _unzip(archive: Path, staging: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            place = PurePosixPath(member.filename.replace("\\", "/"))
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if place.is_absolute() or ".." in place.parts or ":" in member.filename or is_link:
                raise _unsafe(archive, member.filename)
        for member in tqdm(members, f"unpacking {archive.name}", unit=" files", delay=1.0):
            file.extract(member, staging)


def _merge(source: Path, target: Path, last: Path) -> None:
    """Move the content of ``source`` into ``target`` without overwriting files; the path ``last`` is moved last."""
    for entry in sorted(source.iterdir(), key=lambda entry: last.is_relative_to(target / entry.name)):
        place = target / entry.name
        if not place.exists():
            shutil.move(entry, place)
        elif entry.is_dir() and place.is_dir():
            _merge(entry, place, last)


def download(parts: Iterable[Part], root: Path, *, keep: bool = False, pause: float = 1.0) -> list[str]:
    """Download and unpack the missing parts of a dataset.

    Args:
        parts: The parts.
        root: The dataset's folder. Archives in it are used instead of a download.
        keep: Whether to keep downloaded archives; archives found in ``root`` are always kept.
        pause: See `fetch`.

    Returns:
        One line per part: already present or downloaded.

    Raises:
        UserError: If there is not enough disk space, or a part cannot be downloaded or has a wrong checksum.
    """
    places = {part: part.present(root) for part in parts}
    lines = [
        f"{part.name}: {place} exists already; nothing was changed" for part, place in places.items() if place
    ]
    missing = [part for part, place in places.items() if place is None]
    _check_space(missing, root)
    for part in missing:
        archive = root / part.archive
        found = archive.exists()
        if not found:
            fetch(part.urls, archive, part.md5, pause=pause)
        elif (md5 := checksum(archive)) != part.md5:
            fix = "delete it to download it again"
            raise UserError(f"{archive}: has the MD5 {md5} instead of {part.md5}; {fix}")
        unpack(archive, root, part.marker, part.inside)
        if not found and not keep:
            archive.unlink()
        lines.append(f"{part.name}: {root / part.marker} is ready")
    return lines


def _check_space(parts: Sequence[Part], root: Path) -> None:
    """Print the disk space that the parts need; raise `UserError` if less is free."""
    if not parts:
        return
    need = 0
    for part in parts:
        partial = root / f"{part.archive}.part"
        have = part.bytes if (root / part.archive).exists() else 0
        have = partial.stat().st_size if partial.exists() else have
        need += max(0, part.bytes - have) + part.bytes
    place = next(place for place in (root.absolute(), *root.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    names = ", ".join(part.name for part in parts)
    tqdm.write(f"{names}: about {_size(need)} needed in {root}, {_size(free)} free", file=sys.stderr)
    if need > free:
        raise UserError(
            f"{root}: {_size(need)} are needed and {_size(free)} are free; "
            "free some space, or choose another folder or fewer --parts"
        )


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
