"""Classification and box losses, each in the registry that the config chooses it from."""

from .box import BOX_LOSS_REGISTRY, IoUBoxLoss, SmoothL1BoxLoss
from .classification import (
    CLS_LOSS_REGISTRY,
    BalancedCrossEntropyLoss,
    CrossEntropyLoss,
    SigmoidLoss,
)
from .dense import dense_sigmoid_loss
from .focal import FocalLoss, FocalStarLoss, sigmoid_focal_loss
from .foreground import foreground_box_loss
from .ohem import OHEMLoss

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
    "dense_sigmoid_loss",
    "foreground_box_loss",
    "sigmoid_focal_loss",
]
