"""What IoUMatcher needs of the whole IoU matrix, in fixed shapes: for GPUs, which it never waits
for, and wherever values cannot be read."""

import torch
from torch import Tensor

from .box_iou import box_iou

# Memory in bytes, temporaries included, for one pair of a box and an anchor.
MATRIX_PAIR_BYTES = 20


class RunningMax:
    """For each anchor of each image, the highest value so far and the box that it came with.

    Attributes: ``value`` (N, R); ``box`` (N, R), int64, the index of a box in its image.
    """

    def __init__(self, start: Tensor) -> None:
        """``start`` (N, R): the values so far, of box 0."""
        self.value = start
        self.box = torch.zeros_like(start, dtype=torch.int64)

    def update(self, values: Tensor, first_box: int) -> None:
        """Take in values (N, C, R) of the C boxes from ``first_box`` on, which come after all
        others: of equal values the first box's counts."""
        value, box = values.max(1)
        better = value > self.value
        self.value = torch.where(better, value, self.value)
        self.box = torch.where(better, box + first_box, self.box)


def matrix_search(
    anchors: Tensor, boxes: Tensor, is_box: Tensor, max_bytes: int
) -> tuple[RunningMax, RunningMax]:
    """The best box of each anchor, and the box of which an anchor is the best one.

    Args:
        anchors: (R, 4), absolute pixels; R > 0.
        boxes: (N, M, 4), absolute pixels, padded with zeros.
        is_box: (N, M), bool: which are not padding.
        max_bytes: about the memory to take for each of the N images, next to the results.

    Returns:
        of each anchor's IoUs with all boxes, from 0 and box 0; and of its IoUs with those boxes
        that no anchor overlaps more, from -1 (a box *claims* the anchors that have its best IoU;
        one that no anchor overlaps claims them all, at IoU 0).
    """
    dtype = torch.promote_types(anchors.dtype, boxes.dtype)
    shape = len(boxes), len(anchors)
    best = RunningMax(boxes.new_zeros(shape, dtype=dtype))
    claims = RunningMax(boxes.new_full(shape, -1, dtype=dtype))
    step = max(1, max_bytes // (MATRIX_PAIR_BYTES * len(anchors)))
    chunks = zip(boxes.split(step, dim=1), is_box.split(step, dim=1))
    for index, (some_boxes, some_are) in enumerate(chunks):
        iou = box_iou(some_boxes.unsqueeze(-1).unbind(2), anchors.unbind(1))  # (N, step, R)
        best.update(iou, index * step)
        claimed = (iou == iou.amax(2, keepdim=True)) & some_are.unsqueeze(2)
        claims.update(iou.masked_fill_(~claimed, -1), index * step)
    return best, claims
