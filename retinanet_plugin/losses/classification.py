"""The focal loss and its kin, which differ in one function of the error alone."""
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from fvcore.common.registry import Registry
from torch import nn

from ..errors import UserError
from .dense import dense_sigmoid_loss

CLS_LOSS_REGISTRY = Registry("RETINANET_CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = """
Classification losses, chosen by ``MODEL.RETINANET.CLS_LOSS_NAME``; built as ``loss(cfg)`` and
called as :meth:`FocalLoss.forward` is.
"""


@CLS_LOSS_REGISTRY.register()
class FocalLoss(nn.Module):
    """Focal loss (Lin et al., arXiv 1708.02002, sections 3.2 and 3.3), a sum over all entries.

    ``FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)``, where p_t is the probability of the truth:
    the sigmoid p of the logit in the anchor's class, 1 - p in every other class; alpha_t is
    alpha, or 1 - alpha.
    """

    @configurable
    def __init__(self, *, alpha, gamma):
        """
        Args:
            alpha (float): weight of foreground entries, in [0, 1]; those of background have
                1 - alpha. Negative: no balancing.
            gamma (float): focusing, in [0, 5]; 0 is cross entropy.

        Raises:
            UserError: alpha or gamma is out of its range.
        """
        super().__init__()
        if not 0 <= gamma <= 5:
            raise UserError(
                f"MODEL.RETINANET.FOCAL_LOSS_GAMMA is {gamma}: choose a number from 0 (cross "
                "entropy) to 5"
            )
        if not alpha <= 1:
            raise UserError(
                f"MODEL.RETINANET.FOCAL_LOSS_ALPHA is {alpha}: choose a number from 0 to 1, or a "
                "negative one for no balancing"
            )
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg):
        return {
            "alpha": cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA,
            "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
        }

    def extra_repr(self):
        return f"alpha={self.alpha}, gamma={self.gamma}"

    def forward(self, pred_logits, gt_labels, anchors):
        """
        Args:
            pred_logits (list[Tensor]): of each level, logits (N, Hi, Wi, A, K) in any memory
                layout.
            gt_labels (list[Tensor]): of each level, labels (N, Hi, Wi, A), int64: -1 ignored,
                0..K-1 a class, K background.
            anchors (list[Boxes]): of each level, Hi*Wi*A boxes, absolute pixels; for losses that
                compare anchors, not read here.

        Returns:
            Tensor: the sum over all entries that are not ignored, a float32 scalar (float64 for
            float64 logits).
        """
        return sum(
            sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma)
            for logits, labels in zip(pred_logits, gt_labels)
        )


def sigmoid_focal_loss(pred_logits, gt_labels, *, alpha, gamma):
    """The formula of :class:`FocalLoss`, for use in other projects.

    The arithmetic is float32 (float64 for float64 logits), under autocast as well.

    Args:
        pred_logits (Tensor): (..., K), any floating type, any memory layout.
        gt_labels (Tensor): (...), int64: -1 ignored, 0..K-1 a class, K background.
        alpha (float): weight of foreground entries; negative: no balancing.
        gamma (float): focusing parameter, not negative.

    Returns:
        Tensor: the sum over all entries that are not ignored, a scalar.
    """

    def terms(error_logits):
        return _focal_terms(error_logits, gamma)

    return dense_sigmoid_loss(pred_logits, gt_labels, terms, None if alpha < 0 else alpha)


def _focal_terms(error_logits, gamma):
    """``-(1 - p_t)^gamma log(p_t)`` and its derivative, both for the errors v = -x_t."""
    q = torch.sigmoid(error_logits)  # 1 - p_t
    cross_entropy = F.softplus(error_logits)  # -log(p_t)
    if gamma == 0:
        return cross_entropy, q
    focus = q if gamma == 1 else q * q if gamma == 2 else q.pow(gamma)
    loss = focus * cross_entropy
    # d/dv: gamma q^gamma (1 - q) softplus(v) + q^gamma q
    grad = torch.addcmul(focus * q, loss, 1 - q, value=gamma)
    return loss, grad
