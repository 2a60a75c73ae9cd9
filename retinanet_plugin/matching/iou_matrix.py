"""What IoUMatcher needs of the whole IoU matrix, in fixed shapes: for GPUs, which it never waits
for, and wherever values cannot be read."""

import functools
from types import ModuleType

import torch
from torch import Tensor

from ..box_iou import box_iou
from ..eager import is_eager
from ..triton_kernels import working_kernel

# Memory in bytes, temporaries included, for one pair of a box and an anchor.
MATRIX_PAIR_BYTES = 20


class RunningMax:
    """For each anchor of each image, the highest value so far and the box that it came with.

    Attributes: ``value`` (N, R); ``box`` (N, R), int64, the index of a box in its image.
    """

    def __init__(self, value: Tensor, box: Tensor | None = None) -> None:
        """``value`` (N, R): the values so far, and their boxes; None: of box 0."""
        self.value = value
        self.box = torch.zeros_like(value, dtype=torch.int64) if box is None else box

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

    On a GPU two kernels find them, where Triton runs; else this makes the matrix in parts.

    Args:
        anchors: (R, 4), absolute pixels; R > 0.
        boxes: (N, M, 4), absolute pixels, padded with zeros.
        is_box: (N, M), bool: which are not padding.
        max_bytes: about the memory to take for each of the N images, next to the results; the
            kernels take none.

    Returns:
        of each anchor's IoUs with all boxes, from 0 and box 0; and of its IoUs with those boxes
        that no anchor overlaps more, from -1 (a box *claims* the anchors that have its best IoU;
        one that no anchor overlaps claims them all, at IoU 0).
    """
    kernel = _kernel(anchors, boxes)
    if kernel is not None:
        best, claims = kernel.search(anchors, boxes, is_box)
        return RunningMax(*best), RunningMax(*claims)
    return _search_in_parts(anchors, boxes, is_box, max_bytes)


def _search_in_parts(
    anchors: Tensor, boxes: Tensor, is_box: Tensor, max_bytes: int
) -> tuple[RunningMax, RunningMax]:
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


def _kernel(anchors: Tensor, boxes: Tensor) -> ModuleType | None:
    """The module ``iou_triton`` where it runs and takes these boxes."""
    tensors = anchors, boxes
    if not all(x.is_cuda and x.dtype == torch.float32 for x in tensors) or not is_eager(*tensors):
        return None
    return _tried_kernel(anchors.device)


@functools.cache
def _tried_kernel(device: torch.device) -> ModuleType | None:
    return working_kernel(
        "matching", "matching.iou_triton", device, lambda kernel: _compare(kernel, device)
    )


def _compare(kernel: ModuleType, device: torch.device | str) -> None:
    """Two images with boxes alike, apart, of no size and in the padding.

    Raises:
        ArithmeticError: a bit is not what PyTorch's operations give.
    """
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1000, 2, generator=generator) * 100
    anchors = torch.cat([corners, corners + torch.rand(1000, 2, generator=generator) * 40], dim=1)
    boxes = anchors[:24].repeat(2, 1).view(2, 24, 4) + torch.rand(2, 24, 1, generator=generator)
    boxes[0, 3], boxes[0, 5:7], boxes[1, 2] = boxes[0, 2], 1e4, boxes[1, 2, [0, 1, 0, 1]]
    is_box = torch.arange(24) < torch.tensor([[9], [20]])
    boxes[~is_box] = 0
    arguments = anchors.to(device), boxes.to(device), is_box.to(device)
    for found, right in zip(kernel.search(*arguments), _search_in_parts(*arguments, 2**20)):
        if not (torch.equal(found[0], right.value) and torch.equal(found[1], right.box)):
            raise ArithmeticError("the kernel does not give PyTorch's IoUs and boxes")
