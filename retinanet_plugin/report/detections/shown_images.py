"""The images of a page, the worst and some others, with boxes that it can show by their scores."""

import io
import os
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ...data.images.read_image import read_image
from ...errors import UserError
from ..drawing import evenly_spread
from ..html_pages import data_uri
from .boxes import Truth
from .evaluation import Evaluation
from .pictures import draw_pairs
from .shown_boxes import ShownBox, shown_boxes

NUMBER = 8  # of the worst, and of the others
LEAST_SCORE = 0.05  # of the detections that a page can show
MOST_SIDE = 720  # pixels of an embedded picture


@dataclass
class ShownImage:
    """A picture of a page."""

    name: str
    width: int
    height: int
    picture: str  # a data URI
    boxes: list[ShownBox]  # truth first, the best detection last, so that it is on top
    false_alarms: int
    misses: int


def worst_images(evaluation: Evaluation, truth: Truth) -> list[int]:
    """The indices of the images with most false alarms and misses, the worst first."""
    misses, false_alarms = _count_errors(evaluation, truth)
    errors = misses + false_alarms
    order = np.argsort(-errors, kind="stable")[:NUMBER]
    return [int(i) for i in order if errors[i]]


def other_images(truth: Truth, worst: list[int]) -> list[int]:
    """The indices of some images, spread evenly over those that are not among the worst."""
    others = [i for i in range(len(truth.images)) if i not in worst]
    return [others[i] for i in evenly_spread(len(others), NUMBER)] if others else []


def show_images(
    evaluation: Evaluation, truth: Truth, chosen: list[int]
) -> tuple[list[ShownImage], Figure | None, str]:
    """Images as a page shows them.

    Returns:
        (list, Figure or None, str): those of ``chosen`` that can be read, the same ones drawn on
        one sheet, truth beside detections, and what is to say of the others.
    """
    misses, false_alarms = _count_errors(evaluation, truth)
    least_score = min(LEAST_SCORE, evaluation.score_thresh)
    shown, records, problem = [], [], ""
    for i in chosen:
        try:
            picture = read_image(truth.images[i], "RGB")
        except UserError as error:
            problem = problem or str(error)
            continue
        records.append(truth.images[i])
        boxes = shown_boxes(
            truth, evaluation.detections, evaluation.matches, i, least_score, evaluation.kinds
        )
        height, width = picture.shape[:2]
        shown.append(
            ShownImage(
                name=os.path.basename(truth.images[i]["file_name"]),
                width=width,
                height=height,
                picture=_jpeg(picture),
                boxes=sorted(boxes, key=lambda box: (not box.is_truth, box.score)),
                false_alarms=int(false_alarms[i]),
                misses=int(misses[i]),
            )
        )
    if not shown:
        return [], None, problem
    of_each = [image.boxes[::-1] for image in shown]  # the best first: it is labelled first
    sheet, _ = draw_pairs(records, of_each, evaluation.score_thresh)
    return shown, sheet, problem


def _count_errors(evaluation: Evaluation, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Misses and false alarms (N,) of each image."""
    number = len(truth.images)
    matches, shown = evaluation.matches, evaluation.is_shown
    images = evaluation.detections.image
    objects = np.bincount(truth.image[~truth.is_crowd], minlength=number)
    hits = np.bincount(images[matches.is_hit & shown], minlength=number)
    return objects - hits, np.bincount(images[matches.is_false_alarm & shown], minlength=number)


def _jpeg(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=85)
    return data_uri(buffer.getvalue(), "jpeg")
