"""Frames of videos and of cameras, one after the other, by OpenCV."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from .pictures import write_jpeg

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
# Whose files have the number of their frames; in others it is made up of a length, such as that of
# the sound, and a rate.
_WITH_COUNT = (".avi", ".m4v", ".mov", ".mp4")
_CUT_OFF = 0.9  # a video with less than this share of its frames lacks its end

# Of OpenCV, which is imported where it is needed: CAP_PROP_POS_MSEC, _FPS, _FRAME_COUNT.
_MILLISECONDS, _RATE, _COUNT = 0, 5, 7


class Video(NamedTuple):
    """What its file says of a video."""

    path: str
    width: int
    height: int
    rate: float  # frames per second
    num_frames: int  # about; 0: not known


def open_video(path: str) -> Video:
    """
    Raises:
        UserError: it has no frame that can be read.
    """
    capture = _capture(path)
    is_there, frame = capture.read()
    rate, count = capture.get(_RATE), capture.get(_COUNT)
    capture.release()
    if not is_there:
        raise UserError(f"the video {path} cannot be read: convert it, or leave it out")
    height, width = frame.shape[:2]
    return Video(path, width, height, rate or 25.0, max(0, int(count)))


def frames_of(video: Video, start: int = 0) -> Iterator[np.ndarray]:
    """The frames (H, W, 3), BGR, from the number ``start`` on.

    Raises:
        UserError: after the last frame, if the file was cut off.
    """
    capture, count = _capture(video.path), 0
    try:
        while capture.grab():
            if count >= start:  # seeking is not exact in many files
                yield capture.retrieve()[1]
            count += 1
    finally:
        capture.release()
    if video.path.lower().endswith(_WITH_COUNT) and count < _CUT_OFF * video.num_frames:
        raise UserError(
            f"the video {video.path} ends after {count} of {video.num_frames} frames: its file was "
            "cut off or is damaged"
        )


def mean_rate(video: Video) -> float:
    """Frames per second by the times of the frames, which are not even in every video.

    In hundredths: MPEG-4 does not take every number.
    """
    capture, count, last = _capture(video.path), 0, 0.0
    while capture.grab():
        count, last = count + 1, capture.get(_MILLISECONDS) / 1000
    capture.release()
    return round((count - 1) / last, 2) if last > 0 else video.rate


class Camera:
    """A camera whose frames are kept as files, because nobody can ask for them again."""

    def __init__(self, number: int, folder: str) -> None:
        """
        Args:
            number: of OpenCV: 0 is the first one.
            folder: gets the frames; those of an earlier run stay.

        Raises:
            UserError: there is no such camera.
        """
        self.number, self.folder = number, folder
        self._capture = _capture(number)
        if not self._capture.grab():
            raise UserError(
                f"the camera {number} gives no picture: connect it, correct the number, or give "
                "a file"
            )

    def kept(self) -> list[str]:
        """The paths of the frames that there are."""
        names = sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []
        return [os.path.join(self.folder, name) for name in names if name.endswith(".jpg")]

    def frames(self) -> Iterator[str]:
        """The paths of new frames, as they come, until the camera ends or Ctrl-C is pressed.

        What the camera shows while nobody asks for the next frame is left out.
        """
        try:
            with _ctrl_c_noted() as was_pressed:
                for i in itertools.count(len(self.kept())):
                    is_there, frame = self._capture.read()
                    if not is_there or was_pressed.is_set():
                        break
                    path = os.path.join(self.folder, f"camera-{self.number}_{i:06d}.jpg")
                    write_jpeg(path, frame)
                    yield path
        finally:
            self._capture.release()


@contextlib.contextmanager
def _ctrl_c_noted() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event; another one interrupts as ever."""
    was_pressed = threading.Event()

    def note(*_: object) -> None:
        was_pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield was_pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _capture(source: str | int) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError("videos need a package: pip install opencv-python-headless") from error
    return cv2.VideoCapture(source)
