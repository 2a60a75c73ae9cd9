"""From what losses are given to one number each, and what these are divided by."""

from typing import NamedTuple

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..errors import UserError, described

# What box losses can be weighted by: MODEL.RETINANET.BBOX_REG_LOSS_WEIGHTING.
BOX_WEIGHTINGS = ("none", "quality", "score")

# Of the losses that a model gives; the last by a head with an IoU branch.
LOSS_NAMES = ("loss_cls", "loss_box_reg", "loss_iou")


class LossSum(NamedTuple):
    """A loss, summed over the anchors of a batch, and what it is divided by."""

    value: Tensor  # ()
    weight: Tensor | None = None  # (); None: the number of foreground anchors


def check_box_weighting(weighting: str) -> str:
    """``weighting`` if it is one.

    Raises:
        UserError: it is not.
    """
    if weighting in BOX_WEIGHTINGS:
        return weighting
    raise UserError(
        f"MODEL.RETINANET.BBOX_REG_LOSS_WEIGHTING is {weighting!r}: choose one of "
        f"{', '.join(BOX_WEIGHTINGS)}"
    )


@torch.no_grad()
def box_loss_weights(
    weighting: str, pred_logits: list[Tensor], qualities: Tensor | None
) -> Tensor | None:
    """Weights (N, R) of anchors' box losses, without gradient; None: each 1.

    "score" is the highest of an anchor's class scores (GFL, arXiv 2006.04388, section 4), "quality"
    the soft target (VarifocalNet, arXiv 2008.13367, section 3.5; TOOD, arXiv 2108.07755, 3.2.2).
    """
    if weighting == "score":
        best = [logits.amax(-1).flatten(1) for logits in pred_logits]
        return torch.cat(best, dim=1).float().sigmoid()
    return qualities if weighting == "quality" else None


def class_loss_of_levels(
    cls_loss: nn.Module,
    pred_logits: list[Tensor],
    gt_labels: Tensor,
    anchors: list[Boxes],
    qualities: Tensor | None,
) -> Tensor:
    """The classification loss, summed over all anchors of a batch.

    Args:
        cls_loss: see :class:`retinanet_plugin.losses.FocalLoss`.
        pred_logits: of each level, (N, Hi, Wi, A, K).
        gt_labels: (N, R).
        anchors: of each level, Hi*Wi*A anchors.
        qualities: (N, R), for a loss with ``needs_qualities``.

    Raises:
        UserError: ``cls_loss``, which others can write, returns no scalar.
    """

    def of_levels(of_anchors: Tensor) -> list[Tensor]:
        levels = of_anchors.split([len(boxes) for boxes in anchors], dim=1)
        return [level.reshape(logits.shape[:-1]) for level, logits in zip(levels, pred_logits)]

    soft = [of_levels(qualities)] if needs_qualities(cls_loss) and qualities is not None else []
    loss = cls_loss(pred_logits, of_levels(gt_labels), anchors, *soft)
    if not isinstance(loss, Tensor) or loss.dim():
        raise UserError(
            f"{type(cls_loss).__name__} returns {described(loss)}: return the sum over all "
            "anchors, a scalar"
        )
    return loss


def needs_qualities(cls_loss: nn.Module) -> bool:
    """Whether a classification loss takes soft targets as a fourth argument."""
    return getattr(cls_loss, "needs_qualities", False)
