"""What a sigmoid loss gives for an error, in closed form, with its derivative."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class FocalFormula:
    """``-(1 - p_t)^gamma log(p_t)`` (arXiv 1708.02002, eq. 4) and its derivative by v = -x_t.

    A class and no function, so that the dense pass recognises a formula that has a GPU kernel,
    :mod:`retinanet_plugin.losses.focal_triton`. Not frozen: PyTorch 2.11 does not compile what
    makes a frozen one.
    """

    gamma: float  # focusing, not negative; 0 is cross entropy

    def __call__(self, error_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Arguments and result as in :meth:`retinanet_plugin.losses.SigmoidLoss.loss_and_slope`."""
        gamma = self.gamma
        q = torch.sigmoid(error_logits)  # 1 - p_t
        cross_entropy = F.softplus(error_logits)  # -log(p_t)
        if gamma == 0:
            return cross_entropy, q
        if gamma in (1, 2):
            focus = q if gamma == 1 else q * q
        else:  # q.pow(gamma) has no second derivative where q is 0
            focus = torch.exp(gamma * F.logsigmoid(error_logits))
        loss = cross_entropy * focus
        # d/dv: (1 - q) gamma q^gamma softplus(v) + q q^gamma (the gradient in appendix B)
        return loss, torch.lerp(gamma * loss, focus, q)

    def write(self, error_logits: Tensor, loss: Tensor, slope: Tensor, spare: list[Tensor]) -> None:
        """The same in given memory, for a CPU; 0 where it would be less than a normal number."""
        gamma = self.gamma
        v, focus = spare
        # Below, q^(gamma + 1) and what it is made of are less than a normal number.
        write_thresholded(error_logits, gamma + 1, v)
        q = torch.sigmoid(v, out=slope)
        write_softplus(v, q, loss, focus)
        if gamma == 0:
            return
        focus = q if gamma == 1 else torch.pow(q, gamma, out=focus)
        loss.mul_(focus)
        torch.lerp(torch.mul(loss, gamma, out=v), focus, q, out=slope)


@dataclass
class FocalStarFormula:
    """``-log(p_t*) / gamma`` and its derivative by v = -x_t (arXiv 1708.02002, appendix A)."""

    gamma: float
    beta: float

    def __call__(self, error_logits: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`FocalFormula.__call__`."""
        shifted = error_logits * self.gamma - self.beta  # -(gamma x_t + beta)
        return F.softplus(shifted) / self.gamma, shifted.sigmoid()

    def write(self, error_logits: Tensor, loss: Tensor, slope: Tensor, spare: list[Tensor]) -> None:
        """As :meth:`FocalFormula.write`."""
        shifted, other = spare
        write_thresholded(
            torch.mul(error_logits, self.gamma, out=other).sub_(self.beta), 1, shifted
        )
        write_softplus(shifted, torch.sigmoid(shifted, out=slope), loss, other)
        loss.div_(self.gamma)


@dataclass
class QualityFocalFormula(FocalFormula):
    """Quality focal loss (arXiv 2006.04388, eq. 2), of a target y in [0, 1]:

    ``-|y - p|^gamma [y log(p) + (1 - y) log(1 - p)]``; its beta is ``gamma`` here. Background has
    y = 0, where it is the focal loss.
    """

    def soft_foreground(self, error_logits: Tensor, qualities: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            error_logits: v = -x, x the logit of the foreground anchor's class; any shape.
            qualities: y, of that shape and type.

        Returns:
            tuple[Tensor, Tensor]: the loss and its derivative by v.
        """
        gamma = self.gamma
        cross_entropy = _soft_cross_entropy(error_logits, qualities)
        p = torch.sigmoid(-error_logits)
        distance = qualities - p  # also the derivative of the cross entropy by v
        if gamma == 0:
            return cross_entropy, distance
        # Of |y - p|^gamma by |y - p|; p falls by p (1 - p) with v.
        steepness = gamma * distance.abs().pow(gamma - 1) * distance.sign()
        focus = distance.square() if gamma == 2 else distance.abs().pow(gamma)
        slope = focus * distance + steepness * (p - p.square()) * cross_entropy
        return focus * cross_entropy, slope


@dataclass
class VarifocalFormula(FocalFormula):
    """Varifocal loss (arXiv 2008.13367, eq. 2), of a target q in [0, 1]:

    ``-q [q log(p) + (1 - q) log(1 - p)]`` where q > 0, else ``-alpha p^gamma log(1 - p)``.
    """

    alpha: float

    def soft_foreground(self, error_logits: Tensor, qualities: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`QualityFocalFormula.soft_foreground`; q = 0 is background."""
        distance = qualities - torch.sigmoid(-error_logits)
        loss = qualities * _soft_cross_entropy(error_logits, qualities)
        bg_loss, bg_slope = (self.alpha * term for term in self(-error_logits))
        is_fg = qualities > 0
        return (
            torch.where(is_fg, loss, bg_loss),
            torch.where(is_fg, qualities * distance, -bg_slope),
        )


def _soft_cross_entropy(error_logits: Tensor, targets: Tensor) -> Tensor:
    """``-[y log(p) + (1 - y) log(1 - p)]`` of v = -x: two terms that do not cancel."""
    return targets * F.softplus(error_logits) + (1 - targets) * F.softplus(-error_logits)


def write_thresholded(v: Tensor, power: float, out: Tensor) -> None:
    """``v``, but -inf where exp(power v) is less than a normal number: those can be slow."""
    least = math.log(torch.finfo(v.dtype).tiny) + 2
    torch.ops.aten.threshold.out(v, least / power, -math.inf, out=out)


def write_softplus(v: Tensor, q: Tensor, out: Tensor, spare: Tensor) -> None:
    """``F.softplus(v)``, given q = sigmoid(v).

    PyTorch's takes log1p, which on a CPU costs more than all the rest of the loss, and with
    AVX-512 ten times as much. Here -log(p) stands in for it, p = sigmoid(-v); what the rounding of
    p has lost is known from q. So the relative error is about that of q.
    """
    # Beyond 64, softplus(v) is v; there log(p) need only stay finite.
    p = torch.neg(v, out=spare).clamp_(min=-64).sigmoid_()
    torch.sub(p, 1, out=out).add_(q)
    torch.maximum(out.sub_(p.log_()), v, out=out)
