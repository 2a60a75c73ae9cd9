"""Write a trained model in another format, and compare what it detects with PyTorch.

onnx: for onnxruntime and others. openvino: for Intel's and other processors, with --int8 in 8 bits.
torch: a program of torch.export. detectron2: config and weights that plain Detectron2 opens.
Predictor, predict and report take the files as they take a checkpoint.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable

from ..deploy import Predictor
from ..deploy.comparison import compare
from ..deploy.exported_network import RUNNERS
from ..deploy.exports import check_packages, write_onnx, write_openvino, write_program
from ..deploy.formats import Ids
from ..deploy.pictures import Preprocessing, images_in
from ..deploy.plain_detectron2 import write_detectron2
from ..deploy.torch_network import TorchNetwork, read_config, read_described
from ..errors import UserError
from ..new_folders import new_files
from ..whole_files import check_writable, refuse_bytes
from .arguments import add_opts, check_mostly_readable

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "detectron2": ".yaml"}
_BESIDE = {"openvino": [".bin"], "detectron2": [".pth"]}  # of weights
_MOST_COMPARED = 50
_MOST_CALIBRATED = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=list(SUFFIXES))
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint of this package")
    parser.add_argument("output", metavar="OUTPUT", help=" ".join(SUFFIXES.values()))
    parser.add_argument(
        "--config-file", dest="config", default="", help="of weights that do not carry theirs"
    )
    parser.add_argument(
        "--images",
        default="",
        metavar="FOLDER",
        help=f"images to compare with, the first {_MOST_COMPARED}; for --int8 also to calibrate",
    )
    parser.add_argument(
        "--truth", default="", metavar="FILE", help="annotations of some of --images: AP on these"
    )
    parser.add_argument("--int8", action="store_true", help="with openvino: 8-bit integers")
    parser.add_argument(
        "--nms", action="store_true", help="with onnx: decoding and NMS too, one image at a time"
    )
    add_opts(parser)


def run(args: argparse.Namespace) -> None:
    images = _checked(args)
    check_packages(args.format, args.int8)
    # What was not compared, or detects something else, is not left where it could be taken.
    with new_files(*_written_files(args)):
        _export(args, images)


def _export(args: argparse.Namespace, images: list[str]) -> None:
    config, weights = args.config, args.weights
    if config:
        cfg, class_names = read_config(config, weights, args.opts)
    else:
        cfg, class_names = read_described(weights, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    compared, calibrating = roles_of(images, args.truth, class_names)
    is_readable = functools.cache(functools.partial(_is_readable, Preprocessing.of(cfg)))
    compared = readable(compared, None if args.truth else _MOST_COMPARED, is_readable)
    calibrating = readable(calibrating, _MOST_CALIBRATED, is_readable) if args.int8 else []
    if args.format == "detectron2":
        write_detectron2(cfg, args.output)
    # What is written computes in float32, and is compared with that.
    cfg.MODEL.RETINANET.BFLOAT16 = cfg.MODEL.RETINANET.COMPILE = False
    network = TorchNetwork(cfg, class_names)
    if args.format == "onnx":
        write_onnx(network, args.output, args.nms)
    elif args.format == "torch":
        write_program(network, args.output)
    elif args.format == "openvino":
        write_openvino(network, args.output, calibrating)
    comparison = compare(network, Predictor(args.output), compared, args.truth)
    if not args.int8:
        comparison.refuse_unless_equal(args.output)
    print(f"wrote {args.output}: {comparison}")


def roles_of(images: list[str], truth: str, class_names: list[str]) -> tuple[list[str], list[str]]:
    """Those to compare detections in, and those whose values have the ranges of 8 bits.

    Images of the annotation file ``truth`` are compared, all of them, and give no ranges if there
    are others, so that AP is of images that are new to the network.

    Raises:
        UserError: the file has none of the images, or cannot be read.
    """
    if not truth:
        return images, images
    ids = Ids(truth, class_names)
    of_truth: dict[bool, list[str]] = {True: [], False: []}
    for image in images:
        of_truth[ids.has(image)].append(image)
    if not of_truth[True]:
        ids.check(images)
    return of_truth[True], of_truth[False] or images


def readable(images: list[str], most: int | None, is_readable: Callable[[str], bool]) -> list[str]:
    """The first ``most`` images that can be read, or all of these.

    Raises:
        UserError: more than half of those that were tried cannot.
    """
    found: list[str] = []
    num_bad = 0
    for image in images:
        if len(found) == most:
            break
        if is_readable(image):
            found.append(image)
        else:
            num_bad += 1
    check_mostly_readable(num_bad, num_bad + len(found))
    return found


def _is_readable(preprocessing: Preprocessing, image: str) -> bool:
    """Whether the network can be given an image; one that it cannot is told."""
    try:
        preprocessing.prepare(image)
    except UserError as error:
        print(f"WARNING: left out: {error}", file=sys.stderr)
        return False
    return True


def _written_files(args: argparse.Namespace) -> list[str]:
    stem = os.path.splitext(args.output)[0]
    return [args.output, *(stem + suffix for suffix in _BESIDE.get(args.format, ()))]


def _checked(args: argparse.Namespace) -> list[str]:
    """The images of ``--images``, once the arguments go together."""
    suffix = SUFFIXES[args.format]
    if os.path.splitext(args.output)[1] != suffix:
        raise UserError(f"{args.format} is written to a {suffix} file: rename {args.output}")
    if os.path.splitext(args.weights)[1] in RUNNERS:
        raise UserError(f"{args.weights} is an export: give the checkpoint that it was made from")
    if args.int8 and args.format != "openvino":
        raise UserError(f"--int8 is for openvino, not {args.format}: leave it out")
    if args.nms and args.format != "onnx":
        raise UserError(f"--nms is for onnx, not {args.format}: leave it out")
    if args.int8 and not args.images:
        raise UserError("--int8 takes the ranges of values from images: give --images FOLDER")
    if args.truth and not args.images:
        raise UserError("--truth has the objects of images: give --images FOLDER as well")
    refuse_bytes(args.output, "the file")
    check_writable(os.path.dirname(args.output) or ".")
    if args.images and not os.path.isdir(args.images):
        raise UserError(f"--images {args.images} is no folder: name the one that has the images")
    return images_in(args.images) if args.images else []
