"""The focal loss and its variant FL*, which focus on the hard entries."""

import torch.nn.functional as F
from detectron2.config import configurable

from ..errors import UserError
from .classification import CLS_LOSS_REGISTRY, SigmoidLoss
from .dense import dense_sigmoid_loss
from .terms import FocalTerms


@CLS_LOSS_REGISTRY.register()
class FocalLoss(SigmoidLoss):
    """Focal loss ``-alpha_t (1 - p_t)^gamma log(p_t)`` (arXiv 1708.02002, sections 3.2 and 3.3).

    p_t is the probability of the truth: the sigmoid of the logit in the anchor's class, one minus
    it in every other class.
    """

    @configurable
    def __init__(self, *, alpha, gamma):
        """
        Args:
            alpha: as in :class:`SigmoidLoss`.
            gamma (float): focusing, in [0, 5]; 0 is cross entropy.

        Raises:
            UserError: alpha or gamma is out of its range.
        """
        super().__init__(alpha=alpha)
        if not 0 <= gamma <= 5:
            raise UserError(
                f"MODEL.RETINANET.FOCAL_LOSS_GAMMA is {gamma}: choose a number from 0 (cross "
                "entropy) to 5"
            )
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA}

    def extra_repr(self):
        return f"{super().extra_repr()}, gamma={self.gamma}"

    @property
    def terms(self):
        return FocalTerms(self.gamma)


@CLS_LOSS_REGISTRY.register()
class FocalStarLoss(SigmoidLoss):
    """FL* ``-alpha_t log(p_t*) / gamma`` with ``p_t* = sigmoid(gamma x_t + beta)``.

    arXiv 1708.02002, appendix A; gamma is the steepness, beta the shift. Trained with "identical
    settings" as the focal loss there (table 3), so with its alpha.
    """

    @configurable
    def __init__(self, *, alpha, gamma, beta):
        """
        Args:
            alpha: as in :class:`SigmoidLoss`.
            gamma (float): positive.
            beta (float): any.

        Raises:
            UserError: alpha or gamma is out of its range.
        """
        super().__init__(alpha=alpha)
        if not gamma > 0:
            raise UserError(
                f"MODEL.RETINANET.FOCAL_STAR_GAMMA is {gamma}: choose a positive number, such as "
                "the paper's 2 or 4"
            )
        self.gamma = gamma
        self.beta = beta

    @classmethod
    def from_config(cls, cfg):
        return {
            **super().from_config(cfg),
            "gamma": cfg.MODEL.RETINANET.FOCAL_STAR_GAMMA,
            "beta": cfg.MODEL.RETINANET.FOCAL_STAR_BETA,
        }

    def extra_repr(self):
        return f"{super().extra_repr()}, gamma={self.gamma}, beta={self.beta}"

    def terms(self, error_logits):
        shifted = (error_logits * self.gamma).sub_(self.beta)  # -(gamma x_t + beta)
        return F.softplus(shifted).div_(self.gamma), shifted.sigmoid_()


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
    alpha = None if alpha < 0 else alpha
    return dense_sigmoid_loss(pred_logits, gt_labels, FocalTerms(gamma), alpha)
