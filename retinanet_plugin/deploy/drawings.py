"""Detections drawn on images and videos, or cut out of them; written by supervision."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images.read_image import read_image
from ..errors import UserError
from .formats import Record, file_names
from .pictures import write_jpeg
from .supervision_detections import name_of
from .videos import Video, frames_of, mean_rate, open_video

if TYPE_CHECKING:
    import supervision

# Okabe and Ito's colours, which colour-blind people can tell apart; white where all are taken.
_COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]


def write_images(
    folder: str,
    records: Sequence[Record],
    class_names: Sequence[str],
    videos: Sequence[Video],
    score_thresh: float,
) -> None:
    """``images/NAME.jpg`` with boxes, and ``videos/NAME.mp4`` with all frames of a video.

    Files that are there are left as they are: detections of an image never change.

    Raises:
        UserError: supervision is not installed, or a file cannot be written.
    """
    for record in records:
        path = os.path.join(folder, "images", f"{record['name']}.jpg")
        if record["frame"] is None and not os.path.exists(path):
            write_jpeg(path, draw(_read(record), record, class_names, score_thresh))
    of_video = _by_video(records)
    names = file_names(video.path for video in videos)
    for video in videos:
        path = os.path.join(folder, "videos", f"{names[video.path]}.mp4")
        if not os.path.exists(path):
            _write_video(path, video, of_video[video.path], class_names, score_thresh)


def write_crops(
    folder: str,
    records: Sequence[Record],
    class_names: Sequence[str],
    videos: Sequence[Video],
    score_thresh: float,
) -> None:
    """``crops/CLASS/NAME_NUMBER.jpg``: each object cut out, numbered by its rank in its image.

    Raises:
        UserError: see :func:`write_images`.
    """
    supervision = _supervision()
    frames = ((r, _read(r)) for r in records if r["frame"] is None)
    of_video = _by_video(records)
    in_videos = (pair for video in videos for pair in zip(of_video[video.path], frames_of(video)))
    for source in (frames, in_videos):
        for record, image in source:
            found = _detections(record, class_names, score_thresh)
            for rank, (box, name) in enumerate(zip(found.xyxy, found.data["class_name"])):
                crop = supervision.crop_image(image, box)
                path = os.path.join(
                    folder, "crops", _file_name(name), f"{record['name']}_{rank:03d}.jpg"
                )
                if crop.size and not os.path.exists(path):
                    write_jpeg(path, crop)


def draw(
    image: np.ndarray, record: Record, class_names: Sequence[str], score_thresh: float
) -> np.ndarray:
    """``image`` (H, W, 3), BGR, with boxes, class names and scores of at least ``score_thresh``."""
    supervision = _supervision()
    found = _detections(record, class_names, score_thresh)
    palette = supervision.ColorPalette.from_hex(_COLOURS)
    size = image.shape[1], image.shape[0]
    thickness = supervision.calculate_optimal_line_thickness(size)
    scores = np.asarray(found.confidence)
    labels = [f"{n} {s:.2f}" for n, s in zip(found.data["class_name"], scores)]
    drawn = supervision.BoxAnnotator(palette, thickness).annotate(image.copy(), found)
    annotator = supervision.LabelAnnotator(
        palette,
        text_color=supervision.Color.BLACK,
        text_scale=max(0.35, supervision.calculate_optimal_text_scale(size)),
        text_padding=3,
        smart_position=True,
    )
    return np.asarray(annotator.annotate(drawn, found, labels))


def _write_video(
    path: str,
    video: Video,
    records: Sequence[Record],
    class_names: Sequence[str],
    score_thresh: float,
) -> None:
    supervision = _supervision()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unfinished = f"{path}.unfinished.mp4"
    info = supervision.VideoInfo(video.width, video.height, mean_rate(video))
    count = 0
    try:
        with supervision.VideoSink(unfinished, info) as sink:
            for record, frame in zip(records, frames_of(video)):
                sink.write_frame(draw(frame, record, class_names, score_thresh))
                count += 1
        if not _is_whole(unfinished, count):
            raise RuntimeError("no room is left")
        os.replace(unfinished, path)
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be written ({error}): make room, or correct the permissions"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)


def _is_whole(path: str, num_frames: int) -> bool:
    """Whether a video has all frames; OpenCV's writer does not say that the disk was full."""
    try:
        return open_video(path).num_frames >= num_frames
    except UserError:
        return False


def _by_video(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each video's frames, in their order."""
    frames = [record for record in records if record["frame"] is not None]
    frames.sort(key=lambda record: (record["path"], record["frame"]))
    return {path: list(group) for path, group in groupby(frames, lambda r: r["path"])}


def _read(record: Record) -> np.ndarray:
    return np.ascontiguousarray(read_image({"file_name": record["path"]}, "BGR"))


def _detections(
    record: Record, class_names: Sequence[str], score_thresh: float
) -> "supervision.Detections":
    kept = [d for d in record["detections"] if d["score"] >= score_thresh]
    boxes = np.array([d["bbox"] for d in kept], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = np.array([d["category_id"] for d in kept], dtype=int)
    names = np.array([name_of(i, class_names) for i in classes], dtype=str)
    return _supervision().Detections(
        boxes, confidence=np.array([d["score"] for d in kept], dtype=np.float32),
        class_id=classes, data={"class_name": names},
    )  # fmt: skip


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise UserError("images and crops need a package: pip install supervision") from error
    return supervision


def _file_name(class_name: str) -> str:
    return "".join(c if c.isalnum() or c in " -_." else "_" for c in class_name).strip(". ") or "_"
