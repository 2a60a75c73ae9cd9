"""Boxes to deltas and back: Detectron2's ``Box2BoxTransform`` to the last bit, but for its checks.

Those look at values, for which a GPU has to be waited for, so that no CUDA graph can hold them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Predicted sides grow to at most 1000 / 16 times those of the anchor, as in Detectron2.
SCALE_CLAMP = math.log(1000.0 / 16)


def deltas_of(anchors: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Deltas (F, 4) from anchors (F, 4) to boxes (F, 4), both in absolute pixels.

    ``weights`` (four floats) are the factors of dx, dy, dw, dh. A side of no length gives -inf.
    """
    anchor_x, anchor_y, anchor_w, anchor_h = _center_and_size(anchors)
    x, y, w, h = _center_and_size(boxes)
    wx, wy, ww, wh = weights
    return torch.stack(
        (
            wx * (x - anchor_x) / anchor_w,
            wy * (y - anchor_y) / anchor_h,
            ww * torch.log(w / anchor_w),
            wh * torch.log(h / anchor_h),
        ),
        dim=1,
    )


def boxes_of(deltas: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes (F, 4) that deltas (F, 4) make of anchors (F, 4); the inverse of :func:`deltas_of`."""
    anchor_x, anchor_y, anchor_w, anchor_h = _center_and_size(anchors)
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(1), weights))
    x = dx * anchor_w + anchor_x
    y = dy * anchor_h + anchor_y
    half_w = 0.5 * (torch.exp(dw.clamp(max=SCALE_CLAMP)) * anchor_w)
    half_h = 0.5 * (torch.exp(dh.clamp(max=SCALE_CLAMP)) * anchor_h)
    return torch.stack((x - half_w, y - half_h, x + half_w, y + half_h), dim=1)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(1)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h
