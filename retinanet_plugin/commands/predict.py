"""Detect in images, folders, globs, videos and the frames of a camera, and write what is found.

A run that was stopped goes on where it was. A file that cannot be read is named and left out, and
the exit status is 1. Frames of a camera are kept in FOLDER, until Ctrl-C.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..deploy import Predictor
from ..deploy.drawings import write_crops, write_images
from ..deploy.formats import Ids, name_records, write_coco, write_csv, write_yolo
from ..deploy.inputs import Inputs, find_inputs
from ..deploy.journal import JOURNAL, Journal, stamp_of
from ..deploy.videos import Camera, Video
from ..engine import torchrun
from ..errors import UserError
from .arguments import positive_number, share
from .detecting import detect

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint, or a file of export")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="image, folder, glob, video, or number of a camera",
    )
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
        type=share,
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
    inputs = find_inputs(args.inputs)
    cameras = _cameras(args, inputs)
    predictor = _predictor(args)
    ids = Ids(args.truth, predictor.class_names)
    ids.check(inputs.paths)
    number = torchrun.rank()
    if number > 0:
        done = torchrun.receive(_DONE)
        with Journal(args.output, _made_with(args), inputs.paths, number) as journal:
            unreadable = detect(predictor, inputs, cameras, journal, done, args.tiles)
        torchrun.send(_UNREADABLE, unreadable)
        return
    _check_output(args, inputs.paths, cameras)
    with Journal(args.output, _made_with(args), inputs.paths) as journal, _goes_on():
        done = journal.done()
        torchrun.send(_DONE, done)
        unreadable = detect(predictor, inputs, cameras, journal, done, args.tiles)
        for other in range(1, torchrun.num_processes()):
            for warning in torchrun.receive(_UNREADABLE, other):
                print(f"WARNING: {warning}", file=sys.stderr)
                unreadable.append(warning)
        journal.take_in_parts()
        records = journal.records
        name_records(records)
        # While no other process can hold the journal, which would write the same files.
        _write(args, records, predictor.class_names, inputs.videos, ids)
    count = sum(len(record["detections"]) for record in records)
    print(f"{count:,} detections in {len(records):,} images, written to {args.output}")
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(inputs.paths)} files could not be read, or not to the end, "
            f"the first: {unreadable[0]}"
        )


def _cameras(args: argparse.Namespace, inputs: Inputs) -> list[Camera]:
    """Those that are asked for; the frames that they have given before become inputs.

    Raises:
        UserError: one is not there, or other options do not go with a camera.
    """
    if inputs.cameras and args.truth:
        raise UserError(
            "--truth has the ids of files, and a camera's frames have none: leave it out"
        )
    if len(inputs.cameras) > 1:
        raise UserError(
            f"{len(inputs.cameras)} cameras are given, and each is looked at until Ctrl-C: start "
            "predict once for each, with an --output of its own"
        )
    if inputs.cameras and torchrun.num_processes() > 1:
        raise UserError("a camera is read by one process: start predict without torchrun")
    folder = os.path.abspath(args.output)
    cameras = [Camera(i, os.path.join(folder, f"camera-{i}")) for i in inputs.cameras]
    for camera in cameras:
        inputs.images.extend(camera.kept())
        print(f"Ctrl-C ends the camera {camera.number}", file=sys.stderr)
    return cameras


@contextlib.contextmanager
def _goes_on() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C or SIGTERM
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


def _check_output(
    args: argparse.Namespace, paths: Sequence[str], cameras: Sequence[Camera]
) -> None:
    """
    Raises:
        UserError: the output has what others wrote where this would, or the inputs are there.
    """
    if not args.output or (os.path.exists(args.output) and not os.path.isdir(args.output)):
        raise UserError(f"--output {args.output!r} is no folder: name one, which need not be there")
    names = [name for known in args.format for name in FORMATS[known]]
    is_new = not os.path.exists(os.path.join(args.output, JOURNAL))
    places = [os.path.join(args.output, name) for name in names]
    if is_new:
        places += [camera.folder for camera in cameras]
    for place in places:
        inputs = os.path.abspath(place) + os.sep
        if (is_new and os.path.exists(place)) or any(p.startswith(inputs) for p in paths):
            raise UserError(
                f"{place} would be written to, and has what predict did not write: give another "
                "--output"
            )


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
