"""Which levels of the pyramid have anchors, and which anchors."""

from dataclasses import dataclass

import numpy as np

from ..anchor_fit import AnchorFit, fit_anchors
from ..anchor_reach import resized
from ..dataset_facts import DatasetFacts
from ..findings import counted
from .choice import Choice
from .image_size import ImageSize

STRIDES = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
_FEWEST_LEVELS = 3
# A level is for boxes of up to so many of its strides.
_STRIDES_OF_BOX = 8
# An anchor that overlaps a box so much is foreground. Lower than in the paper: there are fewer
# anchors, and objects are few, so that each is to be seen by more of them.
IOU_THRESHOLDS = [0.3, 0.4]
_MOST_ANCHORS = 6


@dataclass(frozen=True)
class AnchorPlan:
    """Anchors of some levels, P3 first, and what they reach."""

    levels: list[str]
    fit: AnchorFit
    classes: np.ndarray  # (M,), of the boxes that were fitted to
    sides: np.ndarray  # (M, 2), width and height of these boxes after resizing, pixels

    def choices(self) -> list[Choice]:
        before, after = self.fit.before.coverage, self.fit.after.coverage
        largest = np.sqrt(self.sides.prod(axis=1)).max()
        count = self.fit.after.num_anchors
        return [
            Choice(
                "MODEL.RETINANET.IN_FEATURES",
                self.levels,
                f"objects have up to {largest:.0f} pixels after resizing",
            ),
            Choice(
                "MODEL.ANCHOR_GENERATOR.SIZES",
                self.fit.after.sizes,
                f"they reach {after:.1%} of the boxes, RetinaNet's own {before:.1%}",
            ),
            Choice(
                "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
                self.fit.after.aspect_ratios[:1],
                f"height / width; {counted(count, 'anchor', 'anchors')} at a location",
            ),
        ]


def plan_anchors(facts: DatasetFacts, size: ImageSize) -> AnchorPlan:
    """Anchors for the boxes as they are after resizing."""
    new_sizes = resized(facts.sizes, size.short_edge, size.max_size)[facts.image_of]
    boxes = np.clip(
        facts.boxes * np.tile(new_sizes / facts.sizes[facts.image_of], 2), 0, np.tile(new_sizes, 2)
    )
    is_left = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & ~facts.is_crowd
    boxes, new_sizes, classes = boxes[is_left], new_sizes[is_left], facts.classes[is_left]
    sides = boxes[:, 2:] - boxes[:, :2]
    levels = choose_levels(np.sqrt(sides.prod(axis=1)))
    fit = fit_anchors(
        boxes,
        new_sizes,
        [STRIDES[level] for level in levels],
        classes=classes,
        threshold=IOU_THRESHOLDS[-1],
        max_anchors=_MOST_ANCHORS,
    )
    return AnchorPlan(levels, fit, classes, sides)


def choose_levels(sides: np.ndarray) -> list[str]:
    """P3 to the level whose anchors are as large as the largest boxes, at least to P5.

    Args:
        sides: (M,), roots of the areas of the boxes after resizing, pixels.
    """
    largest = np.quantile(sides, 0.95)
    count = sum(stride * _STRIDES_OF_BOX < largest for stride in STRIDES.values()) + 1
    return list(STRIDES)[: min(max(count, _FEWEST_LEVELS), len(STRIDES))]
