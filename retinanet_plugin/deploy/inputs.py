"""What the command ``predict`` is given: images, folders, globs and videos, one item an image."""

import glob
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from .pictures import images_in

VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}


class Video(NamedTuple):
    """What its file says of a video."""

    path: str
    width: int
    height: int
    rate: float  # frames per second
    num_frames: int  # as its header has it: some files have a few less


def find_inputs(given: Sequence[str]) -> tuple[list[str], list[Video]]:
    """The images and videos that paths, folders and globs name, each once.

    Raises:
        UserError: one names nothing, or a camera, or a video cannot be opened.
    """
    paths: list[str] = []
    for name in given:
        if os.path.isdir(name):
            paths += images_in(name)
        elif os.path.isfile(name):
            paths.append(name)
        else:
            found = sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
            if not found and name.isdecimal():
                raise UserError(
                    f"{name} is the number of a camera, and predict reads files: give the frames "
                    f"of cv2.VideoCapture({name}) to Predictor.stream, as docs/using.md shows"
                )
            if not found:
                raise UserError(f"there is no file or folder {name}: correct the path or the glob")
            paths += found
    paths = list(dict.fromkeys(map(os.path.abspath, paths)))
    videos = [path for path in paths if os.path.splitext(path)[1].lower() in VIDEOS]
    return [path for path in paths if path not in set(videos)], [_video(path) for path in videos]


def frames_of(video: Video, start: int = 0) -> Iterator[np.ndarray]:
    """The frames (H, W, 3), BGR, from the number ``start`` on."""
    capture = _capture(video.path)
    try:
        for _ in range(start):  # seeking is not exact in many files
            capture.grab()
        while True:
            is_there, frame = capture.read()
            if not is_there:
                return
            yield frame
    finally:
        capture.release()


def _video(path: str) -> Video:
    capture = _capture(path)
    width, height, rate, count = (capture.get(i) for i in (3, 4, 5, 7))  # cv2.CAP_PROP_...
    has_frames = capture.grab()
    capture.release()
    if not has_frames:
        raise UserError(f"the video {path} cannot be read: convert it, or leave it out")
    return Video(path, int(width), int(height), rate or 25.0, max(0, int(count)))


def _capture(path: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError("videos need a package: pip install opencv-python-headless") from error
    return cv2.VideoCapture(path)
