"""Measure detections against the truth, and write a page, its figures and its numbers.

Detections are those of weights, or of a file of COCO's results that any detector wrote; two files
are compared. FOLDER gets report.html, which opens without a network, report.json and PNGs; from
weights also detections.json, COCO's results.
"""

import argparse
import json
import os
import shlex
import sys
from typing import Any

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from tqdm import tqdm

from ..deploy import Predictor
from ..errors import UserError
from ..new_folders import new_folder
from ..report.detections.boxes import Detections, Truth, read_truth, truth_warnings
from ..report.detections.evaluation import evaluate
from ..report.detections.page import FILES, write_report
from ..report.detections.results_file import read_results, to_detections
from ..report.detections.right_images import check_ids
from ..whole_files import check_writable, write_whole_file
from .arguments import check_mostly_readable

# What weights have found: it stays after an error, and a report can be made from it.
_DETECTIONS = "detections.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--truth", required=True, metavar="FILE", help="annotations, COCO's format")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="their images")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="FILE", help="a checkpoint, or a file of export")
    source.add_argument(
        "--results",
        action="append",
        metavar="FILE",
        help="COCO's results of any detector; given twice, both are compared",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--config-file", default="", help="of weights that do not carry theirs")
    parser.add_argument("--device", default="", help="of PyTorch, such as cpu or cuda:1")


def run(args: argparse.Namespace) -> None:
    _check_arguments(args)
    kept = os.path.join(args.output, _DETECTIONS)
    remedy = f"give --results {kept} and a new folder" if os.path.isfile(kept) else ""
    check_writable(args.output)
    with new_folder(args.output, FILES, remedy):
        _report(args)


def _report(args: argparse.Namespace) -> None:
    truth = read_truth(args.truth, args.images)
    _check_images(args, truth)
    for warning in truth_warnings(args.truth, truth):
        print(f"WARNING: {warning}", file=sys.stderr)
    if args.results:
        names = _names_apart(args.results)
        for path in args.results:
            check_ids(path, truth, args.truth)
        detections = [read_results(*named, truth) for named in zip(args.results, names)]
    else:
        detections = [_detect(args, truth)]
    evaluations = [evaluate(detected, truth) for detected in detections]
    problems = write_report(args.output, truth, evaluations, os.path.basename(args.truth))
    for problem in problems:
        print(f"WARNING: the page lacks pictures: {problem}", file=sys.stderr)
    for evaluation in evaluations:
        if evaluation.doubt:
            print(f"WARNING: {evaluation.detections.name}: {evaluation.doubt}", file=sys.stderr)
        ap = evaluation.coco.metrics["AP"]
        print(f"AP {100 * (ap or 0):.1f}  {evaluation.detections.name}")
    print(f"wrote {os.path.join(args.output, 'report.html')}")
    thresholds = os.path.join(args.output, "report.json")
    command = ["predict", args.weights or "WEIGHTS", "IMAGES", "--output", "found"]
    command = ["python", "-m", "retinanet_plugin", *command, "--score-thresholds", thresholds]
    print(f"to detect with the best threshold of each class: {shlex.join(command)}")


def _check_arguments(args: argparse.Namespace) -> None:
    results = args.results or []
    if len(results) > 2:
        raise UserError(f"--results is given {len(results)} times: give one or two files")
    if len({os.path.realpath(path) for path in results}) < len(results):
        raise UserError(
            f"--results {results[0]} is given twice: name the results of another detector, or "
            "leave the second out"
        )


def _check_images(args: argparse.Namespace, truth: Truth) -> None:
    """
    Raises:
        UserError: there is no such folder, or the first image is in another one.
    """
    if not os.path.isdir(args.images):
        raise UserError(f"--images {args.images} is no folder: name the one that has the images")
    path = truth.images[0]["file_name"]
    name = os.path.relpath(path, args.images)
    inside = [entry.path for entry in os.scandir(args.images) if entry.is_dir()]
    others = [os.path.dirname(os.path.abspath(args.images)), *sorted(inside)]
    found = [other for other in others if os.path.isfile(os.path.join(other, name))]
    if found and not os.path.exists(path):
        raise UserError(f"--images {args.images} has no {name}, but {found[0]} has: name that")


def _names_apart(paths: list[str]) -> list[str]:
    """The files' names, with the folders before them that they need to differ."""
    parts = [os.path.realpath(path).split(os.sep) for path in paths]
    count = 1
    while len({tuple(names[-count:]) for names in parts}) < len(paths):
        count += 1
    return [os.sep.join(names[-count:]) for names in parts]


def _detect(args: argparse.Namespace, truth: Truth) -> Detections:
    """What weights find in the images of the truth; written as COCO's results too."""
    given = [args.config_file, args.weights] if args.config_file else [args.weights]
    predictor = Predictor(*given, device=args.device)
    id_of = _category_ids(predictor.class_names, truth, args)
    results: list[dict[str, Any]] = []
    paths = [image["file_name"] for image in truth.images]
    found = tqdm(
        predictor.stream(paths),
        total=len(paths),
        unit=" images",
        file=sys.stderr,
        delay=0,  # else tqdm.write shows a bar whose line is not ended, if it closes soon
    )
    num_bad = 0
    for image, instances in zip(truth.images, found):
        if isinstance(instances, UserError):
            num_bad += 1
            told = f"WARNING: left out, and its objects count as not found: {instances}"
            tqdm.write(told, file=sys.stderr)
            continue
        for detection in instances_to_coco_json(instances, image["image_id"]):
            class_id = detection["category_id"]
            if class_id >= len(id_of):
                raise UserError(
                    f"{args.weights} detects more classes than {args.truth} has: give the "
                    "annotation file that goes with the weights"
                )
            results.append({**detection, "category_id": id_of[class_id]})
    check_mostly_readable(num_bad, len(paths))
    name = os.path.basename(args.weights)
    detections = to_detections(results, truth, f"the detections of {args.weights}", name)
    path = os.path.join(args.output, _DETECTIONS)
    write_whole_file(path, lambda file: file.write(json.dumps(results).encode()))
    return detections


def _category_ids(class_names: list[str], truth: Truth, args: argparse.Namespace) -> list[int]:
    """Of the model's classes, by name; in order where the model has no names."""
    if not class_names:
        return truth.category_ids
    id_of = dict(zip(truth.class_names, truth.category_ids))
    for name in class_names:
        if name not in id_of:
            raise UserError(
                f"{args.truth} has no category {name!r}, which {args.weights} detects: give the "
                "annotation file that goes with the weights"
            )
    return [id_of[name] for name in class_names]
