"""Which detections overlap which boxes, in all images at once."""

from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

from .boxes import Detections, Truth

# Less overlap than this is none (TIDE's background threshold, section 2.2 of arXiv 2008.08115).
LEAST_IOU = 0.1


@dataclass
class Overlaps:
    """P pairs of a detection and a box of the truth in the same image, whose classes may differ."""

    detection: np.ndarray  # (P,), ascending
    box: np.ndarray  # (P,)
    iou: np.ndarray  # (P,), from LEAST_IOU; with a crowd: the share of the detection's area in it


def find_overlaps(detections: Detections, truth: Truth) -> Overlaps:
    """By pycocotools, whose numbers COCO's evaluation compares with its thresholds."""
    parts = []
    found_in = _by_image(detections.image, len(truth.images))
    boxes_in = _by_image(truth.image, len(truth.images))
    for found, boxes in zip(found_in, boxes_in):
        if len(found) and len(boxes):
            iou = mask_util.iou(
                detections.boxes[found], truth.boxes[boxes], truth.is_crowd[boxes].astype(np.uint8)
            )
            d, b = np.nonzero(iou >= LEAST_IOU)
            parts.append((found[d], boxes[b], iou[d, b]))
    if not parts:
        return Overlaps(np.empty(0, int), np.empty(0, int), np.empty(0))
    detection, box, iou = map(np.concatenate, zip(*parts))
    order = np.argsort(detection, kind="stable")
    return Overlaps(detection[order], box[order], iou[order])


def _by_image(image: np.ndarray, num_images: int) -> list[np.ndarray]:
    order = np.argsort(image, kind="stable")
    return np.split(order, np.cumsum(np.bincount(image, minlength=num_images))[:-1])
