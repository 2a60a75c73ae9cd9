"""Detections in images that are large beside their objects: in overlapping tiles."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..errors import UserError
from .pictures import Source, picture_of
from .predictor import Predictor

# Of a tile's side: objects that are smaller are whole in one of the tiles.
OVERLAP = 0.25
_OVERLAP_THRESH = 0.5


def detect_in_tiles(
    predictor: Predictor, image: Source, side: int, order: str = "BGR"
) -> Instances:
    """What ``predictor`` finds in the tiles of an image, merged by NMS in each class.

    ``InferenceSlicer`` of supervision cuts. Boxes overlap by the share of the smaller
    one's area: an object that a tile cuts through is a small box in a large one, whose IoU is low.
    An image that is no larger than a tile has the detections that it has without tiles.

    Args:
        image: see :meth:`Predictor.__call__`.
        side: width and height of a tile, in pixels of the image.
        order: of an array's colours.

    Raises:
        UserError: the image cannot be read, or supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError("tiles need a package: pip install supervision") from error
    picture = picture_of(image, "BGR", order)
    if max(picture.shape[:2]) <= side:
        return predictor(picture)[0]

    def detect(tiles: list[np.ndarray]) -> list[supervision.Detections]:
        return [predictor.to_supervision(found) for found in predictor(tiles)]

    slicer = supervision.InferenceSlicer(
        detect,
        slice_wh=side,
        overlap_wh=int(side * OVERLAP),
        overlap_filter=supervision.OverlapFilter.NONE,
        batch_size=16,
    )
    found = slicer(np.ascontiguousarray(picture))
    merged = Instances(
        picture.shape[:2],
        pred_boxes=Boxes(torch.as_tensor(found.xyxy, dtype=torch.float32)),
        scores=torch.as_tensor(np.asarray(found.confidence)),
        pred_classes=torch.as_tensor(np.asarray(found.class_id)),
    )
    return merged[best_of_shared(merged)]


def best_of_shared(found: Instances) -> list[int]:
    """The indices of what stays, best first.

    A box at a time, because a table of all pairs, as of supervision's NMS, has gigabytes for some
    ten thousand boxes.
    """
    boxes, areas, kept = found.pred_boxes.tensor, found.pred_boxes.area(), []
    order = found.scores.argsort(descending=True, stable=True)
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low = torch.maximum(boxes[order, :2], boxes[best, :2])
        high = torch.minimum(boxes[order, 2:], boxes[best, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        is_same = found.pred_classes[order] == found.pred_classes[best]
        is_same &= shared > _OVERLAP_THRESH * torch.minimum(areas[order], areas[best])
        order = order[~is_same]
    return kept
