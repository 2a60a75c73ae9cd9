"""Classification and box losses, each in the registry that the config chooses it from."""

from .box_losses import BOX_LOSS_REGISTRY, IoUBoxLoss, SmoothL1BoxLoss
from .dense_sigmoid import dense_sigmoid_loss
from .focal_star_loss import FocalStarLoss
from .foreground import foreground_box_loss, iou_branch_loss, iou_qualities
from .iou_losses import ciou_loss, diou_loss, giou_loss
from .ohem_loss import OHEMLoss
from .quality_losses import QualityFocalLoss, QualityLoss, VarifocalLoss
from .sigmoid_losses import (
    CLS_LOSS_REGISTRY,
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    FocalLoss,
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
    "QualityFocalLoss",
    "QualityLoss",
    "SigmoidLoss",
    "SmoothL1BoxLoss",
    "VarifocalLoss",
    "ciou_loss",
    "dense_sigmoid_loss",
    "diou_loss",
    "foreground_box_loss",
    "giou_loss",
    "iou_branch_loss",
    "iou_qualities",
    "sigmoid_focal_loss",
]
