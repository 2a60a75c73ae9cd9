"""Classification and box losses, each in the registry that the config chooses it from."""
from .box import BOX_LOSS_REGISTRY, IoUBoxLoss, SmoothL1BoxLoss
from .classification import CLS_LOSS_REGISTRY, FocalLoss, sigmoid_focal_loss
from .dense import dense_sigmoid_loss

__all__ = [
    "BOX_LOSS_REGISTRY",
    "CLS_LOSS_REGISTRY",
    "FocalLoss",
    "IoUBoxLoss",
    "SmoothL1BoxLoss",
    "dense_sigmoid_loss",
    "sigmoid_focal_loss",
]
