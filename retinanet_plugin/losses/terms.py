"""The focal loss of one entry, and its derivative."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class FocalTerms:
    """``-(1 - p_t)^gamma log(p_t)`` (arXiv 1708.02002, eq. 4) and its derivative by v = -x_t.

    A class and no function, so that :mod:`retinanet_plugin.losses.dense` recognises the formula
    that has a GPU kernel, :mod:`retinanet_plugin.losses.triton_focal`.
    """

    gamma: float  # focusing, not negative; 0 is cross entropy

    def __call__(self, error_logits):
        """Arguments and result as in :meth:`retinanet_plugin.losses.SigmoidLoss.terms`."""
        q = torch.sigmoid(error_logits)  # 1 - p_t
        cross_entropy = F.softplus(error_logits)  # -log(p_t)
        gamma = self.gamma
        if gamma == 0:
            return cross_entropy, q
        focus = q if gamma == 1 else q * q if gamma == 2 else q.pow(gamma)
        loss = cross_entropy.mul_(focus)
        # d/dv: (1 - q) gamma q^gamma softplus(v) + q q^gamma (the gradient in appendix B)
        return loss, (gamma * loss).lerp_(focus, q)
