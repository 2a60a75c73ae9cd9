"""The IoU of boxes, element by element."""

from collections.abc import Sequence

import torch
from torch import Tensor


def box_iou(boxes: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """IoU of boxes, element by element: Detectron2's ``pairwise_iou`` to the last bit.

    Args:
        boxes, others: x1, y1, x2, y2 in absolute pixels, of shapes that broadcast.

    Returns:
        IoU in [0, 1], of the broadcast shape; 0 where the boxes do not overlap.
    """
    ax1, ay1, ax2, ay2 = boxes
    bx1, by1, bx2, by2 = others
    inter = torch.min(ax2, bx2).sub_(torch.max(ax1, bx1)).clamp_(min=0)
    inter *= torch.min(ay2, by2).sub_(torch.max(ay1, by1)).clamp_(min=0)
    union = ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)).sub_(inter)
    return inter.div_(union).nan_to_num_(0.0)  # of 0 / 0, and faster than a condition
