"""Sigmoid losses for classification: their registry, their base, and cross entropy."""

import torch
from detectron2.config import configurable
from fvcore.common.registry import Registry
from torch import nn

from ..errors import UserError
from .alpha import AUTO, alpha_from_config
from .dense import dense_sigmoid_loss
from .terms import FocalTerms

CLS_LOSS_REGISTRY = Registry("RETINANET_CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = """
Classification losses, chosen by ``MODEL.RETINANET.CLS_LOSS_NAME``; built as ``loss(cfg)`` and
called as :meth:`SigmoidLoss.forward` is.
"""


class SigmoidLoss(nn.Module):
    """Base of the losses that sum ``alpha_t * phi(-x_t)`` over all (anchor, class) entries.

    x_t is the logit of the truth: the logit x in the anchor's class and -x in every other class
    (arXiv 1708.02002, appendix A). alpha_t is the class's alpha, or 1 - alpha where the class is
    not the anchor's (section 3.1). A subclass defines phi, as :meth:`terms`, a method or any other
    callable; what it reads from the config beside alpha goes into its ``__init__`` and
    ``from_config``, as in :class:`retinanet_plugin.losses.FocalLoss`.
    """

    # A CUDA graph can hold it: no operation waits for values or has a shape that depends on them.
    static = True

    @configurable
    def __init__(self, *, alpha=-1.0):
        """
        Args:
            alpha (float or list[float] or "auto"): weight of foreground entries, in [0, 1], or
                one for each class. Negative: no balancing, every weight is 1. "auto", which
                :func:`retinanet_plugin.data.class_alphas.resolve_auto_alpha` has not replaced by
                numbers: the loss is built, because inference needs none, but refuses to be called.

        Raises:
            UserError: alpha is out of its range.
        """
        super().__init__()
        if isinstance(alpha, (list, tuple)):
            # A constant of the config, not a weight: not saved.
            self.register_buffer("alpha", torch.tensor(alpha), persistent=False)
        elif alpha == AUTO or 0 <= alpha <= 1:
            self.alpha = alpha
        elif alpha < 0:
            self.alpha = None
        else:
            raise UserError(
                f"MODEL.RETINANET.FOCAL_LOSS_ALPHA is {alpha}: choose a number from 0 to 1, or a "
                "negative one for no balancing"
            )

    @classmethod
    def from_config(cls, cfg):
        return {"alpha": alpha_from_config(cfg)}

    def extra_repr(self):
        if isinstance(self.alpha, torch.Tensor):
            return f"alpha=[{', '.join(f'{alpha:g}' for alpha in self.alpha.tolist())}]"
        return f"alpha={self.alpha}"

    def terms(self, error_logits):
        """
        Args:
            error_logits (Tensor): the errors v = -x_t, any shape, float32 or float64; not to be
                changed.

        Returns:
            tuple[Tensor, Tensor]: phi(v) and its derivative, new tensors of that shape.
        """
        raise NotImplementedError

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

        Raises:
            UserError: alpha is "auto" still.
        """
        if isinstance(self.alpha, str):
            raise UserError(
                "MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS is 'auto' and nothing has counted the "
                "classes: train with retinanet_plugin.engine.Trainer, or build the model from "
                "retinanet_plugin.data.class_alphas.resolve_auto_alpha(cfg)"
            )
        return sum(
            dense_sigmoid_loss(logits, labels, self.terms, self.alpha)
            for logits, labels in zip(pred_logits, gt_labels)
        )


@CLS_LOSS_REGISTRY.register()
class BalancedCrossEntropyLoss(SigmoidLoss):
    """Cross entropy ``-alpha_t log(p_t)`` (arXiv 1708.02002, section 3.1).

    The paper's best alpha for it is 0.75 (table 1a), three times that of the focal loss.
    """

    terms = FocalTerms(gamma=0.0)


@CLS_LOSS_REGISTRY.register()
class CrossEntropyLoss(BalancedCrossEntropyLoss):
    """Cross entropy ``-log(p_t)`` (arXiv 1708.02002, eq. 1), which no alpha balances."""

    @classmethod
    def from_config(cls, cfg):
        return {}
