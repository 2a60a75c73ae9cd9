"""IoU of boxes and anchors where it matters, found through blocks of neighbouring anchors."""

from collections.abc import Iterator

import torch
from detectron2.structures import Boxes
from torch import Tensor

from ..box_iou import box_iou

# Anchors of a block: smaller blocks have sharper bounds, larger ones are fewer to bound.
BLOCK = 128
# Memory in bytes, temporaries included, for one pair of a box and a block in `iou_bound`, and for
# one pair of a box and an anchor in `iou` and in the caller's use of it.
BOUND_BYTES, PAIR_BYTES = 40, 100
# More than float32 rounding can add to an IoU, so that a bound is one in spite of it.
ROUNDING = 1e-4


class AnchorBlocks:
    """S anchors, cut into blocks of neighbours that are looked at or skipped together.

    A box overlaps few anchors well, so nearly all of its row of an IoU matrix is of no interest.
    Anchors that follow each other in a level lie near each other, so the hull of a block and its
    extreme sizes bound the IoU of a box with all its anchors. Nothing else is assumed of the
    anchors' order: a poor order makes bounds loose and the search slow, never wrong.
    """

    def __init__(self, anchors: list[Boxes], max_bytes: int) -> None:
        """
        Args:
            anchors: S in all, absolute pixels; S > 0.
            max_bytes: about the memory that a method may take.
        """
        self.num_anchors = sum(len(boxes) for boxes in anchors)
        parts = [boxes.tensor.float() for boxes in anchors if len(boxes) > 0]
        # The last block is filled up with the last anchor: seen twice, it changes no maximum.
        parts.append(parts[-1][-1:].expand(-self.num_anchors % BLOCK, 4))
        # Each coordinate by itself, since copies of single columns are fast: (blocks, BLOCK).
        columns = zip(*(part.unbind(1) for part in parts))
        self.anchors = [torch.cat(column).view(-1, BLOCK) for column in columns]
        x1, y1, x2, y2 = self.anchors
        w, h = x2 - x1, y2 - y1
        self.hull = x1.amin(1), y1.amin(1), x2.amax(1), y2.amax(1)
        self.max_size = w.amax(1), h.amax(1)
        self.min_area = w.mul_(h).amin(1)
        num_blocks = len(x1)
        self.max_boxes = max(1, max_bytes // (BOUND_BYTES * num_blocks + PAIR_BYTES * 2 * BLOCK))
        self.max_pairs = max(1, max_bytes // (PAIR_BYTES * BLOCK))

    def box_chunks(self, num_boxes: int) -> list[tuple[int, int]]:
        """Ranges (start, stop) of boxes whose bounds fit into memory."""
        starts = range(0, num_boxes, self.max_boxes)
        return [(start, min(start + self.max_boxes, num_boxes)) for start in starts]

    def iou_bound(self, boxes: Tensor) -> Tensor:
        """What no IoU of boxes (M, 4) with an anchor of each block exceeds, (M, blocks).

        An intersection i is at most that with the hull and, each way, the largest anchor. The
        union is the box's area plus what the anchor has outside of i, at least min_area - i.
        NaN, of which nothing is known, where both are empty or a coordinate is NaN.
        """
        bx1, by1, bx2, by2 = boxes[:, :, None].unbind(1)
        x1, y1, x2, y2 = self.hull
        w, h = self.max_size
        inter = torch.min(bx2, x2).sub_(torch.max(bx1, x1)).clamp_(min=0)
        inter = torch.min(inter, w)
        inter *= torch.min(torch.min(by2, y2).sub_(torch.max(by1, y1)).clamp_(min=0), h)
        union = (self.min_area - inter).clamp_(min=0).add_((bx2 - bx1) * (by2 - by1))
        return inter.mul_(1 + ROUNDING).div_(union)

    def good_iou(self, boxes: Tensor, bound: Tensor) -> Tensor:
        """An IoU (M,) that some anchor has with each box, mostly the best one or nearly so.

        It is the best of the two blocks of the highest bound; where bounds are equal, of those
        with the smallest hull, since a block that goes on in the next row of a level spans it all.
        """
        x1, y1, x2, y2 = self.hull
        hull_area = (x2 - x1) * (y2 - y1)
        likely = bound * (1 - ROUNDING * hull_area / hull_area.max())
        block = likely.topk(min(2, likely.shape[1]), dim=1).indices
        box = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(block)
        iou = self.iou(boxes[box.flatten()], block.flatten())
        return iou.view(len(boxes), -1).amax(1)

    def iou(self, boxes: Tensor, block: Tensor) -> Tensor:
        """IoU (P, BLOCK) of each of the boxes (P, 4) with the anchors of its block (P,)."""
        anchors = [coordinate.index_select(0, block) for coordinate in self.anchors]
        return box_iou(boxes[:, :, None].unbind(1), anchors)

    def pairs(
        self, boxes: Tensor, box: Tensor, block: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """IoUs of pairs of boxes and blocks, as many at once as fit into memory.

        Args:
            boxes: (M, 4).
            box, block: (P,), int64.

        Yields:
            box (Q,), block (Q,) and IoU (Q, BLOCK), of Q pairs each time.
        """
        for some_box, some_block in zip(box.split(self.max_pairs), block.split(self.max_pairs)):
            yield some_box, some_block, self.iou(boxes[some_box], some_block)

    def reaching(
        self, min_iou: float | Tensor, box: Tensor, block: Tensor, iou: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of what :meth:`pairs` yields: box, anchor and IoU where the IoU is >= min_iou."""
        row, column = (iou >= min_iou).nonzero(as_tuple=True)
        anchor = (block[row] * BLOCK + column).clamp_(max=self.num_anchors - 1)
        return box[row], anchor, iou[row, column]
