"""The best box of every anchor, from pairs of boxes and anchors that come in any order."""

import torch
from torch import Tensor

from .ground_truth import GroundTruth


class BestBoxes:
    """For each anchor of each image, the box with the highest IoU of the pairs added so far.

    Of equal IoUs the first box wins. IoU and box are ranked by one integer: non-negative floats
    order as their bits do, so ``bits * 2^32 - box`` needs one maximum, in any order of pairs.
    Anchor r of image n is at ``n * R + r``.
    """

    def __init__(self, truth: GroundTruth, num_anchors: int) -> None:
        """``truth`` of N images, and R."""
        self.image_of_box, self.first_box = truth.image, truth.first_box
        self.num_anchors = num_anchors
        # So far the first box of the image, at IoU 0.
        self.rank = self._for_all_anchors(-self.first_box)

    def add(self, box: Tensor, anchor: Tensor, iou: Tensor) -> None:
        """Add pairs of boxes and anchors, by their indices (P,), and their IoUs (P,), float32."""
        position = self.image_of_box[box] * self.num_anchors + anchor
        rank = (iou.view(torch.int32).long() << 32) - box
        self.rank.scatter_reduce_(0, position, rank, "amax")

    def set_default(self, box: Tensor) -> None:
        """Give anchors without a pair the first of the boxes ``box`` (P,) that their image has.

        Images that have none of these boxes keep their first box.
        """
        default = self.first_box.scatter_reduce(
            0, self.image_of_box[box], box, "amin", include_self=False
        )
        self.rank = torch.where(self.in_a_pair(), self.rank, self._for_all_anchors(-default))

    def in_a_pair(self) -> Tensor:
        """Whether a pair of IoU above 0 was added of an anchor, (N * R,), bool."""
        return self.rank > 0

    def get(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """IoU and box of the anchors at ``position`` (P,)."""
        rank = self.rank[position]
        box = -rank & 0xFFFFFFFF
        return ((rank + box) >> 32).int().view(torch.float32), box

    def _for_all_anchors(self, of_image: Tensor) -> Tensor:
        return of_image[:, None].repeat(1, self.num_anchors).flatten()
