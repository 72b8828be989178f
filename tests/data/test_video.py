"""Frames of videos: complete, truncated and unreadable files."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from segdet.data import Images, Plain, video
from segdet.data.video import Video, VideoFrames, VideoWriter
from segdet.util.errors import BadSample, UserError


def write(path: Path, count: int = 20, size: tuple[int, int] = (34, 48), rate: float = 10.0) -> Path:
    """Write frames whose red channel increases by 10 per frame."""
    writer = VideoWriter(path, rate)
    for index in range(count):
        picture = np.zeros((*size, 3), np.uint8)
        picture[..., 0] = 10 * index % 250
        writer.write(picture)
    writer.close()
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


class TestVideo:
    def test_frames_with_their_time(self, tmp_path: Path) -> None:
        clip = Video(write(tmp_path / "clip.mp4"))
        assert (clip.rate, clip.expected_frames) == (10.0, 20)
        frames = list(clip.frames())
        assert [frame.index for frame in frames] == list(range(20))
        assert [frame.seconds for frame in frames] == pytest.approx(np.arange(20) / 10)
        assert frames[0].pixels.shape == (34, 48, 3)
        red = [frame.pixels[..., 0].mean() for frame in frames]
        assert red == pytest.approx(10.0 * np.arange(20), abs=6)
        assert max(frame.pixels[..., 2].mean() for frame in frames) < 12

    def test_every_third_frame(self, tmp_path: Path) -> None:
        clip = Video(write(tmp_path / "clip.mp4"))
        frames = list(clip.frames(every=3))
        assert [frame.index for frame in frames] == [0, 3, 6, 9, 12, 15, 18]
        assert frames[2].pixels[..., 0].mean() == pytest.approx(60, abs=6)
        assert clip.frames_read == 20

    @pytest.mark.parametrize("content", [b"", b"hello\n" * 100])
    def test_a_file_that_is_no_video(
        self, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "clip.mp4"
        path.write_bytes(content)
        with pytest.raises(BadSample, match="cannot be opened as a video"):
            Video(path)
        assert capfd.readouterr() == ("", "")  # no message of FFmpeg

    def test_the_codec_is_one_that_browsers_play_or_the_last_resort(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        codecs = {}
        for name, known in (("best", video._CODECS), ("last", video._CODECS[-1:])):
            monkeypatch.setattr(video, "_CODECS", known)
            capture = cv2.VideoCapture(str(write(tmp_path / f"{name}.mp4")))
            codecs[name] = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode().lower()
            assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 20
        assert codecs["best"] in ("avc1", "h264", "vp09", "vp90")
        assert codecs["last"] in ("mp4v", "fmp4")
        assert capfd.readouterr().err == ""

    def test_a_video_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"missing.clip\.mp4: the video cannot be written"):
            write(tmp_path / "missing" / "clip.mp4")


class TestVideoFrames:
    def test_samples_of_several_videos(self, tmp_path: Path) -> None:
        videos = [Video(write(tmp_path / name, count)) for name, count in (("a.mp4", 5), ("b.mp4", 4))]
        frames = VideoFrames(videos, Plain((16, 24)), every=2, first_id=7)
        samples = list(frames)
        places = [
            (s.source.path.name, s.source.image_id, s.source.frame.index) for s in samples if s.source.frame
        ]
        assert places == [
            ("a.mp4", 7, 0),
            ("a.mp4", 8, 2),
            ("a.mp4", 9, 4),
            ("b.mp4", 10, 0),
            ("b.mp4", 11, 2),
        ]
        assert samples[0].image.shape == (3, 16, 24)
        assert samples[0].source.original_size == (34, 48)
        assert frames.expected_samples() == 5
        assert frames.rate(tmp_path / "a.mp4") == 5.0
        assert not frames.notes

    def test_a_truncated_video_is_noted_with_the_number_of_its_frames(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(video, "_CODECS", ("mp4v",))  # AVI has no VP9
        path = cut(write(tmp_path / "clip.avi", 60), 0.6)
        frames = VideoFrames([Video(path)], Plain(), every=7)
        list(frames)
        (note,) = frames.notes
        read = frames.videos[0].frames_read
        assert 10 < read < 50
        assert (
            note
            == f"{path}: only the first {read} of 60 frames can be read; the file is truncated or corrupt"
        )

    def test_frames_have_the_size_of_the_training_images(self, tmp_path: Path) -> None:
        data = Images(str(write(tmp_path / "clip.mp4", 3)), class_names=["cat"])
        model = SimpleNamespace(trained_image_size=(16, 24))
        data.trainer = SimpleNamespace(world_size=1, lightning_module=model)  # type: ignore[assignment]
        (loader,) = data.predict_dataloader()
        assert next(iter(loader)).images.shape[2:] == (16, 24)

    def test_several_processes_do_not_share_a_video(self, tmp_path: Path) -> None:
        data = Images(str(write(tmp_path / "clip.mp4", 3)), class_names=["cat"])
        data.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
        with pytest.raises(
            UserError, match=r"clip\.mp4: a video is read by one process; give --trainer.devices 1"
        ):
            data.predict_dataloader()
