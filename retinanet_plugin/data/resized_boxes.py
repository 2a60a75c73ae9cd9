"""Boxes as a model sees them: after their images were resized, beside its anchors."""

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from torch import nn

from .anchor_reach import best_iou, foreground_iou, has_grid_of_anchors, resized, short_edge
from .dataset_facts import DatasetFacts, has_area


@dataclass
class ResizedBoxes:
    """The M' boxes that Detectron2 leaves of those in images of known size, without crowds."""

    classes: np.ndarray  # (M',)
    images: np.ndarray  # (M',), index of the image in the data set
    areas: np.ndarray  # (M',), in pixels of the resized image
    # (M',) bool, whether an anchor overlaps the box enough to be foreground, low-quality matches
    # aside; None: no IoU makes an anchor foreground, or the anchors are no grid.
    are_reached: np.ndarray | None


def resized_boxes(
    cfg: CfgNode, facts: DatasetFacts, model: nn.Module | None, is_train: bool
) -> ResizedBoxes:
    """
    Args:
        cfg: with the sizes of ``INPUT`` and the IoUs of ``MODEL.RETINANET``.
        facts: of the data set.
        model: with the anchors; None: there is no such model.
        is_train: whether the sizes of training or those of testing are meant.
    """
    boxes, image_sizes, chosen = corners_after_resizing(cfg, facts, is_train)
    iou = foreground_iou(cfg)
    are_reached = None
    if iou is not None and model is not None and has_grid_of_anchors(model):
        are_reached = best_iou(boxes, image_sizes, model) >= iou
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return ResizedBoxes(facts.classes[chosen], facts.image_of[chosen], areas, are_reached)


def corners_after_resizing(
    cfg: CfgNode, facts: DatasetFacts, is_train: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boxes of :class:`ResizedBoxes` themselves.

    Args:
        cfg, facts, is_train: see :func:`resized_boxes`.

    Returns:
        boxes (M', 4), (x1, y1, x2, y2) in pixels of the resized image; width and height of the
        resized image of each (M', 2); which of all M annotations they are, (M,) bool.
    """
    max_size = cfg.INPUT.MAX_SIZE_TRAIN if is_train else cfg.INPUT.MAX_SIZE_TEST
    is_known = ~np.isnan(facts.sizes).any(axis=1)
    new_sizes = np.full_like(facts.sizes, np.nan)
    new_sizes[is_known] = resized(facts.sizes[is_known], short_edge(cfg, is_train), max_size)

    chosen = is_known[facts.image_of] & ~facts.is_crowd
    index = facts.image_of[chosen]
    # Detectron2 clips boxes to their images, and drops those of which nothing is left.
    boxes = np.tile(new_sizes[index] / facts.sizes[index], 2) * facts.boxes[chosen]
    boxes = np.clip(boxes, 0, np.tile(new_sizes[index], 2))
    is_left = has_area(boxes)
    chosen[chosen] = is_left
    return boxes[is_left], new_sizes[index][is_left], chosen
