"""Score voting: boxes averaged with those that NMS took out (PAA, arXiv 2007.08103, 3.3)."""

import sys

import torch
from torch import Tensor

from .box_iou import box_iou

# How fast the say of a box in a vote falls with its distance, as in PAA's section 3.3.
VOTING_SIGMA = 0.025
# Boxes that overlap less have none, as in PAA's code.
VOTING_MIN_IOU = 0.01
# Pairs of a detection and a candidate that vote at once.
_VOTES_AT_ONCE = 2**21


def voted_boxes(keep: Tensor, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    """The boxes of detections after all candidates of an image have voted, in bounded memory.

    Args:
        keep: (D,), the detections among the candidates.
        boxes, scores, classes: (C, 4), absolute pixels, (C,) and (C,), of all candidates.

    Returns:
        Tensor: (D, 4).
    """
    return torch.cat(
        [
            score_voting(boxes[rows], classes[rows], boxes, scores, classes)
            for rows in keep.split(_voted_at_once(boxes))
        ]
    )


def score_voting(
    boxes: Tensor, classes: Tensor, voters: Tensor, scores: Tensor, voter_classes: Tensor
) -> Tensor:
    """Boxes averaged with those that NMS took out.

    A box of the same class has the weight ``score * exp(-(1 - IoU)^2 / 0.025)``.

    Args:
        boxes, classes: (D, 4), absolute pixels, and (D,), of detections.
        voters, scores, voter_classes: (C, 4), (C,) and (C,), of all candidates, detections too.

    Returns:
        Tensor: (D, 4).
    """
    iou = box_iou(boxes[:, :, None].unbind(1), voters.t().contiguous().unbind())  # (D, C)
    has_a_say = (classes[:, None] == voter_classes) & (iou > VOTING_MIN_IOU)
    # Of many candidates, a condition or memory for each step would take most of the time.
    weights = (1 - iou).square_().div_(-VOTING_SIGMA).exp_().mul_(scores).mul_(has_a_say)
    total = weights.sum(1, keepdim=True)
    # No product of matrices: autocast and TF32 would round coordinates to 8 or 11 bits.
    sums = torch.stack([(weights * side).sum(1) for side in voters.unbind(1)], dim=1)
    # A box without an area overlaps not even itself.
    return torch.where(total > 0, sums / total, boxes)


def _voted_at_once(voters: Tensor) -> int:
    """For how many detections all candidates (C, 4) vote together, within bounded memory."""
    if torch.jit.is_tracing():  # which would keep how many candidates an image has
        return sys.maxsize
    return max(1, _VOTES_AT_ONCE // max(1, len(voters)))
