"""Sigmoid losses for classification: their registry, their base, cross entropy, focal loss."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..errors import UserError
from .alpha import AUTO, alpha_from_config, check_alpha, check_alphas
from .dense_sigmoid import dense_sigmoid_loss, loss_of_levels
from .formulas import FocalFormula

CLS_LOSS_REGISTRY = Registry("RETINANET_CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = """
Classification losses, chosen by ``MODEL.RETINANET.CLS_LOSS_NAME``; built as ``loss(cfg)``, or from
keyword arguments, and called as :meth:`SigmoidLoss.forward` is.
"""


class SigmoidLoss(nn.Module):
    """Base of the losses that sum ``alpha_t * phi(-x_t)`` over all (anchor, class) entries.

    x_t is the logit of the truth: the logit x in the anchor's class and -x in every other class
    (arXiv 1708.02002, appendix A). alpha_t is the class's alpha, or 1 - alpha where the class is
    not the anchor's (section 3.1). A subclass defines phi, as :meth:`loss_and_slope`, a method or
    any other callable; what it reads from the config beside alpha goes into its ``__init__`` and
    ``from_config``, as in :class:`FocalLoss`.
    """

    # A CUDA graph can hold it: no operation waits for values or has a shape that depends on them.
    fixed_shapes = True
    # It is given soft targets as a fourth argument: see QualityLoss.
    needs_qualities: bool = False

    @configurable
    def __init__(self, *, alpha: float | Sequence[float] | str = -1.0, triton: bool = True):
        """
        Args:
            alpha: weight of foreground entries, in [0, 1], or one for each class. Negative: no
                balancing, every weight is 1. "auto", which
                :func:`retinanet_plugin.data.class_alphas.resolve_auto_alpha` has not replaced by
                numbers: the loss is built, because inference needs none, but refuses to be called.
            triton: on CUDA, take the Triton kernel for the formulas that have one.

        Raises:
            UserError: alpha is out of its range.
        """
        super().__init__()
        self.alpha: Tensor | float | str | None
        if not isinstance(alpha, Sequence):
            self.alpha = check_alpha(alpha)
        elif alpha == AUTO:
            self.alpha = AUTO
        else:
            # A constant of the config, not a weight: not saved.
            self.register_buffer("alpha", torch.tensor(check_alphas(alpha)), persistent=False)
        self.triton = triton

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"alpha": alpha_from_config(cfg)}

    def extra_repr(self) -> str:
        if isinstance(self.alpha, Tensor):
            return f"alpha=[{', '.join(f'{alpha:g}' for alpha in self.alpha.tolist())}]"
        return f"alpha={self.alpha}"

    def loss_and_slope(self, error_logits: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            error_logits: the errors v = -x_t, any shape, float32 or float64; not to be changed.

        Returns:
            tuple[Tensor, Tensor]: phi(v) and its derivative, new tensors of that shape. Training
            takes the derivative from here. Where PyTorch has to differentiate by itself (a second
            derivative, ``torch.func``, ``torch.compile``), it differentiates phi(v): nothing that
            phi(v) was computed from may be changed in place. A callable with a method ``write``,
            as :class:`FocalFormula` has, needs no new memory on a CPU.
        """
        raise NotImplementedError

    def forward(
        self, pred_logits: list[Tensor], gt_labels: list[Tensor], anchors: list[Boxes] | None
    ) -> Tensor:
        """
        Args:
            pred_logits: of each level, logits (N, Hi, Wi, A, K) in any memory layout.
            gt_labels: of each level, labels (N, Hi, Wi, A), of an integer type: -1 ignored, 0..K-1
                a class, K background.
            anchors: of each level, Hi*Wi*A boxes, absolute pixels; for losses that compare
                anchors, not read here.

        Returns:
            Tensor: the sum over all entries that are not ignored, a float32 scalar (float64 for
            float64 logits).

        Raises:
            UserError: alpha is "auto" still, or see :func:`dense_sigmoid_loss`.
        """
        return self.sum_over_levels(pred_logits, gt_labels)

    def sum_over_levels(
        self,
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        gt_qualities: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """As :meth:`forward`, with soft targets (N, Hi, Wi, A) of each level where they are given:
        see :func:`dense_sigmoid_loss`."""
        if isinstance(self.alpha, str):
            raise UserError(
                "MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS is 'auto' and nothing has counted the "
                "classes: train with retinanet_plugin.engine.Trainer, or build the model from "
                "retinanet_plugin.data.class_alphas.resolve_auto_alpha(cfg)"
            )
        return loss_of_levels(
            pred_logits, gt_labels, self.loss_and_slope, self.alpha, self.triton, gt_qualities
        )


@CLS_LOSS_REGISTRY.register()
class BalancedCrossEntropyLoss(SigmoidLoss):
    """Cross entropy ``-alpha_t log(p_t)`` (arXiv 1708.02002, section 3.1).

    The paper's best alpha for it is 0.75 (table 1a), three times that of the focal loss.
    """

    loss_and_slope = FocalFormula(gamma=0.0)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "triton": cfg.MODEL.RETINANET.TRITON_LOSS}


@CLS_LOSS_REGISTRY.register()
class CrossEntropyLoss(BalancedCrossEntropyLoss):
    """Cross entropy ``-log(p_t)`` (arXiv 1708.02002, eq. 1), which no alpha balances."""

    @configurable
    def __init__(self, *, triton: bool = True):
        super().__init__(alpha=-1.0, triton=triton)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"triton": cfg.MODEL.RETINANET.TRITON_LOSS}


@CLS_LOSS_REGISTRY.register()
class FocalLoss(SigmoidLoss):
    """Focal loss ``-alpha_t (1 - p_t)^gamma log(p_t)`` (arXiv 1708.02002, sections 3.2 and 3.3).

    p_t is the probability of the truth: the sigmoid of the logit in the anchor's class, one minus
    it in every other class.
    """

    @configurable
    def __init__(self, *, alpha: float | Sequence[float] | str, gamma: float, triton: bool = True):
        """
        Args:
            alpha, triton: as in :class:`SigmoidLoss`.
            gamma: focusing, in [0, 5], the range of the paper's table 1b; 0 is cross entropy.

        Raises:
            UserError: alpha or gamma is out of its range.
        """
        super().__init__(alpha=alpha, triton=triton)
        self.gamma = check_gamma(gamma, "MODEL.RETINANET.FOCAL_LOSS_GAMMA")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            **super().from_config(cfg),
            "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
            "triton": cfg.MODEL.RETINANET.TRITON_LOSS,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma}"

    @property
    def loss_and_slope(self) -> FocalFormula:
        return FocalFormula(self.gamma)


def sigmoid_focal_loss(
    pred_logits: Tensor, gt_labels: Tensor, *, alpha: float, gamma: float
) -> Tensor:
    """The formula of :class:`FocalLoss`, for use in other projects.

    The arithmetic is float32 (float64 for float64 logits), under autocast as well.

    Args:
        pred_logits: (..., K), any floating type, any memory layout.
        gt_labels: (...), any integer type: below 0 ignored, 0..K-1 a class, K and above background.
        alpha: weight of foreground entries, up to 1; negative: no balancing.
        gamma: focusing, in [0, 5] as in :class:`FocalLoss`; 0 is cross entropy.

    Returns:
        Tensor: the sum over all entries that are not ignored, a scalar.

    Raises:
        UserError: alpha or gamma is out of its range, or see :func:`dense_sigmoid_loss`.
    """
    weight = check_alpha(alpha, name="alpha of sigmoid_focal_loss")
    formula = FocalFormula(check_gamma(gamma, "gamma of sigmoid_focal_loss"))
    return dense_sigmoid_loss(pred_logits, gt_labels, formula, weight)


def check_gamma(gamma: float, name: str) -> float:
    """The same range in the module and the function: that of the paper's table 1b.

    More than 5 is rather a lost decimal point than a wish, and was tested by nobody.

    Raises:
        UserError: it is outside of it; ``name`` says what is.
    """
    if not 0 <= gamma <= 5:
        raise UserError(f"{name} is {gamma}: choose a number from 0 (cross entropy) to 5")
    return gamma
