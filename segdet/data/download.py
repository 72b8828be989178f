"""``segdet data download``: the public datasets from their owners' addresses, checked and unpacked.

A cut connection is taken up again where it broke off, what arrives is compared with its checksum, and
nothing that is already there is changed: files are only ever added.
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

from tqdm import tqdm

from segdet.util.errors import UserError

_CHUNK = 1 << 20
_TIMEOUT = 30.0
_USER_AGENT = "segdet"


@dataclass(frozen=True)
class Part:
    """One archive of a dataset.

    Attributes:
        name: What ``--parts`` calls it.
        urls: Where it is found, the best address first.
        md5: Its checksum.
        bytes: Its size; unpacked it takes about as much again, since images hardly compress.
        marker: A path inside the dataset's folder that is there once the part is unpacked.
        elsewhere: Other places where people keep the same thing, which also count as present.
        inside: The folder of the archive whose contents go into the dataset's folder; all of it when empty.
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
        """The archive's file name."""
        return self.urls[0].rsplit("/", 1)[-1]

    def present(self, root: Path) -> Path | None:
        """What shows that the part is already in ``root``, or None."""
        places = (root / place for place in (self.marker, *self.elsewhere))
        return next((place for place in places if place.exists()), None)


def _voc(name: str, path: str, md5: str, size: int, year: int, split: str) -> Part:
    hosts = ("https://thor.robots.ox.ac.uk", "http://host.robots.ox.ac.uk")
    marker = f"VOC{year}/ImageSets/Main/{split}.txt"
    urls = tuple(f"{host}/pascal/VOC/voc{year}/{path}" for host in hosts)
    return Part(name, urls, md5, size, marker, (f"VOCdevkit/{marker}",), "VOCdevkit")


def _coco(name: str, path: str, md5: str, size: int, marker: str) -> Part:
    # The owner's host answers in plain HTTP only; the checksum stands in for what TLS would promise.
    return Part(name, (f"http://images.cocodataset.org/{path}",), md5, size, marker)


DATASETS: dict[str, tuple[Part, ...]] = {
    "voc2007": (
        _voc(
            "trainval",
            "VOCtrainval_06-Nov-2007.tar",
            "c52e279531787c972589f7e41ab4ae64",
            460_032_000,
            2007,
            "trainval",
        ),
        _voc(
            "test", "VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 451_020_800, 2007, "test"
        ),
    ),
    "voc2012": (
        _voc(
            "trainval",
            "VOCtrainval_11-May-2012.tar",
            "6cd6e144f989b92b3379bac3b3de84fd",
            1_999_639_040,
            2012,
            "trainval",
        ),
    ),
    "coco2017": (
        _coco(
            "annotations",
            "annotations/annotations_trainval2017.zip",
            "f4bbac642086de4f52a3fdda2de5fa2c",
            252_907_541,
            "annotations/instances_train2017.json",
        ),
        _coco("val", "zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330, "val2017"),
        _coco("train", "zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798, "train2017"),
    ),
}
"""The datasets whose owners permit an anonymous download."""


class _Unfinished(Exception):
    """A transfer that broke off; what arrived is kept."""


def fetch(
    urls: Sequence[str],
    path: Path,
    md5: str | None,
    *,
    attempts: int = 4,
    pause: float = 1.0,
    timeout: float = _TIMEOUT,
) -> None:
    """Download one file, going on where an earlier attempt stopped.

    Bytes gather in ``<path>.part``, which becomes ``path`` once its checksum is right.

    Args:
        urls: The same file's addresses, tried in turn.
        path: Where the file goes.
        md5: Its checksum; None leaves it unchecked.
        attempts: How often each address is tried.
        pause: Seconds before the second attempt; each later one waits twice as long.
        timeout: Seconds without a byte after which an attempt has failed.

    Raises:
        UserError: If no address delivers the file, or its checksum is wrong.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        for attempt in range(attempts):
            had = part.stat().st_size if part.exists() else 0
            try:
                _transfer(url, part, timeout)
            except urllib.error.HTTPError as error:
                reason = f"{url}: HTTP status {error.code} {error.reason}"
                if error.code < 500 and error.code not in (408, 429):
                    break  # Asking again does not change a refusal.
            except (_Unfinished, urllib.error.URLError, HTTPException, OSError) as error:
                reason = f"{url}: {getattr(error, 'reason', None) or error}"
                gone_on = part.exists() and part.stat().st_size > had
                if isinstance(error, urllib.error.URLError) and not gone_on and attempt:
                    break  # There is no way to this host: the next one may have one.
            else:
                _verify(part, md5, url)
                part.replace(path)
                return
            if attempt + 1 < attempts:
                time.sleep(pause * 2**attempt)
        reasons.append(reason)
    kept = f" ({_size(part.stat().st_size)} are kept in {part.name})" if part.exists() else ""
    raise UserError(
        f"{path}: cannot be downloaded ({'; '.join(reasons)}){kept}; "
        f"fetch {urls[0]} by hand, put it at {path} and run the same command again"
    )


def _transfer(url: str, part: Path, timeout: float) -> None:
    """Append to ``part`` what of ``url`` it lacks."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": _USER_AGENT} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        # Nothing lies beyond what is there: either that is everything, or it is another file's.
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        error.close()
        if total == str(start):
            return
        part.unlink()
        raise _Unfinished("the partial file was longer than the whole and is started anew") from None
    with response:
        if start and response.status != 206:
            tqdm.write(f"{part.name}: the server cannot resume, starting anew", file=sys.stderr)
            start = 0
        length = response.headers.get("Content-Length")
        total_bytes = start + int(length) if length else None
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(
                total=total_bytes,
                initial=start,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                desc=part.stem,
                delay=0.5,
            ) as progress,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    size = part.stat().st_size
    if total_bytes is not None and size < total_bytes:
        raise _Unfinished(f"the connection broke off at {_size(size)} of {_size(total_bytes)}")


def _verify(path: Path, md5: str | None, origin: str) -> None:
    """Compare a file with its checksum; a file that has another is deleted."""
    if md5 is None:
        return
    found = checksum(path)
    if found != md5:
        path.unlink()
        raise UserError(
            f"{path}: what {origin} sent has the MD5 {found} and not {md5}; it was deleted, run this again"
        )


def checksum(path: Path) -> str:
    """The MD5 of a file, in hexadecimal, with a progress bar for large files."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            desc=f"checking {path.name}",
            delay=2.0,
        ) as progress,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.update(len(chunk))
    return digest.hexdigest()


def unpack(archive: Path, root: Path, marker: str = "", inside: str = "") -> None:
    """Add an archive's files to ``root``; files that are there already stay as they are.

    Everything is unpacked beside its place first, and ``marker`` is moved last, so that a folder that
    looks complete is complete.

    Args:
        archive: A tar or zip file.
        root: Where its files go; made if it is not there.
        marker: The path whose presence tells that all is there.
        inside: The folder of the archive whose contents go into ``root``.

    Raises:
        UserError: If the archive is torn, or names a place outside ``root``.
    """
    staging = root / f".unpacking-{archive.name}"
    if staging.exists():
        shutil.rmtree(staging)
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
        raise UserError(
            f"{archive}: holds a dangerous path ({error}); delete it and fetch it from its owner"
        ) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{archive}: is torn or no archive ({error}); delete it and run again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unzip(archive: Path, staging: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            place = PurePosixPath(member.filename.replace("\\", "/"))
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            if place.is_absolute() or ".." in place.parts or ":" in member.filename or is_link:
                raise UserError(
                    f"{archive}: holds a dangerous path ({member.filename}); "
                    "delete it and fetch it from its owner"
                )
        for member in tqdm(members, f"unpacking {archive.name}", unit=" files", delay=1.0):
            file.extract(member, staging)


def _merge(source: Path, target: Path, last: Path) -> None:
    """Move what ``source`` holds into ``target``, overwriting nothing, and ``last`` at the end."""
    for entry in sorted(source.iterdir(), key=lambda entry: last.is_relative_to(target / entry.name)):
        place = target / entry.name
        if not place.exists():
            entry.rename(place)
        elif entry.is_dir() and place.is_dir():
            _merge(entry, place, last)


def download(parts: Iterable[Part], root: Path, *, keep: bool = False, pause: float = 1.0) -> list[str]:
    """Fetch and unpack the parts of a dataset that are not there yet.

    Args:
        parts: What to get.
        root: The dataset's folder. An archive that already lies in it is used instead of a download.
        keep: Keep the archives that were downloaded; those found in ``root`` always stay.
        pause: See `fetch`.

    Returns:
        One line for each part, telling what was done.

    Raises:
        UserError: If there is too little room, a part cannot be fetched, or does not match its checksum.
    """
    lines = []
    wanted = []
    for part in parts:
        place = part.present(root)
        if place is None:
            wanted.append(part)
        else:
            lines.append(f"{part.name}: {place} is there already, nothing was touched")
    _check_room(wanted, root)
    for part in wanted:
        archive = root / part.archive
        found = archive.exists()
        if not found:
            fetch(part.urls, archive, part.md5, pause=pause)
        elif (md5 := checksum(archive)) != part.md5:
            raise UserError(
                f"{archive}: has the MD5 {md5} and not {part.md5}; delete it, and it will be downloaded anew"
            )
        unpack(archive, root, part.marker, part.inside)
        if not found and not keep:
            archive.unlink()
        lines.append(f"{part.name}: {root / part.marker} is ready")
    return lines


def _check_room(parts: Sequence[Part], root: Path) -> None:
    """Say how much room the parts take, and stop where there is less."""
    if not parts:
        return
    need = 0
    for part in parts:
        partial = root / f"{part.archive}.part"
        have = part.bytes if (root / part.archive).exists() else 0
        have = partial.stat().st_size if partial.exists() else have
        need += max(0, part.bytes - have) + part.bytes
    place = root.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    names = ", ".join(part.name for part in parts)
    tqdm.write(f"{names}: takes about {_size(need)} in {root}, {_size(free)} are free", file=sys.stderr)
    if need > free:
        raise UserError(
            f"{root}: {_size(need)} are needed and {_size(free)} are free; "
            "make room, choose another folder, or fewer --parts"
        )


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
