"""Results of any detector in COCO's format, checked."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import UserError
from .boxes import Detections, Truth, best_first

_FORM = (
    'write a list of {"image_id": ..., "category_id": ..., "bbox": [x, y, width, height], '
    '"score": ...}'
)


def read_results(path: str, name: str, truth: Truth) -> Detections:
    """Read a file of COCO's results of boxes; a report calls the detector ``name``.

    Raises:
        UserError: it cannot be read, or a detection is not of the right form or names an image
            that the truth does not have, or all name categories that it does not have.
    """
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(
            f"the results {path} cannot be read ({error.strerror}): correct the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the results {path} are not JSON ({error}): have the detector write them again"
        ) from error
    return to_detections(content, truth, f"the results {path}", name)


def to_detections(content: Any, truth: Truth, source: str, name: str) -> Detections:
    """The detections of a list of COCO's results; see :func:`read_results`.

    Args:
        content: what a file has.
        truth: of the same images.
        source: what the file is called in errors.
        name: what the report calls the detector.
    """
    if not isinstance(content, list):
        is_truth = isinstance(content, dict) and "images" in content
        found = "an annotation file" if is_truth else _shown(content)
        raise UserError(f"{source}: it is {found}, no list of detections: {_FORM}")
    for i, entry in enumerate(content):
        wrong = _wrong_form(entry)
        if wrong:
            raise UserError(f"{source}: entry {i} {wrong}: {_FORM}")
    content, warning = _of_known_categories(content, truth, source)
    ids = {image["image_id"]: i for i, image in enumerate(truth.images)}
    for i, entry in enumerate(content):
        if entry["image_id"] not in ids:
            raise UserError(
                f"{source}: entry {i} has image_id {_shown(entry['image_id'])}, and the truth has "
                "no such image: give the annotation file that the detector was run on"
            )
    class_of = {category_id: k for k, category_id in enumerate(truth.category_ids)}
    detections = best_first(
        name,
        np.array([ids[entry["image_id"]] for entry in content], int),
        np.array([class_of[entry["category_id"]] for entry in content], int),
        np.array([entry["bbox"] for entry in content], float).reshape(-1, 4),
        np.array([entry["score"] for entry in content], float),
    )
    return replace(detections, warning=warning)


def _of_known_categories(
    content: list[dict[str, Any]], truth: Truth, source: str
) -> tuple[list[dict[str, Any]], str]:
    """Without those of other categories, which COCO's evaluation does not look at either.

    A detector may know more classes than the truth has. What is left out is said.
    """
    known = set(truth.category_ids)
    kept = [entry for entry in content if entry["category_id"] in known]
    if len(kept) == len(content):
        return content, ""
    other = next(e["category_id"] for e in content if e["category_id"] not in known)
    said = (
        f"{len(content) - len(kept):,} of {len(content):,} detections have categories that the "
        f"truth does not have, the first {_shown(other)}"
    )
    if not kept:
        raise UserError(f"{source}: {said}: give the annotation file that the detector was run on")
    return kept, f"{said}: they are left out"


def _wrong_form(entry: Any) -> str:
    """What is wrong with a detection; "" if nothing is."""
    if not isinstance(entry, dict):
        return f"is {_shown(entry)}"
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in entry:
            return f"has no {key!r}"
    for key in ("image_id", "category_id"):
        if isinstance(entry[key], list | dict):
            return f"has {key} {_shown(entry[key])}, which is no id"
    box, score = entry["bbox"], entry["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has bbox {_shown(box)}, not four numbers"
    if box[2] < 0 or box[3] < 0:
        return f"has bbox {_shown(box)} of a negative width or height"
    if not _is_number(score) or not 0 <= score <= 1:
        return f"has score {_shown(score)}, not a number from 0 to 1"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
