"""Read the frames of videos, one at a time, and write videos, with OpenCV."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import IterableDataset

from segdet.data.proposal_source import ProposalSource
from segdet.data.sample import Frame, Sample, Source, Target
from segdet.data.transforms import Recipe
from segdet.util.errors import BadSample, UserError
from segdet.util.nouns import counted

SUFFIXES = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
"""Suffixes of video files in a folder, in lower case."""

_CODECS = ("avc1", "vp09", "mp4v")
"""Codecs of .mp4 files, the best first: H.264 and VP9, which browsers play and some builds of OpenCV cannot write, and
MPEG-4, which all builds write and browsers do not play."""
_DEFAULT_RATE = 25.0


class Video:
    """A video file. Only one frame at a time is in memory.

    Args:
        path: The file.

    Attributes:
        rate: Frames per second.
        expected_frames: The number of frames stated in the header, 0 if it states none. The file may have fewer.
        frames_read: The number of frames that `frames` has read so far.

    Raises:
        BadSample: If the file cannot be opened as a video or has no frame.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        capture = self._open()
        self.rate = float(capture.get(cv2.CAP_PROP_FPS)) or _DEFAULT_RATE
        # For single images, OpenCV returns a negative number.
        self.expected_frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.frames_read = 0
        readable = capture.grab()
        capture.release()
        if not readable:
            raise BadSample(
                self.path, "no frame of the video can be read", "export it again, such as to .mp4"
            )

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Yield every ``every``-th frame, from the first one to the last one that can be decoded."""
        capture = self._open()
        self.frames_read = 0
        try:
            while capture.grab():
                index, self.frames_read = self.frames_read, self.frames_read + 1
                if index % every == 0:
                    seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    decoded, pixels = capture.retrieve()
                    if not decoded:
                        return
                    yield Frame(index, seconds, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        finally:
            capture.release()

    def _open(self) -> cv2.VideoCapture:
        _silence_opencv()
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            fault = "cannot be opened as a video: the file is corrupt or of a format that cannot be read"
            raise BadSample(self.path, fault, "export it again, such as to .mp4")
        return capture


class VideoWriter:
    """Write an ``.mp4`` file frame by frame. Close it to complete the file.

    The codec is H.264 if this build of OpenCV can write it, else VP9, else MPEG-4, which browsers do not play.

    The first frame determines the size. The last row or column of an odd size is dropped.

    Args:
        path: The file.
        rate: Frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, picture: np.ndarray) -> None:
        """Append a frame, uint8 ``[H, W, 3]`` RGB.

        Raises:
            UserError: If the file cannot be written.
        """
        if self._writer is None:
            _silence_opencv()
            self._writer = self._open((picture.shape[1], picture.shape[0]))
        self._writer.write(np.ascontiguousarray(picture[:, :, ::-1]))

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        for codec in _CODECS:
            number = cv2.VideoWriter.fourcc(*codec)
            writer = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, number, self.rate, size)
            if writer.isOpened():
                return writer
        raise UserError(f"{self.path}: the video cannot be written; give another --run_dir")

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.release()


def _silence_opencv() -> None:
    """Suppress the messages of OpenCV and FFmpeg about files that cannot be read; callers report them."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class VideoFrames(IterableDataset[Sample]):
    """The frames of several videos, one video after the other, as samples without annotations.

    Args:
        videos: The videos.
        recipe: The transforms. Only those for evaluation are used.
        every: Use every ``every``-th frame of each video.
        first_id: The image id of the first frame.
        proposals: Source of region proposals.
        max_proposals: Maximum number of proposals per frame.
        notes: Dictionary to which a message is added, as a key, for each video with fewer frames than its header
            states.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        recipe: Recipe,
        every: int = 1,
        first_id: int = 1,
        proposals: ProposalSource | None = None,
        max_proposals: int = 2000,
        notes: dict[str, str | None] | None = None,
    ) -> None:
        self.videos = list(videos)
        self.pipeline = recipe.evaluation()
        self.every = every
        self.first_id = first_id
        self.proposals = proposals
        self.max_proposals = max_proposals
        self.notes = {} if notes is None else notes

    def __iter__(self) -> Iterator[Sample]:
        image_id = self.first_id
        for video in self.videos:
            for frame in video.frames(self.every):
                yield self._sample(video, frame, image_id)
                image_id += 1
            self._note_missing_frames(video)

    def _sample(self, video: Video, frame: Frame, image_id: int) -> Sample:
        boxes = {}
        if self.proposals is not None:
            boxes = {"proposals": self.proposals.propose(frame.pixels)[: self.max_proposals]}
        image, sets, _ = self.pipeline(frame.pixels, boxes)
        target = Target()
        if "proposals" in sets:
            target["proposals"] = torch.from_numpy(sets["proposals"][0])
        size = (frame.pixels.shape[0], frame.pixels.shape[1])
        source = Source(video.path, image_id, size, frame=frame)
        return Sample(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), target, source)

    def _note_missing_frames(self, video: Video) -> None:
        read, expected = video.frames_read, video.expected_frames
        if read < expected - max(
            2, expected // 100
        ):  # in some formats, the number in the header is an estimate
            fault = f"only the first {read} of {counted(expected, 'frame')} can be read"
            self.notes[f"{video.path}: {fault}; the file is truncated or corrupt"] = None

    def rate(self, path: Path) -> float:
        """Return the number of samples per second of a video."""
        return next(video.rate for video in self.videos if video.path == path) / self.every

    def expected_samples(self) -> int | None:
        """Return the number of samples that the headers of the videos imply, or None if a header states no number."""
        counts = [video.expected_frames for video in self.videos]
        return sum(-(-count // self.every) for count in counts) if all(counts) else None
