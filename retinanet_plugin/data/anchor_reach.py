"""How well the anchors of a config can cover boxes, which only large IoUs make foreground."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import nn


def resized(sizes: np.ndarray, short_edge: int, max_size: int) -> np.ndarray:
    """Sizes of images after ``ResizeShortestEdge``.

    Args:
        sizes: (N, 2), width and height.
        short_edge: 0 leaves images as they are, as in Detectron2.
        max_size: of the longer edge.

    Returns:
        (N, 2) float64, whole pixels.
    """
    if short_edge == 0 or not len(sizes):
        return sizes.astype(np.float64)
    unique, index = np.unique(sizes, axis=0, return_inverse=True)
    shapes = [
        ResizeShortestEdge.get_output_shape(height, width, short_edge, max_size)
        for width, height in unique.tolist()
    ]
    return np.array(shapes, np.float64)[:, ::-1][index.reshape(-1)]


def short_edge(cfg: CfgNode, is_train: bool) -> int:
    """``INPUT.MIN_SIZE_TEST``, or the middle of what ``INPUT.MIN_SIZE_TRAIN`` lets be drawn."""
    edges = cfg.INPUT.MIN_SIZE_TRAIN if is_train else cfg.INPUT.MIN_SIZE_TEST
    edges = [edges] if isinstance(edges, int) else sorted(edges)
    if is_train and cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        return (edges[0] + edges[-1]) // 2
    return edges[len(edges) // 2]


def foreground_iou(cfg: CfgNode) -> float | None:
    """The smallest IoU of ``MODEL.RETINANET.IOU_THRESHOLDS`` that makes an anchor foreground.

    None: no IoU does.
    """
    retinanet = cfg.MODEL.RETINANET
    bands = zip([0.0, *retinanet.IOU_THRESHOLDS], retinanet.IOU_LABELS)
    return next((float(iou) for iou, label in bands if label == 1), None)


def has_grid_of_anchors(model: nn.Module) -> bool:
    """Whether :func:`best_iou` knows the anchors of a model."""
    generator = getattr(model, "anchor_generator", None)
    return type(generator) is DefaultAnchorGenerator and hasattr(model, "backbone")


def best_iou(boxes: np.ndarray, sizes: np.ndarray, model: nn.Module) -> np.ndarray:
    """The IoU of each box with the anchor that covers it best.

    All anchors of one shape are alike, at the points of a grid: the one whose centre is next to the
    box's, in x and in y, has the largest intersection. So one anchor of each shape is enough.

    Args:
        boxes: (M, 4), (x1, y1, x2, y2) in pixels of the resized image, inside of it.
        sizes: (M, 2), width and height of each box's resized image.
        model: one with a :func:`grid of anchors <has_grid_of_anchors>`.

    Returns:
        (M,) float64.
    """
    generator: Any = model.anchor_generator
    backbone: Any = model.backbone
    divisibility = max(1, backbone.size_divisibility)
    best = np.zeros(len(boxes))
    padded = np.ceil(sizes / divisibility) * divisibility
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    for stride, cell_anchors in zip(generator.strides, generator.cell_anchors):
        last = np.ceil(padded / stride) - 1
        for anchor in cell_anchors.double().cpu().numpy():
            first_centre = (anchor[:2] + anchor[2:]) / 2 + generator.offset * stride
            place = np.clip(np.round((centre - first_centre) / stride), 0, last)
            shift = (place + generator.offset) * stride
            best = np.maximum(best, _iou(boxes, shift + anchor[:2], shift + anchor[2:]))
    return best


def _iou(boxes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    overlap = np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)
    intersection = overlap.clip(min=0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (high - low).prod(axis=1) - intersection
    return intersection / union
