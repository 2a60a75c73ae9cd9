"""What a matcher gives: the targets of every anchor."""

from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..errors import UserError, described


class Targets(NamedTuple):
    """What each of the R anchors of each of the N images is to learn.

    Attributes:
        gt_labels: (N, R), int64: -1 ignored, 0..K-1 a class, K background.
        matched_gt_boxes: (N, R, 4), absolute pixels: the box of a foreground anchor, zeros for
            others.
        gt_qualities: (N, R) in [0, 1]: what the score of a foreground anchor for its own class is
            to be, instead of 1. None where no part asks for it.
    """

    gt_labels: Tensor
    matched_gt_boxes: Tensor
    gt_qualities: Tensor | None = None


def checked_targets(found: Any, anchors: list[Boxes], gt_instances: list[Instances]) -> Targets:
    """What a matcher returned, which projects that build on this one write themselves.

    Raises:
        UserError: it is not what :class:`Targets` holds.
    """
    shape = len(gt_instances), sum(len(boxes) for boxes in anchors)
    if (
        isinstance(found, tuple)
        and len(found) in (2, 3)
        and isinstance(found[0], Tensor)
        and isinstance(found[1], Tensor)
        and found[0].shape == shape
        and found[1].shape == (*shape, 4)
        and not (found[0].is_floating_point() or found[0].dtype == torch.bool)
        and (len(found) == 2 or _are_qualities(found[2], shape))
    ):
        return Targets(*found)
    raise UserError(
        f"the matcher returns {described(found)}: return gt_labels of shape {shape}, int64, and "
        f"matched_gt_boxes of shape {(*shape, 4)}, and, optional, gt_qualities of shape {shape}, "
        "float32"
    )


def _are_qualities(found: Any, shape: tuple[int, ...]) -> bool:
    return found is None or (
        isinstance(found, Tensor) and found.shape == shape and found.is_floating_point()
    )
