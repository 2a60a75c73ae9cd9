"""Classification and box losses, each in the registry that the config chooses it from.

A soft target of a foreground anchor's own class (``gt_qualities``, in [0, 1], shaped like the
labels) would come in beside ``gt_labels``: in :meth:`SigmoidLoss.forward`, and from there in the
pass of ``dense_sigmoid.py``, where the one foreground entry of an anchor is computed. No loss
here has a use for it yet.
"""

from .box_losses import BOX_LOSS_REGISTRY, IoUBoxLoss, SmoothL1BoxLoss, foreground_box_loss
from .dense_sigmoid import dense_sigmoid_loss
from .iou_losses import ciou_loss, diou_loss, giou_loss
from .ohem_loss import OHEMLoss
from .sigmoid_losses import (
    CLS_LOSS_REGISTRY,
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    FocalLoss,
    FocalStarLoss,
    SigmoidLoss,
    sigmoid_focal_loss,
)

__all__ = [
    "BOX_LOSS_REGISTRY",
    "CLS_LOSS_REGISTRY",
    "BalancedCrossEntropyLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "FocalStarLoss",
    "IoUBoxLoss",
    "OHEMLoss",
    "SigmoidLoss",
    "SmoothL1BoxLoss",
    "ciou_loss",
    "dense_sigmoid_loss",
    "diou_loss",
    "foreground_box_loss",
    "giou_loss",
    "sigmoid_focal_loss",
]
