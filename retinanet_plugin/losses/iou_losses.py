"""IoU, and GIoU, DIoU and CIoU losses, of pairs of boxes.

The values of fvcore's and Detectron2's, which index by masks and check boxes: both wait for a GPU.
All take boxes (F, 4), x1 y1 x2 y2 with x1 <= x2 and y1 <= y2, and return numbers (F,).
"""

import math

import torch
from torch import Tensor

# Keeps the division by a union or a diagonal of 0 finite, as in fvcore.
EPS = 1e-7


def box_iou(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """IoU in [0, 1]."""
    inter, union = _intersection_and_union(boxes, gt_boxes)
    return inter / (union + EPS)


def giou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., arXiv 1902.09630, algorithm 2)."""
    inter, union = _intersection_and_union(boxes, gt_boxes)
    w, h = _enclosing(boxes, gt_boxes)
    area = w * h
    return 1 - (inter / (union + EPS) - (area - union) / (area + EPS))


def diou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """1 - IoU + squared distance of centres / diagonal (Zheng et al., arXiv 1911.08287, eq. 7)."""
    inter, union = _intersection_and_union(boxes, gt_boxes)
    return 1 - inter / (union + EPS) + _center_distance(boxes, gt_boxes)


def ciou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """DIoU loss + alpha v, v between the aspect ratios (arXiv 1911.08287, eq. 8 to 11)."""
    inter, union = _intersection_and_union(boxes, gt_boxes)
    iou = inter / (union + EPS)
    angle, gt_angle = (torch.atan(w / h) for w, h in (_size(boxes), _size(gt_boxes)))
    v = (4 / math.pi**2) * (gt_angle - angle) ** 2
    alpha = (v / (1 - iou + v + EPS)).detach()
    return 1 - iou + _center_distance(boxes, gt_boxes) + alpha * v


def _size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(1)
    return x2 - x1, y2 - y1


def _intersection_and_union(boxes: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(1)
    gx1, gy1, gx2, gy2 = gt_boxes.unbind(1)
    w = torch.min(x2, gx2) - torch.max(x1, gx1)
    h = torch.min(y2, gy2) - torch.max(y1, gy1)
    # Boxes that only touch have no gradient, as in stock.
    inter = torch.where((w > 0) & (h > 0), w * h, w.new_zeros(()))
    return inter, (x2 - x1) * (y2 - y1) + (gx2 - gx1) * (gy2 - gy1) - inter


def _enclosing(boxes: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(1)
    gx1, gy1, gx2, gy2 = gt_boxes.unbind(1)
    return torch.max(x2, gx2) - torch.min(x1, gx1), torch.max(y2, gy2) - torch.min(y1, gy1)


def _center_distance(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Squared, divided by that of the enclosing box's corners."""
    w, h = _enclosing(boxes, gt_boxes)
    x1, y1, x2, y2 = boxes.unbind(1)
    gx1, gy1, gx2, gy2 = gt_boxes.unbind(1)
    dx, dy = (x2 + x1) / 2 - (gx1 + gx2) / 2, (y2 + y1) / 2 - (gy1 + gy2) / 2
    return (dx**2 + dy**2) / (w**2 + h**2 + EPS)
