"""The images with most false alarms and misses, with boxes that a page can show by their scores."""

import base64
import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ...data.images.read_image import read_image
from ...errors import UserError
from ..pictures import draw_pairs
from .boxes import Truth
from .errors import KINDS
from .evaluation import Evaluation

NUMBER = 8
LEAST_SCORE = 0.05  # of the detections that a page can show
MOST_SIDE = 720  # pixels of an embedded picture


@dataclass
class ShownBox:
    """A box on a picture, (x, y, width, height) in its pixels."""

    kind: str  # "truth", "region", "hit", "false" or "ignored"
    box: list[float]
    label: str
    # Of a detection; of a truth that of the detection that finds it, 2 if none does.
    score: float
    why: str = ""  # it is a false alarm


@dataclass
class ShownImage:
    """A picture of a page."""

    name: str
    width: int
    height: int
    picture: str  # a data URI
    boxes: list[ShownBox]
    false_alarms: int
    misses: int


def worst_images(evaluation: Evaluation, truth: Truth) -> list[int]:
    """The indices of the images with most false alarms and misses, the worst first."""
    misses, false_alarms = _count_errors(evaluation, truth)
    errors = misses + false_alarms
    order = np.argsort(-errors, kind="stable")[:NUMBER]
    return [int(i) for i in order if errors[i]]


def show_images(
    evaluation: Evaluation, truth: Truth, chosen: list[int]
) -> tuple[list[ShownImage], Figure | None, str]:
    """Images as a page shows them.

    Returns:
        (list, Figure or None, str): those of ``chosen`` that can be read, the same ones drawn on
        one sheet, truth beside detections, and what is to say of the others.
    """
    misses, false_alarms = _count_errors(evaluation, truth)
    shown, readable, problem = [], [], ""
    for i in chosen:
        try:
            picture = read_image(truth.images[i], "RGB")
        except UserError as error:
            problem = problem or str(error)
            continue
        readable.append(i)
        height, width = picture.shape[:2]
        shown.append(
            ShownImage(
                name=os.path.basename(truth.images[i]["file_name"]),
                width=width,
                height=height,
                picture=_jpeg(picture),
                boxes=_boxes(evaluation, truth, i),
                false_alarms=int(false_alarms[i]),
                misses=int(misses[i]),
            )
        )
    if not readable:
        return [], None, problem
    sheet, _ = draw_pairs(
        [truth.images[i] for i in readable],
        [_detections(evaluation, i) for i in readable],
        truth.class_names,
        evaluation.score_thresh,
    )
    return shown, sheet, problem


def _count_errors(evaluation: Evaluation, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Misses and false alarms (N,) of each image."""
    number = len(truth.images)
    matches, shown = evaluation.matches, evaluation.is_shown
    images = evaluation.detections.image
    objects = np.bincount(truth.image[~truth.is_crowd], minlength=number)
    hits = np.bincount(images[matches.is_hit & shown], minlength=number)
    return objects - hits, np.bincount(images[matches.is_false_alarm & shown], minlength=number)


def _boxes(evaluation: Evaluation, truth: Truth, image: int) -> list[ShownBox]:
    """Regions and truth, then detections, the best last so that it is on top."""
    detections, matches = evaluation.detections, evaluation.matches
    found = np.flatnonzero((detections.image == image) & (detections.scores >= LEAST_SCORE))
    score_of = {int(matches.box[d]): float(detections.scores[d]) for d in found}
    boxes = [
        ShownBox(
            "region" if truth.is_crowd[b] else "truth",
            truth.boxes[b].tolist(),
            truth.class_names[truth.classes[b]],
            score_of.get(int(b), 2),
        )
        for b in np.flatnonzero(truth.image == image)
    ]
    kinds = list(KINDS.values())
    for d in found[::-1]:
        score, name = float(detections.scores[d]), truth.class_names[detections.classes[d]]
        kind = "hit" if matches.is_hit[d] else "ignored" if matches.is_ignored[d] else "false"
        why = kinds[evaluation.kinds[d]] if kind == "false" else ""
        label = f"{name} {score:.2f}"
        boxes.append(ShownBox(kind, detections.boxes[d].tolist(), label, score, why))
    return boxes


def _detections(evaluation: Evaluation, image: int) -> list[dict[str, Any]]:
    """As :func:`draw_pairs` takes them."""
    detections = evaluation.detections
    return [
        {
            "bbox": detections.boxes[d].tolist(),
            "category_id": int(detections.classes[d]),
            "score": float(detections.scores[d]),
        }
        for d in np.flatnonzero(detections.image == image)
    ]


def _jpeg(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
