"""Detect in images, folders, globs and videos, and write what is found.

A run that was stopped goes on where it was. An image that cannot be read is named and left out, and
the exit status is 1.
"""

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ..deploy import Predictor
from ..deploy.drawings import write_crops, write_images
from ..deploy.formats import Ids, write_coco, write_csv, write_yolo
from ..deploy.inputs import Video, find_inputs, frames_of
from ..deploy.journal import JOURNAL, Journal, stamp_of
from ..deploy.tiles import detect_in_tiles
from ..engine import torchrun
from ..errors import UserError
from .arguments import positive_number

# And what each writes in the folder of the output.
FORMATS = {
    "coco": ["predictions.json", "annotations.json"],
    "yolo": ["labels", "classes.txt"],
    "csv": ["predictions.csv"],
    "images": ["images", "videos"],
    "crops": ["crops"],
}
_DRAWN_SCORE = 0.5
_SCORE_KEY = "MODEL.RETINANET.SCORE_THRESH_TEST"
_TILE = 640

# What processes that torchrun has started let each other know of.
_DONE, _UNREADABLE = "what is done", "what cannot be read"

_Place = tuple[str, int | None]  # path, and number of a video's frame


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint, or a file of export")
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="image, folder, glob or video")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="gets all that is written"
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["coco"],
        help="coco: predictions.json (default); yolo: labels/; csv: predictions.csv; images: "
        "images/ and videos/ with boxes; crops: crops/",
    )
    parser.add_argument(
        "--config-file", dest="config", default="", help="of weights that do not carry theirs"
    )
    scores = parser.add_mutually_exclusive_group()
    scores.add_argument(
        "--score-thresh",
        type=float,
        help="lowest score (default: the config's; for images and crops 0.5)",
    )
    scores.add_argument(
        "--score-thresholds",
        default="",
        metavar="FILE",
        help="lowest score of each class: report.json of the command report",
    )
    parser.add_argument("--truth", default="", metavar="FILE", help="COCO's ids are those of FILE")
    parser.add_argument(
        "--tiles",
        type=positive_number,
        nargs="?",
        const=_TILE,
        metavar="PIXELS",
        help=f"cut images into overlapping tiles of this size (default size: {_TILE})",
    )
    parser.add_argument("--device", default="", help="of PyTorch, such as cpu or cuda:1")


def run(args: argparse.Namespace) -> None:
    torchrun.use_own_gpu()
    images, videos = find_inputs(args.inputs)
    predictor = _predictor(args)
    ids = Ids(args.truth, predictor.class_names)
    paths = [*images, *(video.path for video in videos)]
    ids.check(paths)
    number = torchrun.rank()
    if number > 0:
        done = torchrun.receive(_DONE)
        with Journal(args.output, _made_with(args), paths, number) as journal:
            unreadable = _detect(predictor, images, videos, journal, done, args.tiles)
        torchrun.send(_UNREADABLE, unreadable)
        return
    _check_output(args.output, args.format, paths)
    with Journal(args.output, _made_with(args), paths) as journal, _goes_on():
        done = journal.done()
        torchrun.send(_DONE, done)
        unreadable = _detect(predictor, images, videos, journal, done, args.tiles)
        for other in range(1, torchrun.num_processes()):
            for warning in torchrun.receive(_UNREADABLE, other):
                print(f"WARNING: {warning}", file=sys.stderr)
                unreadable.append(warning)
        journal.take_in_parts()
    records = journal.records
    _write(args, records, predictor.class_names, videos, ids)
    count = sum(len(record["detections"]) for record in records)
    print(f"{count:,} detections in {len(records):,} images: {args.output}")
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(images) + len(videos)} files could not be read and are "
            f"left out, the first: {unreadable[0]}"
        )


@contextlib.contextmanager
def _goes_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("what is done is kept: the same command goes on", file=sys.stderr)
        raise


def _predictor(args: argparse.Namespace) -> Predictor:
    opts = [] if args.score_thresh is None else [_SCORE_KEY, args.score_thresh]
    given = [args.config, args.weights] if args.config else [args.weights]
    return Predictor(*given, device=args.device, opts=opts, score_thresholds=args.score_thresholds)


def _made_with(args: argparse.Namespace) -> dict[str, Any]:
    """What the detections depend on."""
    files = {
        "weights": args.weights,
        "--config-file": args.config,
        "--score-thresholds": args.score_thresholds,
    }
    made_with = {"--score-thresh": args.score_thresh, "--tiles": args.tiles}
    for name, path in files.items():
        if path:
            made_with[name] = os.path.abspath(path)
            made_with[f"size or time of {name}"] = stamp_of(path)
    return {name: value for name, value in made_with.items() if value is not None}


def _check_output(folder: str, formats: Sequence[str], paths: Sequence[str]) -> None:
    """
    Raises:
        UserError: ``folder`` has what others wrote where this would, or the inputs are there.
    """
    names = [name for known in formats for name in FORMATS[known]]
    is_new = not os.path.exists(os.path.join(folder, JOURNAL))
    for place in (os.path.join(folder, name) for name in names):
        inputs = os.path.abspath(place) + os.sep
        if (is_new and os.path.exists(place)) or any(p.startswith(inputs) for p in paths):
            raise UserError(
                f"{place} would be written to, and has what predict did not write: give another "
                "--output"
            )


def _detect(
    predictor: Predictor,
    images: list[str],
    videos: list[Video],
    journal: Journal,
    done: set[_Place],
    tiles: int | None,
) -> list[str]:
    """Note what is found in this process's share of all that is not done yet.

    Returns:
        what is said of unreadable files.
    """
    unreadable: list[str] = []
    number, size = torchrun.rank(), torchrun.num_processes()
    left = [path for path in images if (path, None) not in done]
    left = left[len(left) * number // size : len(left) * (number + 1) // size]
    total = sum(video.num_frames for video in videos) - sum(frame is not None for _, frame in done)
    total = len(left) + max(0, total) // size
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=total, unit=" images", file=sys.stderr, mininterval=interval, disable=number > 0
    ) as bar:
        for work in (_images(left), *(_frames(video, done) for video in videos)):
            for (path, frame), found in _found(predictor, work, tiles):
                if isinstance(found, UserError):
                    unreadable.append(str(found))
                    if number == 0:
                        bar.write(f"WARNING: {found}", file=sys.stderr)
                else:
                    journal.add(path, frame, found)
                bar.update()
    return unreadable


def _images(paths: list[str]) -> Iterator[tuple[_Place, str]]:
    return (((path, None), path) for path in paths)


def _frames(video: Video, done: set[_Place]) -> Iterator[tuple[_Place, np.ndarray]]:
    """Frames that are not done, and of several processes every so many."""
    number, size = torchrun.rank(), torchrun.num_processes()
    start = next(i for i in itertools.count() if (video.path, i) not in done)
    frames = enumerate(frames_of(video, start), start)
    return (
        ((video.path, i), frame)
        for i, frame in frames
        if i % size == number and (video.path, i) not in done
    )


def _found(
    predictor: Predictor, work: Iterable[tuple[_Place, Any]], tiles: int | None
) -> Iterator[tuple[_Place, Instances | UserError]]:
    places: list[_Place] = []  # of images that are read ahead

    def sources() -> Iterator[Any]:
        for place, source in work:
            places.append(place)
            yield source

    found = _in_tiles(predictor, sources(), tiles) if tiles else predictor.stream(sources())
    for result in found:
        yield places.pop(0), result


def _in_tiles(
    predictor: Predictor, sources: Iterable[Any], side: int
) -> Iterator[Instances | UserError]:
    for source in sources:
        try:
            yield detect_in_tiles(predictor, source, side)
        except UserError as error:
            yield error


def _write(
    args: argparse.Namespace,
    records: list[dict[str, Any]],
    class_names: list[str],
    videos: list[Video],
    ids: Ids,
) -> None:
    drawn_score = _DRAWN_SCORE if args.score_thresh is None else args.score_thresh
    if args.score_thresholds:
        drawn_score = 0.0  # what they left out is not here
    if "coco" in args.format:
        write_coco(args.output, records, class_names, ids)
    if "yolo" in args.format:
        write_yolo(args.output, records, class_names)
    if "csv" in args.format:
        write_csv(args.output, records, class_names)
    if "images" in args.format:
        write_images(args.output, records, class_names, videos, drawn_score)
    if "crops" in args.format:
        write_crops(args.output, records, class_names, videos, drawn_score)
