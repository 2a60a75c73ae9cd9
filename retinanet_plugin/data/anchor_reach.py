"""How well the anchors of a config can cover boxes, which only large IoUs make foreground."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import nn

from ..errors import UserError


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

    Args:
        boxes: (M, 4), (x1, y1, x2, y2) in pixels of the resized image, inside of it.
        sizes: (M, 2), width and height of each box's resized image.
        model: one with a :func:`grid of anchors <has_grid_of_anchors>`.

    Returns:
        (M,) float64.
    """
    generator: Any = model.anchor_generator
    cell_anchors = [cell.double().cpu().numpy() for cell in generator.cell_anchors]
    return grid_of(model).best_iou(boxes, sizes, [x[:, 2:] - x[:, :2] for x in cell_anchors])


def grid_of(model: nn.Module) -> "AnchorGrid":
    """Where the anchors of a model stand that has a :func:`grid <has_grid_of_anchors>` of them."""
    generator: Any = model.anchor_generator
    backbone: Any = model.backbone
    return AnchorGrid(generator.strides, generator.offset, backbone.size_divisibility)


@dataclass(frozen=True)
class AnchorGrid:
    """Where Detectron2's ``DefaultAnchorGenerator`` puts the centres of anchors.

    All anchors of one shape are alike, at the points of a grid: the one whose centre is next to the
    box's, in x and in y, has the largest intersection. So one anchor of each shape is enough, and
    what is to know of a box's place is how far the next centre is.
    """

    strides: Sequence[int]  # of the L levels
    offset: float = 0.0  # of the first centre, in strides: MODEL.ANCHOR_GENERATOR.OFFSET
    size_divisibility: int = 32  # images are padded to multiples of it

    def best_iou(
        self, boxes: np.ndarray, image_sizes: np.ndarray, shapes: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The IoU of each box with the anchor that covers it best.

        Args:
            boxes: (M, 4), (x1, y1, x2, y2) in pixels of the image, inside of it.
            image_sizes: (M, 2), width and height of each box's image.
            shapes: of each level (A, 2), width and height of the anchors in pixels.

        Returns:
            (M,), of the type of ``boxes``.
        """
        best = np.zeros(len(boxes), boxes.dtype)
        sides = boxes[:, 2:] - boxes[:, :2]
        for distance, level in zip(self.distances(boxes, image_sizes), shapes):
            for shape in level.astype(boxes.dtype):
                np.maximum(best, iou_at(distance, sides, shape), out=best)
        return best

    def best_iou_of_any_shape(self, boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
        """The IoU of each box with an anchor that was made for it, at the next centre.

        In each direction such an anchor ends at one of the box's two edges: between these lengths
        the IoU is a quotient of linear functions of the length, which has no maximum inside, and
        beyond the longer one only the union grows.

        Args, returns: see :meth:`best_iou`.
        """
        best = np.zeros(len(boxes), boxes.dtype)
        sides = boxes[:, 2:] - boxes[:, :2]
        for distance in self.distances(boxes, image_sizes):
            for sign in itertools.product((-1, 1), repeat=2):
                shape = np.abs(sides + 2 * np.array(sign) * distance)
                np.maximum(best, iou_at(distance, sides, shape), out=best)
        return best

    def distances(self, boxes: np.ndarray, image_sizes: np.ndarray) -> list[np.ndarray]:
        """How far a level's next centre is from that of each box, in x and in y: L times (M, 2)."""
        divisibility = max(1, self.size_divisibility)
        padded = np.ceil(image_sizes / divisibility) * divisibility
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        distances = []
        for stride in self.strides:
            last = np.ceil(padded / stride) - 1
            place = np.clip(np.round(centres / stride - self.offset), 0, last)
            distances.append(np.abs(centres - (place + self.offset) * stride).astype(boxes.dtype))
        return distances


def iou_at(distances: np.ndarray, sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """The IoU of boxes with anchors whose centres are so far from theirs.

    Args:
        distances, sides, shapes: (..., 2), in x and in y; they are broadcast.

    Returns:
        (...).
    """
    overlap = np.minimum((sides + shapes) / 2 - distances, np.minimum(sides, shapes)).clip(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    areas = sides[..., 0] * sides[..., 1] + shapes[..., 0] * shapes[..., 1]
    return intersection / (areas - intersection)


def anchor_shapes(
    sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[Sequence[float]]
) -> list[np.ndarray]:
    """Width and height of the anchors of each level, (A, 2), as ``DefaultAnchorGenerator`` does.

    Args:
        sizes: of each level, roots of areas in pixels.
        aspect_ratios: of each level, height / width.
    """
    shapes = []
    for level_sizes, ratios in zip(sizes, aspect_ratios):
        roots = np.sqrt(np.array(ratios, np.float64))
        column = np.array(level_sizes, np.float64)[:, None]
        shapes.append(np.stack([column / roots, column * roots], axis=-1).reshape(-1, 2))
    return shapes


def of_levels(values: Any, num_levels: int, key: str) -> list[list[float]]:
    """``MODEL.ANCHOR_GENERATOR.SIZES`` or ``ASPECT_RATIOS``, a list for each level.

    Args:
        values: numbers for all levels, or lists of them, one for each level or one for all.
        num_levels: L.
        key: ``SIZES`` or ``ASPECT_RATIOS``, for errors.

    Raises:
        UserError: there are lists for another number of levels, or numbers that are not positive.
    """
    levels = list(values) if len(values) and np.ndim(values[0]) else [values]
    if len(levels) not in (1, num_levels) or not all(map(len, levels)):
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.{key} has {len(levels)} lists for {num_levels} levels: give "
            "numbers for each level, or one list for all"
        )
    if not all(np.isfinite(x) and x > 0 for level in levels for x in level):
        raise UserError(f"MODEL.ANCHOR_GENERATOR.{key} is {values}: give positive numbers")
    return [[float(x) for x in level] for level in levels] * (num_levels // len(levels))
