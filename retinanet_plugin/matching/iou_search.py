"""The pairs of boxes and anchors that matter to IoUMatcher, found without the whole IoU matrix."""

import torch
from detectron2.structures import Boxes
from torch import Tensor

from .best_boxes import BestBoxes
from .ground_truth import GroundTruth
from .iou_blocks import AnchorBlocks

# The smallest IoU above 0 in float32: pairs that do not overlap at all are never of interest.
ANY_OVERLAP = 2.0**-149


def search(
    anchors: list[Boxes], truth: GroundTruth, min_iou: float, max_bytes: int
) -> tuple[BestBoxes, BestBoxes, Tensor]:
    """The best boxes of anchors and the best anchors of boxes.

    Args:
        anchors: of each level, absolute pixels; one or more in all.
        truth: one box or more.
        min_iou: pairs below it do not matter to the anchor; above 0.
        max_bytes: about the memory to work in, next to the results.

    Returns:
        of each anchor, its best box of IoU >= min_iou; of each anchor, the best of those boxes
        that no anchor overlaps more (a box *claims* the anchors that have its best IoU); and the
        best IoU (M,) of each box.
    """
    num_anchors = sum(len(boxes) for boxes in anchors)
    best, claims = BestBoxes(truth, num_anchors), BestBoxes(truth, num_anchors)
    blocks = AnchorBlocks(anchors, max_bytes)
    boxes, best_iou = truth.boxes, truth.boxes.new_empty(len(truth.boxes))
    for start, stop in blocks.box_chunks(len(boxes)):
        bound = blocks.iou_bound(boxes[start:stop])
        good_iou = blocks.good_iou(boxes[start:stop], bound)
        # A bound that is NaN says nothing: look.
        wanted = (bound < good_iou.clamp(ANY_OVERLAP, min_iou)[:, None]).logical_not_()
        box, block = wanted.nonzero(as_tuple=True)
        box += start
        block_ious = [good_iou[:0]]
        for pairs in blocks.pairs(boxes, box, block):
            best.add(*blocks.reaching(min_iou, *pairs))
            block_ious.append(pairs[-1].amax(1))
        block_iou = torch.cat(block_ious)
        best_iou[start:stop] = good_iou
        best_iou.scatter_reduce_(0, box, block_iou, "amax")
        # Only now is a box's best IoU known: look again at the few blocks that have it.
        again = ((block_iou == best_iou[box]) & (block_iou > 0)).nonzero().squeeze(1)
        for pairs in blocks.pairs(boxes, box[again], block[again]):
            claims.add(*blocks.reaching(best_iou[pairs[0], None], *pairs))
    return best, claims, best_iou


def add_all_overlaps(
    best: BestBoxes, index: Tensor, anchors: list[Boxes], truth: GroundTruth, max_bytes: int
) -> None:
    """Add to ``best`` every box that overlaps the anchors ``index`` (S,), however little."""
    if len(index) == 0:
        return
    blocks = AnchorBlocks([Boxes.cat(anchors)[index]], max_bytes)
    for start, stop in blocks.box_chunks(len(truth.boxes)):
        bound = blocks.iou_bound(truth.boxes[start:stop])
        box, block = (bound < ANY_OVERLAP).logical_not_().nonzero(as_tuple=True)
        for pairs in blocks.pairs(truth.boxes, box + start, block):
            box_of_pair, anchor, iou = blocks.reaching(ANY_OVERLAP, *pairs)
            best.add(box_of_pair, index[anchor], iou)
