"""Detections in images that are large beside their objects: in overlapping tiles."""

import os

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..data.images.read_image import read_image
from ..errors import UserError
from .pictures import Source, to_picture
from .predictor import Predictor

# Of a tile's side: objects that are smaller are whole in one of the tiles.
OVERLAP = 0.25
_OVERLAP_THRESH = 0.5


def detect_in_tiles(
    predictor: Predictor, image: Source, side: int, order: str = "BGR"
) -> Instances:
    """What ``predictor`` finds in the tiles of an image, merged by NMS in each class.

    ``InferenceSlicer`` of supervision cuts and merges. Boxes overlap by the share of the smaller
    one's area: an object that a tile cuts through is a small box in a large one, whose IoU is low.
    An image that is no larger than a tile has the detections that it has without tiles.

    Args:
        image: a path, or an array as :meth:`Predictor.__call__` takes it.
        side: width and height of a tile, in pixels of the image.
        order: of an array's colours.

    Raises:
        UserError: the image cannot be read, or supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError("tiles need a package: pip install supervision") from error
    if isinstance(image, np.ndarray):
        picture = to_picture(image, "BGR", order)
    else:
        picture = read_image({"file_name": os.fspath(image)}, "BGR")
    if max(picture.shape[:2]) <= side:
        return predictor(picture)[0]

    def detect(tiles: list[np.ndarray]) -> list[supervision.Detections]:
        return [predictor.to_supervision(found) for found in predictor(tiles)]

    slicer = supervision.InferenceSlicer(
        detect,
        slice_wh=side,
        overlap_wh=int(side * OVERLAP),
        iou_threshold=_OVERLAP_THRESH,
        overlap_metric="IOS",
        batch_size=16,
    )
    merged = slicer(np.ascontiguousarray(picture))
    scores = np.asarray(merged.confidence)
    best_first = np.argsort(-scores, kind="stable")
    return Instances(
        picture.shape[:2],
        pred_boxes=Boxes(torch.as_tensor(merged.xyxy[best_first], dtype=torch.float32)),
        scores=torch.as_tensor(scores[best_first]),
        pred_classes=torch.as_tensor(np.asarray(merged.class_id)[best_first]),
    )
