"""Sigmoid losses whose target for a foreground anchor's class is a quality instead of 1."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import UserError
from .formulas import QualityFocalFormula, VarifocalFormula
from .sigmoid_losses import CLS_LOSS_REGISTRY, SigmoidLoss, check_gamma


class QualityLoss(SigmoidLoss):
    """Base of the losses that take ``gt_qualities``: see :class:`retinanet_plugin.Targets`.

    Where no matcher gives them, the model makes them: the IoU of the decoded prediction with its
    box, without gradient.
    """

    needs_qualities: bool = True

    def forward(
        self,
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        anchors: Sequence[Boxes] | None = None,
        gt_qualities: list[Tensor] | None = None,
    ) -> Tensor:
        """
        Args:
            pred_logits, gt_labels, anchors: as in :meth:`SigmoidLoss.forward`.
            gt_qualities: of each level, (N, Hi, Wi, A), floats in [0, 1], read where there is
                foreground. None: 1 everywhere.

        Returns:
            Tensor: as :meth:`SigmoidLoss.forward` does.
        """
        if gt_qualities is None:
            gt_qualities = [torch.ones(labels.shape, device=labels.device) for labels in gt_labels]
        return self.sum_over_levels(pred_logits, gt_labels, gt_qualities)


@CLS_LOSS_REGISTRY.register()
class QualityFocalLoss(QualityLoss):
    """Quality focal loss ``-|y - p|^beta [y log(p) + (1 - y) log(1 - p)]``.

    Generalized Focal Loss (Li et al., arXiv 2006.04388, section 3.2, eq. 2); y is the quality for
    the class of a foreground anchor, and 0 in all other entries. Nothing is balanced by alpha.
    """

    @configurable
    def __init__(self, *, beta: float = 2.0, triton: bool = True) -> None:
        """
        Args:
            beta: how much errors near 0 are weighted down: 0 (cross entropy) or in [1, 5]; between
                0 and 1 the gradient would be infinite where p is y.
            triton: as in :class:`SigmoidLoss`.

        Raises:
            UserError: beta is out of its range.
        """
        super().__init__(triton=triton)
        if not (beta == 0 or 1 <= beta <= 5):
            raise UserError(
                f"MODEL.RETINANET.QUALITY_FOCAL_BETA is {beta}: choose 0 (cross entropy) or a "
                "number from 1 to 5, such as the paper's 2"
            )
        self.beta = beta

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        retinanet = cfg.MODEL.RETINANET
        return {"beta": retinanet.QUALITY_FOCAL_BETA, "triton": retinanet.TRITON_LOSS}

    def extra_repr(self) -> str:
        return f"beta={self.beta}"

    @property
    def loss_and_slope(self) -> QualityFocalFormula:
        return QualityFocalFormula(self.beta)


@CLS_LOSS_REGISTRY.register()
class VarifocalLoss(QualityLoss):
    """Varifocal loss (Zhang et al., VarifocalNet, arXiv 2008.13367, section 3.2, eq. 2).

    ``-q [q log(p) + (1 - q) log(1 - p)]`` for the class of a foreground anchor of quality q > 0,
    ``-alpha p^gamma log(1 - p)`` in all other entries.
    """

    @configurable
    def __init__(self, *, alpha: float = 0.75, gamma: float = 2.0, triton: bool = True) -> None:
        """
        Args:
            alpha: weight of background, in [0, 1].
            gamma: focusing of background, in [0, 5].
            triton: as in :class:`SigmoidLoss`.

        Raises:
            UserError: alpha or gamma is out of its range.
        """
        if not 0 <= alpha <= 1:
            raise UserError(
                f"MODEL.RETINANET.VARIFOCAL_ALPHA is {alpha}: choose a number from 0 to 1, such as "
                "the paper's 0.75"
            )
        # The base's alpha is the weight of foreground; with qualities it is read as 1 - alpha, the
        # weight of background, alone.
        super().__init__(alpha=1 - alpha, triton=triton)
        self.background_alpha = alpha
        self.gamma = check_gamma(gamma, "MODEL.RETINANET.VARIFOCAL_GAMMA")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        retinanet = cfg.MODEL.RETINANET
        return {
            "alpha": retinanet.VARIFOCAL_ALPHA,
            "gamma": retinanet.VARIFOCAL_GAMMA,
            "triton": retinanet.TRITON_LOSS,
        }

    def extra_repr(self) -> str:
        return f"alpha={self.background_alpha}, gamma={self.gamma}"

    @property
    def loss_and_slope(self) -> VarifocalFormula:
        return VarifocalFormula(self.gamma, self.background_alpha)
