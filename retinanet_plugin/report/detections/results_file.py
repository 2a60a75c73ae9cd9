"""Results of any detector in COCO's format, checked."""

import json
import math
from collections.abc import Sequence
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
        UserError: it cannot be read, has no detections, or one of them is not of the right form or
            names an image or a category that the truth does not have.
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
    if not content:
        raise UserError(
            f"{source}: there are no detections: lower the detector's score threshold, or check "
            "that it ran on these images"
        )
    for i, entry in enumerate(content):
        wrong = _wrong_form(entry)
        if wrong:
            raise UserError(f"{source}: entry {i} {wrong}: {_FORM}")
    ids = [image["image_id"] for image in truth.images]
    image = _indices(content, "image_id", ids, source, "image")
    classes = _indices(content, "category_id", truth.category_ids, source, "category")
    boxes = np.array([entry["bbox"] for entry in content], float)
    scores = np.array([entry["score"] for entry in content], float)
    return best_first(name, image, classes, boxes, scores)


def _wrong_form(entry: Any) -> str:
    """What is wrong with a detection; "" if nothing is."""
    if not isinstance(entry, dict):
        return f"is {_shown(entry)}"
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in entry:
            return f"has no {key!r}"
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


def _indices(
    content: list[dict[str, Any]], key: str, known: Sequence[Any], source: str, what: str
) -> np.ndarray:
    """Where the ids of all detections are in a list of ids."""
    index_of = {value: i for i, value in enumerate(known)}
    try:
        return np.array([index_of[entry[key]] for entry in content], int)
    except (KeyError, TypeError):
        for i, entry in enumerate(content):
            value = entry[key]
            if isinstance(value, list | dict) or value not in index_of:
                raise UserError(
                    f"{source}: entry {i} has {key} {_shown(value)}, and the truth has no such "
                    f"{what}: give the annotation file that the detector was run on"
                ) from None
        raise


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
