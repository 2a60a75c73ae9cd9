"""FL*, the focal loss's alternative form."""

import math
from collections.abc import Sequence

from detectron2.config import CfgNode, configurable

from ..errors import UserError
from .formulas import FocalStarFormula
from .sigmoid_losses import CLS_LOSS_REGISTRY, SigmoidLoss


@CLS_LOSS_REGISTRY.register()
class FocalStarLoss(SigmoidLoss):
    """FL* ``-alpha_t log(p_t*) / gamma`` with ``p_t* = sigmoid(gamma x_t + beta)``.

    arXiv 1708.02002, appendix A; gamma is the steepness, beta the shift. Trained with "identical
    settings" as the focal loss there (table 3), so with its alpha. It has no Triton kernel.
    """

    @configurable
    def __init__(self, *, alpha: float | Sequence[float] | str, gamma: float, beta: float):
        """
        Args:
            alpha: as in :class:`SigmoidLoss`.
            gamma: positive, finite.
            beta: any finite number.

        Raises:
            UserError: alpha, gamma or beta is out of its range.
        """
        super().__init__(alpha=alpha)
        if not 0 < gamma < math.inf:
            raise UserError(
                f"MODEL.RETINANET.FOCAL_STAR_GAMMA is {gamma}: choose a positive number, such as "
                "the paper's 2 or 4"
            )
        if not math.isfinite(beta):
            raise UserError(
                f"MODEL.RETINANET.FOCAL_STAR_BETA is {beta}: choose a finite number, such as the "
                "paper's 0 or 1"
            )
        self.gamma = gamma
        self.beta = beta

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            **super().from_config(cfg),
            "gamma": cfg.MODEL.RETINANET.FOCAL_STAR_GAMMA,
            "beta": cfg.MODEL.RETINANET.FOCAL_STAR_BETA,
        }

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gamma={self.gamma}, beta={self.beta}"

    @property
    def loss_and_slope(self) -> FocalStarFormula:
        return FocalStarFormula(self.gamma, self.beta)
