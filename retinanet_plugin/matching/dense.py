"""The IoUs of all anchors and boxes, in fixed shapes: for GPUs, which it never waits for."""

import torch

from .blocks import iou_of

# Memory in bytes, temporaries included, for one pair of a box and an anchor.
DENSE_PAIR_BYTES = 20


class BestOffers:
    """For each anchor of each image, the best value offered so far and the box that it came with.

    Attributes: ``value`` (N, R), float32; ``box`` (N, R), int64, the index of a box in its image.
    """

    def __init__(self, shape, lowest, device):
        """``shape`` is (N, R). So far: the value ``lowest`` and box 0."""
        self.value = torch.full(shape, lowest, device=device)
        self.box = torch.zeros(shape, dtype=torch.int64, device=device)

    def offer(self, values, first_box):
        """Offer values (N, C, R) of C boxes, which come after all others; of equal ones the first
        box wins."""
        value, box = values.max(1)
        better = value > self.value
        self.value = torch.where(better, value, self.value)
        self.box = torch.where(better, box + first_box, self.box)


def dense_search(anchors, boxes, is_box, max_bytes):
    """The best box of each anchor, and the box of which an anchor is the best one.

    Args:
        anchors (Tensor): (R, 4), absolute pixels.
        boxes (Tensor): (N, M, 4), absolute pixels, padded with zeros.
        is_box (Tensor): (N, M), bool: which are not padding.
        max_bytes (int): about the memory to take for each of the N images, next to the results.

    Returns:
        tuple[BestOffers, BestOffers]: of each anchor's IoUs with all boxes, from 0 and box 0; and
        of its IoUs with those boxes that no anchor overlaps more, from -1. A box that no anchor
        overlaps is offered to all of them, at IoU 0.
    """
    shape = len(boxes), len(anchors)
    best = BestOffers(shape, 0.0, boxes.device)
    cause = BestOffers(shape, -1.0, boxes.device)
    step = max(1, max_bytes // (DENSE_PAIR_BYTES * len(anchors)))
    for start in range(0, boxes.shape[1], step):
        some_boxes, some_are = boxes[:, start : start + step], is_box[:, start : start + step]
        iou = iou_of(some_boxes.unsqueeze(-1).unbind(2), anchors.unbind(1))  # (N, step, R)
        best.offer(iou, start)
        causes = (iou == iou.amax(2, keepdim=True)) & some_are.unsqueeze(2)
        cause.offer(iou.masked_fill_(~causes, -1), start)
    return best, cause
