"""Downloads from a local server: complete, interrupted, wrong, refused, and without a network."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from segdet.cli.data.download import main
from segdet.data import download as module
from segdet.data.download import DATASETS, Part, download, fetch, unpack
from segdet.util.errors import UserError


class Server(ThreadingHTTPServer):
    """A server of ``files`` that interrupts the first ``cuts`` responses, and supports resuming if ``ranges``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts = 0
        self.ranges = True
        self.ranges_requested: list[str | None] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.lstrip("/"))
        requested = self.headers.get("Range")
        self.server.ranges_requested.append(requested)
        if content is None:
            self.send_error(404)
            return
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and self.server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        rest = content[start:]
        if self.server.cuts:
            self.server.cuts -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


VOC = tar_of(
    {
        "VOCdevkit/VOC2007/JPEGImages/000001.jpg": b"picture" * 1000,
        "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt": b"000001\n",
    }
)
MARKER = "VOC2007/ImageSets/Main/trainval.txt"


def voc_part(server: Server, content: bytes = VOC, checksum: str | None = None) -> Part:
    server.files["voc.tar"] = content
    urls = (server.url("voc.tar"),)
    return Part("trainval", urls, checksum or md5(VOC), len(VOC), MARKER, inside="VOCdevkit")


def test_a_tar_is_downloaded_verified_and_unpacked(server, tmp_path):
    lines = download([voc_part(server)], tmp_path / "voc")
    assert (tmp_path / "voc" / MARKER).read_text() == "000001\n"
    assert (tmp_path / "voc/VOC2007/JPEGImages/000001.jpg").stat().st_size == 7000
    assert lines == [f"trainval: {tmp_path / 'voc' / MARKER} is ready"]
    assert sorted(path.name for path in (tmp_path / "voc").iterdir()) == ["VOC2007"]


def test_a_zip_is_unpacked_and_kept_on_request(server, tmp_path):
    content = zip_of({"val2017/1.jpg": b"1", "val2017/2.jpg": b"22"})
    server.files["val2017.zip"] = content
    part = Part("val", (server.url("val2017.zip"),), md5(content), len(content), "val2017")
    download([part], tmp_path, keep=True)
    assert sorted(path.name for path in (tmp_path / "val2017").iterdir()) == ["1.jpg", "2.jpg"]
    assert (tmp_path / "val2017.zip").read_bytes() == content


def test_an_interrupted_download_is_resumed(server, tmp_path):
    server.cuts = 2
    server.files["file"] = bytes(range(256)) * 64
    fetch([server.url("file")], tmp_path / "file", md5(server.files["file"]), pause=0.0)
    assert (tmp_path / "file").read_bytes() == server.files["file"]
    assert server.ranges_requested == [None, "bytes=8192-", "bytes=12288-"]
    assert not (tmp_path / "file.part").exists()


def test_the_partial_file_of_an_earlier_run_is_resumed(server, tmp_path):
    server.files["file"] = b"0123456789"
    (tmp_path / "file.part").write_bytes(b"0123")
    fetch([server.url("file")], tmp_path / "file", md5(b"0123456789"))
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    assert server.ranges_requested == ["bytes=4-"]


def test_a_complete_partial_file_is_not_downloaded_again(server, tmp_path):
    server.files["file"] = b"0123456789"
    (tmp_path / "file.part").write_bytes(b"0123456789")
    fetch([server.url("file")], tmp_path / "file", md5(b"0123456789"), pause=0.0)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_partial_file_that_is_too_long_is_restarted(server, tmp_path):
    server.files["file"] = b"0123456789"
    (tmp_path / "file.part").write_bytes(b"x" * 30)
    fetch([server.url("file")], tmp_path / "file", md5(b"0123456789"), pause=0.0)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_server_without_ranges_restarts(server, tmp_path, capsys):
    server.ranges = False
    server.cuts = 1
    server.files["file"] = b"0123456789"
    fetch([server.url("file")], tmp_path / "file", md5(b"0123456789"), pause=0.0)
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    assert "the server cannot resume the download; it is restarted" in capsys.readouterr().err


def test_a_file_with_a_wrong_checksum_is_deleted(server, tmp_path):
    part = voc_part(server, tar_of({"other": b"file"}))
    with pytest.raises(UserError, match=f"has the MD5 .* instead of {md5(VOC)} and was deleted; run"):
        download([part], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_next_address_is_tried(server, tmp_path):
    server.files["file"] = b"content"
    fetch([server.url("gone"), server.url("file")], tmp_path / "file", md5(b"content"), pause=0.0)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_repeated_interruptions_report_the_received_bytes(server, tmp_path):
    server.cuts = 99
    server.files["file"] = b"0123456789" * 100
    message = r"interrupted at .* \(875 bytes were received in file.part\); download http.*/file manually to"
    with pytest.raises(UserError, match=message):
        fetch([server.url("file")], tmp_path / "file", None, attempts=3, pause=0.0)
    server.cuts = 0
    fetch([server.url("file")], tmp_path / "file", md5(server.files["file"]))


def test_without_a_network_one_line_names_the_file_to_download(server, tmp_path, monkeypatch, capsys):
    server.files.clear()
    url = server.url("VOCtest.tar")
    part = Part("test", (url,), "0" * 32, 1, "VOC2007/ImageSets/Main/test.txt")
    monkeypatch.setitem(DATASETS, "voc2007", (part,))
    assert main(["voc2007", str(tmp_path)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be downloaded" in last
    assert f"download {url} manually to {tmp_path / 'VOCtest.tar'} and run the same command again" in last


def test_an_unreachable_host_is_reported_in_one_line(tmp_path):
    closed = Server()
    url = closed.url("file")
    closed.server_close()
    with pytest.raises(UserError, match=r"cannot be downloaded .*refused"):
        fetch([url], tmp_path / "file", None, pause=0.0)


@pytest.mark.parametrize("place", ["VOC2007", "VOCdevkit/VOC2007"])
def test_an_existing_folder_is_not_changed(server, tmp_path, monkeypatch, capsys, place):
    marker = tmp_path / place / "ImageSets/Main/trainval.txt"
    marker.parent.mkdir(parents=True)
    marker.write_text("mine\n")
    assert main(["voc2007", str(tmp_path), "--parts", "trainval"]) == 0
    assert "exists already; nothing was changed" in capsys.readouterr().out
    assert marker.read_text() == "mine\n"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_a_second_part_adds_to_a_folder_and_overwrites_nothing(server, tmp_path):
    mine = tmp_path / "VOC2007/JPEGImages/000001.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    download([voc_part(server)], tmp_path)
    assert mine.read_bytes() == b"mine"
    assert (tmp_path / MARKER).exists()


def test_an_existing_archive_is_used_and_kept(server, tmp_path):
    (tmp_path / "voc.tar").write_bytes(VOC)
    download([voc_part(server)], tmp_path)
    assert server.ranges_requested == []
    assert (tmp_path / MARKER).exists()
    assert (tmp_path / "voc.tar").exists()


def test_an_existing_archive_with_a_wrong_checksum_is_refused(server, tmp_path):
    (tmp_path / "voc.tar").write_bytes(b"half")
    with pytest.raises(UserError, match=r"voc\.tar: has the MD5 .* delete it to download it again"):
        download([voc_part(server)], tmp_path)
    assert (tmp_path / "voc.tar").read_bytes() == b"half"


def test_disk_space_is_checked_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"are needed and 100 bytes are free; free some space"):
        download([voc_part(server)], tmp_path)
    assert server.ranges_requested == []


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil"])
def test_a_path_outside_the_folder_is_refused(tmp_path, pack, name):
    archive = tmp_path / "archive"
    archive.write_bytes(pack({"fine": b"1", name: b"2"}))
    with pytest.raises(UserError, match="unsafe path"):
        unpack(archive, tmp_path / "in/root")
    assert not list(tmp_path.rglob("evil"))
    assert list((tmp_path / "in/root").iterdir()) == []


def test_a_link_in_an_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "archive", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match="unsafe path"):
        unpack(tmp_path / "archive", tmp_path / "root")


def test_a_corrupt_archive_is_reported_in_one_line(tmp_path):
    (tmp_path / "archive").write_bytes(VOC[:5000])
    with pytest.raises(UserError, match="archive: corrupt or not an archive"):
        unpack(tmp_path / "archive", tmp_path / "root")


def test_cityscapes_prints_instructions(tmp_path, capsys):
    assert main(["cityscapes", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "leftImg8bit_trainvaltest.zip" in text
    assert "gtFine_trainvaltest.zip" in text
    assert str(tmp_path) in text


def test_an_unknown_part_or_dataset_is_reported_in_one_line(tmp_path, capsys):
    assert main(["voc2012", str(tmp_path), "--parts", "test"]) == 2
    assert "--parts test: not a part of voc2012; choose from trainval" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["voc2013", str(tmp_path)])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", DATASETS)
def test_the_list_of_datasets_is_consistent(name):
    for part in DATASETS[name]:
        assert len(part.md5) == 32
        assert {Path(url).name for url in part.urls} == {part.archive}
        assert part.bytes > 1e8
