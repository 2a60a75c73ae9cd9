"""Anchors for the boxes of a data set: scales and aspect ratios that reach more of them.

As in RetinaNet (Lin et al., arXiv 1708.02002, section 4, "Anchors") a size is a scale times the
stride of its level, and every level has all scales with all aspect ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .anchor_reach import AnchorGrid, anchor_shapes, of_levels
from .anchor_search import AnchorSearch

# Of RetinaNet: three scales an octave from 4 strides on.
_USUAL_SCALES = [4 * 2 ** (i / 3) for i in range(3)]
_USUAL_RATIOS = [0.5, 1.0, 2.0]
# Fewer anchors are as good if they miss no more than this share of all boxes, and lose no more than
# this of the mean IoU, without which few anchors would be foreground and boxes only just.
_AS_GOOD = 0.002
_AS_GOOD_IOU = 0.02
# Boxes that are searched with: some thousands say as much as all, and take seconds.
_MOST_SAMPLED = 4000
_MOST_SAMPLED_OF_CLASSES = 2000  # beside those, shared among the classes whatever their counts


@dataclass(frozen=True)
class Anchors:
    """Anchors, and how well they cover M boxes."""

    sizes: list[list[float]]  # of each level, in pixels: MODEL.ANCHOR_GENERATOR.SIZES
    aspect_ratios: list[list[float]]  # of each level, height / width: ASPECT_RATIOS
    ious: np.ndarray  # (M,), of each box with its best anchor
    threshold: float  # from which on an anchor is foreground

    @property
    def are_reached(self) -> np.ndarray:
        """(M,) bool."""
        return self.ious >= self.threshold

    @property
    def coverage(self) -> float:
        """The share of boxes whose best anchor reaches the threshold, 0 to 1."""
        return float(self.are_reached.mean())

    @property
    def num_anchors(self) -> int:
        """A, at a location; the most of all levels."""
        return max(len(s) * len(r) for s, r in zip(self.sizes, self.aspect_ratios))


@dataclass(frozen=True)
class AnchorFit:
    """What :func:`fit_anchors` found."""

    before: Anchors
    after: Anchors  # the same object as ``before`` if nothing better was found
    ious_at_most: np.ndarray  # (M,), of each box with an anchor of any shape on these strides


def fit_anchors(
    boxes: Any,
    image_sizes: Any,
    strides: Sequence[int],
    *,
    classes: Any = None,
    sizes: Sequence[float] | Sequence[Sequence[float]] | None = None,
    aspect_ratios: Sequence[float] | Sequence[Sequence[float]] | None = None,
    threshold: float = 0.5,
    offset: float = 0.0,
    size_divisibility: int = 32,
    max_anchors: int = 9,
    tolerance: float = 0.01,
) -> AnchorFit:
    """Choose scales and aspect ratios that reach as many boxes as possible, with few anchors.

    The same input gives the same anchors. They never reach fewer boxes than those before, nor, of
    any class, fewer by more than ``tolerance``: where none such are found, those before are kept.

    Args:
        boxes: (M, 4), (x1, y1, x2, y2) in pixels of the resized images, inside of them.
        image_sizes: (M, 2), width and height of each box's resized image.
        strides: of the L levels: (8, 16, 32, 64, 128) of P3 to P7.
        classes: (M,) int; None: all boxes are of one class.
        sizes, aspect_ratios: the anchors before, of ``MODEL.ANCHOR_GENERATOR``; None: RetinaNet's.
        threshold: the IoU from which on an anchor is foreground.
        offset: ``MODEL.ANCHOR_GENERATOR.OFFSET``.
        size_divisibility: of the backbone, to multiples of which images are padded.
        max_anchors: A, the most anchors at a location.
        tolerance: the share of a class's boxes that may be lost for a gain in all.

    Raises:
        UserError: there are no boxes, or numbers that are no boxes, strides, sizes or ratios.
    """
    boxes, image_sizes = np.asarray(boxes, np.float64), np.asarray(image_sizes, np.float64)
    classes = np.zeros(len(boxes), int) if classes is None else np.asarray(classes)
    _check(boxes, image_sizes, classes, strides)
    classes = np.unique(classes, return_inverse=True)[1].reshape(-1)
    grid = AnchorGrid(tuple(strides), offset, size_divisibility)

    def measured(sizes: list[list[float]], ratios: list[list[float]]) -> Anchors:
        ious = grid.best_iou(boxes, image_sizes, anchor_shapes(sizes, ratios))
        return Anchors(sizes, ratios, ious, threshold)

    before = measured(
        of_levels(
            _sizes(_USUAL_SCALES, strides) if sizes is None else sizes, len(strides), "SIZES"
        ),
        of_levels(aspect_ratios or _USUAL_RATIOS, len(strides), "ASPECT_RATIOS"),
    )
    least = _shares(before.are_reached, classes) - tolerance
    chosen, weights = _sample(classes)
    search = AnchorSearch(
        grid, boxes[chosen], image_sizes[chosen], classes[chosen], weights, least, threshold
    )
    found = [before]
    for scales, ratios in search.grow(max_anchors):
        new = measured(_sizes(scales, strides), [[_rounded(x) for x in ratios]] * len(strides))
        keeps_classes = (_shares(new.are_reached, classes) >= least - 1e-9).all()
        if keeps_classes and new.are_reached.sum() >= before.are_reached.sum():
            found.append(new)
    after = _smallest(found)
    if _is_hardly_better(after, before):
        after = before
    return AnchorFit(before, after, grid.best_iou_of_any_shape(boxes, image_sizes))


def _smallest(found: list[Anchors]) -> Anchors:
    """Those with the fewest anchors at a location of those that are about as good as the best.

    The first are taken where others have as many anchors and are no better.
    """
    enough = max(anchors.coverage for anchors in found) - _AS_GOOD
    good = [anchors for anchors in found if anchors.coverage >= enough]
    enough = max(anchors.ious.mean() for anchors in good) - _AS_GOOD_IOU
    good = [anchors for anchors in good if anchors.ious.mean() >= enough]
    return min(good, key=lambda x: (x.num_anchors, x is not found[0], -x.coverage, -x.ious.mean()))


def _is_hardly_better(after: Anchors, before: Anchors) -> bool:
    """Whether changing anchors, for which a model is trained anew, gains next to nothing."""
    return (
        after.num_anchors >= before.num_anchors
        and after.coverage < before.coverage + _AS_GOOD
        and after.ious.mean() < before.ious.mean() + _AS_GOOD_IOU
    )


def _sizes(scales: Sequence[float], strides: Sequence[int]) -> list[list[float]]:
    return [[_rounded(scale * stride) for scale in scales] for stride in strides]


def _rounded(x: float) -> float:
    return float(f"{x:.4g}")


def _shares(are_reached: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Of each class, the share of its boxes that are reached."""
    return np.bincount(classes, weights=are_reached) / np.bincount(classes)


def _sample(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that stand for all, class after class, and how much each counts.

    Args:
        classes: (M,), 0 to K - 1, each with a box.

    Returns:
        indices (m,) and weights (m,), which sum up to 1.
    """
    order = np.random.default_rng(0).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    counts = np.bincount(classes)
    rank = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = min(1.0, _MOST_SAMPLED / len(classes))
    most = np.maximum(np.ceil(share * counts), _MOST_SAMPLED_OF_CLASSES // len(counts)).clip(1)
    chosen = order[rank < most[classes[order]]]
    weights = (counts / np.minimum(most, counts))[classes[chosen]]
    return chosen, weights / weights.sum()


def _check(
    boxes: np.ndarray, image_sizes: np.ndarray, classes: np.ndarray, strides: Sequence[int]
) -> None:
    if len(boxes) == 0:
        raise UserError("there are no boxes to fit anchors to: give annotations")
    shapes = boxes.shape, image_sizes.shape, classes.shape
    if shapes != ((len(boxes), 4), (len(boxes), 2), (len(boxes),)):
        raise UserError(
            f"boxes, image sizes and classes have the shapes {shapes}: give (M, 4), (M, 2) and (M,)"
        )
    is_box = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not is_box.all():
        bad = boxes[~is_box][0].tolist()
        raise UserError(f"{bad} is no box: give (x1, y1, x2, y2) with x1 < x2 and y1 < y2")
    if not (np.isfinite(image_sizes) & (image_sizes > 0)).all():
        raise UserError("an image has no size: give width and height in pixels")
    if not len(strides) or min(strides) <= 0:
        raise UserError(f"the strides are {strides}: give a positive number for each level")
