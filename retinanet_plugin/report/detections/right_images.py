"""Whether detections are of the images of the truth, where the ids of other images are the same.

COCO's results name images by ids alone, and the ids of many data sets count from 1.
"""

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import UserError
from .boxes import Detections, Truth
from .matching import Matches, match_detections
from .overlaps import find_overlaps

# What this package writes beside results: which files the ids stand for.
DESCRIPTIONS = ("annotations.json", "coco_instances_truth.json")
FEWEST_IMAGES = 10  # of which chance is told apart
MOST_OUTSIDE = 0.01  # the share of detections whose middle is outside of their image


def check_ids(results_path: str, truth: Truth, truth_path: str) -> None:
    """
    Raises:
        UserError: a description beside the results has another file for the id of an image, or
            another name for that of a category.
    """
    files = {image["image_id"]: image["file_name"] for image in truth.images}
    names = dict(zip(truth.category_ids, truth.class_names))
    for description in DESCRIPTIONS:
        path = os.path.join(os.path.dirname(results_path), description)
        described_files, described_names = _read(path)
        others = [
            ("image", i, file, files[i])
            for i, file in described_files.items()
            if i in files and _is_other_file(file, files[i])
        ]
        others += [
            ("category", i, name, names[i])
            for i, name in described_names.items()
            if names.get(i, name) != name
        ]
        for kind, number, described, expected in others[:1]:
            raise UserError(
                f"the results {results_path} have other ids than {truth_path}: the {kind} {number} "
                f"is {described} in {path}, and {expected} in the truth: give the annotation file "
                "that the detector was run on, which predict is told by --truth"
            )


def doubt(detections: Detections, truth: Truth, matches: Matches) -> str:
    """What makes it unlikely that detections are of these images; "" if nothing does.

    Detections of other images lie outside of smaller ones. And they find no more than chance does:
    than those of each image find in the next one.
    """
    if not len(detections):
        return (
            "there are no detections: lower the detector's score threshold, or check that it ran "
            "on these images"
        )
    outside = _share_outside(detections, truth)
    if outside > MOST_OUTSIDE:
        return (
            f"{outside:.0%} of the detections lie outside of their images: they are of other "
            "images, or of these in another size"
        )
    number = len(truth.images)
    if number < FEWEST_IMAGES:
        return ""
    moved = replace(detections, image=(detections.image + 1) % number)
    by_chance = match_detections(moved, truth, find_overlaps(moved, truth))
    # Hits, counted by their scores, as sums of independent events.
    hits, hits_by_chance = (detections.scores[x.is_hit] for x in (matches, by_chance))
    deviation = np.sqrt((hits**2).sum() + (hits_by_chance**2).sum())
    if hits.sum() > hits_by_chance.sum() + 2 * deviation:
        return ""
    return (
        f"the detections find {len(hits)} of {truth.counts.sum()} boxes in their images, and "
        f"{len(hits_by_chance)} where each image has those of the one before: they are of other "
        "images with the same ids, or the detector has learned nothing"
    )


def _share_outside(detections: Detections, truth: Truth) -> float:
    """Of the detections in images whose size is known."""
    sizes = [(x.get("width", np.nan), x.get("height", np.nan)) for x in truth.images]
    size = np.array(sizes, float)[detections.image]
    middle = detections.boxes[:, :2] + detections.boxes[:, 2:] / 2
    is_outside = ((middle < 0) | (middle > size)).any(axis=1)  # no number is larger than NaN
    return float(is_outside.mean())


def _read(path: str) -> tuple[dict[Any, str], dict[Any, str]]:
    """Files and names of categories by their ids; none where there is no such description."""
    try:
        with open(path, "rb") as file:
            content = json.load(file)
        files = {x["id"]: x.get("path", x["file_name"]) for x in content["images"]}
        return files, {category["id"]: category["name"] for category in content["categories"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, {}


def _is_other_file(first: str, second: str) -> bool:
    """Where both are on this machine, by their sizes; else by their names."""
    try:
        return os.path.getsize(first) != os.path.getsize(second)
    except OSError:
        return os.path.basename(first) != os.path.basename(second)
