"""What a matcher gives: the targets of every anchor."""

from typing import NamedTuple

from torch import Tensor


class Targets(NamedTuple):
    """What each of the R anchors of each of the N images is to learn.

    Attributes:
        gt_labels: (N, R), int64: -1 ignored, 0..K-1 a class, K background.
        matched_gt_boxes: (N, R, 4), absolute pixels: the box of a foreground anchor, zeros for
            others.
        gt_qualities: (N, R) in [0, 1]: what the score of a foreground anchor for its own class is
            to be, instead of 1. None where no part asks for it.
    """

    gt_labels: Tensor
    matched_gt_boxes: Tensor
    gt_qualities: Tensor | None = None
