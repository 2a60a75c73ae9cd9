"""Matchers: which anchors are foreground, for which box; in the registry the config chooses from.

``registry.py`` says what a matcher of your own must be, ``targets.py`` what it gives.
``iou_matcher.py`` is the paper's; it gets the IoUs that matter from ``iou_search.py``, or from
``iou_matrix.py`` where shapes have to be fixed. ``atss_matcher.py`` and ``task_aligned_matcher.py``
are others. What any of them says of anchors in regions to ignore, ``ignore_regions.py`` corrects.
"""

from .atss_matcher import ATSSMatcher
from .ground_truth import check_gt_classes, padded_truth, read_ground_truth
from .ignore_regions import (
    check_ignore_threshold,
    ignore_covered,
    padded_regions,
    read_ignore_boxes,
)
from .iou_matcher import IoUMatcher
from .registry import MATCHER_REGISTRY
from .targets import Targets, checked_targets
from .task_aligned_matcher import TaskAlignedMatcher

__all__ = [
    "MATCHER_REGISTRY",
    "ATSSMatcher",
    "IoUMatcher",
    "Targets",
    "TaskAlignedMatcher",
    "check_gt_classes",
    "check_ignore_threshold",
    "checked_targets",
    "ignore_covered",
    "padded_regions",
    "padded_truth",
    "read_ground_truth",
    "read_ignore_boxes",
]
