"""What only foreground anchors have: a box loss, and how good a predicted box is."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import UserError, described
from .box_deltas import boxes_of
from .iou_losses import box_iou

# Deltas, anchors and matched boxes of rows, each (F, 4).
Rows = tuple[Tensor, Tensor, Tensor]


def foreground_box_loss(
    box_loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    foreground: Tensor,
    pred_anchor_deltas: list[Tensor],
    anchors: list[Boxes],
    matched_gt_boxes: Tensor,
    masked: bool,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of a box loss over the foreground anchors of a batch.

    Args:
        box_loss: see :meth:`SmoothL1BoxLoss.forward`.
        foreground: (N, R), bool.
        pred_anchor_deltas: of each level, (N, Hi, Wi, A, 4).
        anchors: of each level, Hi*Wi*A boxes, absolute pixels.
        matched_gt_boxes: (N, R, 4), absolute pixels; read where there is foreground.
        masked: give ``box_loss`` every anchor, with a perfect prediction where it is not
            foreground, instead of picking out those that are. More work in fixed shapes, for which
            no GPU has to be waited for.
        weights: (N, R), of the foreground anchors' losses in the sum; None: 1.

    Returns:
        Tensor: a float32 scalar (float64 for float64 deltas); without foreground exactly 0, with
        gradients of 0.

    Raises:
        UserError: ``box_loss`` returns something else than a loss for each row.
    """
    if masked:
        pred_anchor_deltas, anchors = _one_level(pred_anchor_deltas, anchors)
    sums = []
    levels = _rows_of_levels(foreground, pred_anchor_deltas, anchors, matched_gt_boxes, masked)
    weights_of_levels = _split(weights, anchors) if weights is not None else [None] * len(anchors)
    for (is_fg, rows), level_weights in zip(levels, weights_of_levels):
        losses = box_loss(*rows)
        if not isinstance(losses, Tensor) or losses.shape != rows[0].shape[:1]:
            raise UserError(
                f"the box loss returns {described(losses)}: return one loss "
                "for each row of boxes, shape (rows,)"
            )
        if level_weights is not None:
            losses = losses * (level_weights.flatten() if masked else level_weights[is_fg])
        if masked:
            losses = losses.masked_fill(~is_fg.flatten(), 0)
        sums.append(losses.sum())
    return torch.stack(sums).sum()


@torch.no_grad()
def iou_qualities(
    foreground: Tensor,
    pred_anchor_deltas: list[Tensor],
    anchors: list[Boxes],
    matched_gt_boxes: Tensor,
    weights: Sequence[float],
    masked: bool,
) -> Tensor:
    """The IoU of what foreground anchors predict with their boxes (GFL, arXiv 2006.04388, 3.2).

    Args:
        foreground, pred_anchor_deltas, anchors, matched_gt_boxes, masked: as in
            :func:`foreground_box_loss`.
        weights: four factors, of dx, dy, dw, dh, as in Detectron2's ``Box2BoxTransform``.

    Returns:
        Tensor: (N, R), in [0, 1], without gradient; 0 where there is no foreground.
    """
    if masked:
        pred_anchor_deltas, anchors = _one_level(pred_anchor_deltas, anchors)
    qualities = []
    levels = _rows_of_levels(foreground, pred_anchor_deltas, anchors, matched_gt_boxes, masked)
    for is_fg, (deltas, boxes, gt_boxes) in levels:
        iou = box_iou(boxes_of(deltas, boxes, weights), gt_boxes)
        if masked:
            qualities.append(iou.view(is_fg.shape).masked_fill(~is_fg, 0))
        else:
            qualities.append(iou.new_zeros(is_fg.shape).masked_scatter_(is_fg, iou))
    return torch.cat(qualities, dim=1)


def iou_branch_loss(pred_ious: list[Tensor], ious: Tensor, foreground: Tensor) -> Tensor:
    """Sum of the cross entropies of foreground anchors' predicted IoUs (arXiv 1912.05992, eq. 2).

    Args:
        pred_ious: of each level, logits (N, Hi, Wi, A).
        ious: (N, R), of :func:`iou_qualities`.
        foreground: (N, R), bool.
    """
    logits = torch.cat([level.flatten(1) for level in pred_ious], dim=1)
    losses = F.binary_cross_entropy_with_logits(logits.float(), ious.float(), reduction="none")
    return losses.masked_fill(~foreground, 0).sum()


def _one_level(
    pred_anchor_deltas: list[Tensor], anchors: list[Boxes]
) -> tuple[list[Tensor], list[Boxes]]:
    """All levels as one: on a GPU, small kernels cost as much to start as to run."""
    deltas = [level.flatten(1, 3) for level in pred_anchor_deltas]
    return [torch.cat(deltas, dim=1)], [Boxes.cat(anchors)]


def _rows_of_levels(
    foreground: Tensor,
    pred_anchor_deltas: list[Tensor],
    anchors: list[Boxes],
    matched_gt_boxes: Tensor,
    masked: bool,
) -> Iterator[tuple[Tensor, Rows]]:
    """Of each level, which anchors (N, Hi*Wi*A) are foreground, and the rows in their order."""
    rows = _masked_rows if masked else _picked_rows
    levels = zip(
        _split(foreground, anchors), pred_anchor_deltas, anchors, _split(matched_gt_boxes, anchors)
    )
    for is_fg, deltas, boxes, gt_boxes in levels:
        yield is_fg, rows(is_fg, deltas, boxes.tensor.expand_as(gt_boxes), gt_boxes)


def _split(of_anchors: Tensor, anchors: list[Boxes]) -> Sequence[Tensor]:
    return of_anchors.split([len(boxes) for boxes in anchors], dim=1)


def _picked_rows(is_fg: Tensor, deltas: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Rows:
    shape = deltas.shape  # a view that cannot be flattened without a copy
    index = is_fg.view(shape[:-1]).nonzero(as_tuple=True)
    return _promoted(deltas[index]), anchors.view(shape)[index], gt_boxes.view(shape)[index]


def _masked_rows(is_fg: Tensor, deltas: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Rows:
    # What stands in is finite, and so are its gradients, which the mask then multiplies by 0.
    is_bg = ~is_fg.flatten().unsqueeze(1)
    anchors = anchors.reshape(-1, 4)
    deltas = _promoted(deltas.reshape(-1, 4)).masked_fill(is_bg, 0)
    return deltas, anchors, gt_boxes.reshape(-1, 4).where(~is_bg, anchors)


def _promoted(deltas: Tensor) -> Tensor:
    return deltas.to(torch.promote_types(deltas.dtype, torch.float32))
