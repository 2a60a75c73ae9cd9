"""What ``matrix_search`` finds, in two GPU kernels, written in Triton: no IoU matrix is made.

Importing this file needs Triton, which PyTorch's CUDA builds bring.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_SIZE = 256  # anchors of a program
# A product that is added without rounding it first would make other bits than PyTorch's.
_AS_PYTORCH_ROUNDS = {"enable_fp_fusion": False}
_NAN = tl.constexpr(tl.PropagateNan.ALL)


def search(
    anchors: Tensor, boxes: Tensor, is_box: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Values and boxes of the two results of ``matrix_search``, to the last bit.

    Args:
        anchors: (R, 4), float32; R > 0.
        boxes: (N, M, 4), float32.
        is_box: (N, M), bool.
    """
    num_images, num_boxes = is_box.shape
    anchors, boxes, is_box = anchors.contiguous(), boxes.contiguous(), is_box.contiguous()
    shape = num_images, len(anchors)
    values = anchors.new_empty(2, *shape)
    indices = torch.empty_like(values, dtype=torch.int64)
    # The best IoU of each box, as bits: those of non-negative floats order as the floats do.
    box_best = torch.zeros_like(is_box, dtype=torch.int32)
    grid = triton.cdiv(len(anchors), _BLOCK_SIZE), num_images
    sizes = len(anchors), num_boxes, _BLOCK_SIZE
    # Triton launches on the current device, which need not be the anchors'.
    with torch.cuda.device_of(anchors):
        _best_kernel[grid](
            anchors, boxes, values[0], indices[0], box_best, *sizes, **_AS_PYTORCH_ROUNDS
        )
        _claims_kernel[grid](
            anchors, boxes, is_box, values[1], indices[1], box_best, *sizes, **_AS_PYTORCH_ROUNDS
        )
    return (values[0], indices[0]), (values[1], indices[1])


@triton.jit
def _best_kernel(
    anchors,  # (R, 4)
    boxes,  # (N, M, 4)
    best_value,  # (N, R), written
    best_box,  # (N, R), written
    box_best,  # (N, M), int32: bits of the best IoUs, updated
    num_anchors,
    num_boxes,
    BLOCK_SIZE: tl.constexpr,
):
    image = tl.program_id(1)
    place, in_bounds, x1, y1, x2, y2 = _anchors_of_program(anchors, num_anchors, BLOCK_SIZE)
    value = tl.zeros([BLOCK_SIZE], tl.float32)
    box = tl.zeros([BLOCK_SIZE], tl.int64)
    for m in range(num_boxes):
        row = image * num_boxes + m
        iou = _iou_with(boxes + 4 * row, x1, y1, x2, y2)
        better = iou > value
        value = tl.where(better, iou, value)
        box = tl.where(better, m, box)
        highest = tl.max(iou, axis=0)  # those out of bounds are empty boxes: 0
        bits = highest.to(tl.int32, bitcast=True)
        tl.atomic_max(box_best + row, bits, mask=highest > 0)
    tl.store(best_value + place, value, mask=in_bounds)
    tl.store(best_box + place, box, mask=in_bounds)


@triton.jit
def _claims_kernel(
    anchors,  # (R, 4)
    boxes,  # (N, M, 4)
    is_box,  # (N, M)
    claim_value,  # (N, R), written
    claim_box,  # (N, R), written
    box_best,  # (N, M), int32, from _best_kernel
    num_anchors,
    num_boxes,
    BLOCK_SIZE: tl.constexpr,
):
    image = tl.program_id(1)
    place, in_bounds, x1, y1, x2, y2 = _anchors_of_program(anchors, num_anchors, BLOCK_SIZE)
    value = tl.full([BLOCK_SIZE], -1.0, tl.float32)
    box = tl.zeros([BLOCK_SIZE], tl.int64)
    for m in range(num_boxes):
        row = image * num_boxes + m
        iou = _iou_with(boxes + 4 * row, x1, y1, x2, y2)
        best = tl.load(box_best + row).to(tl.float32, bitcast=True)
        better = tl.load(is_box + row) & (iou == best) & (iou > value)
        value = tl.where(better, iou, value)
        box = tl.where(better, m, box)
    tl.store(claim_value + place, value, mask=in_bounds)
    tl.store(claim_box + place, box, mask=in_bounds)


@triton.jit
def _anchors_of_program(anchors, num_anchors, BLOCK_SIZE: tl.constexpr):
    """Their places in a result (N, R), which of them there are, and their corners."""
    anchor = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    in_bounds = anchor < num_anchors
    corner = anchors + 4 * anchor
    return (
        tl.program_id(1).to(tl.int64) * num_anchors + anchor,
        in_bounds,
        tl.load(corner, mask=in_bounds, other=0.0),
        tl.load(corner + 1, mask=in_bounds, other=0.0),
        tl.load(corner + 2, mask=in_bounds, other=0.0),
        tl.load(corner + 3, mask=in_bounds, other=0.0),
    )


@triton.jit
def _iou_with(box, x1, y1, x2, y2):
    """As ``box_iou`` in ``box_iou.py``, of one box and the anchors of a program."""
    bx1, by1, bx2, by2 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    w = tl.minimum(bx2, x2, _NAN) - tl.maximum(bx1, x1, _NAN)
    h = tl.minimum(by2, y2, _NAN) - tl.maximum(by1, y1, _NAN)
    inter = tl.maximum(w, 0.0) * tl.maximum(h, 0.0)
    union = ((bx2 - bx1) * (by2 - by1) + (x2 - x1) * (y2 - y1)) - inter
    return tl.where(inter > 0, tl.div_rn(inter, union), 0.0)
