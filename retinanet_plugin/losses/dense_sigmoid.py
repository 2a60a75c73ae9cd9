"""Sigmoid losses on integer labels in one dense pass: no one-hot targets, no stored graph.

Such a loss is a sum over all (anchor, class) entries of ``alpha_t * phi(-x_t)``. x_t is the logit
of the truth, x in the anchor's class and -x in every other class (arXiv 1708.02002, appendix A);
phi grows with the error -x_t. Cross entropy is ``phi = softplus``.

The pass is made of PyTorch's operations, for any phi. On a GPU, the focal loss and cross entropy
take one kernel in its place. Where PyTorch has to see every operation (``torch.func``, tracing,
compilation, a second derivative), :func:`_plain_loss` takes the place of both.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..eager import is_eager
from ..errors import UserError
from .focal_kernel import focal_kernel
from .sigmoid_pass import (
    LossAndSlope,
    arithmetic_dtype,
    dense_anchor_losses,
    multiply_gradient,
    storage_scale,
    sum_in_order,
    two_tensors,
)


@dataclass(frozen=True)
class FocalFormula:
    """``-(1 - p_t)^gamma log(p_t)`` (arXiv 1708.02002, eq. 4) and its derivative by v = -x_t.

    A class and no function, so that the dense pass recognises the formula that has a GPU kernel,
    :mod:`retinanet_plugin.losses.focal_triton`.
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


def dense_sigmoid_loss(
    pred_logits: Tensor,
    gt_labels: Tensor,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None = None,
    triton: bool = True,
) -> Tensor:
    """Sum over all entries that are not ignored; its gradient is computed in the same pass.

    The arithmetic is float32 (float64 for float64 logits), under autocast as well. Costs one
    tensor of the logits' size and type, the gradient. On a CPU, a gradient that would be less than
    the smallest normal number is 0: products of such numbers take many times as long.

    Args:
        pred_logits: (..., K), any floating type, any memory layout.
        gt_labels: (...), any integer type: below 0 ignored, 0..K-1 a class, K and above background.
        loss_and_slope: from the errors -x_t, of any shape, to phi of them and its derivative.
            :class:`FocalFormula` takes the kernel where that runs.
        alpha: weight of foreground entries, those of background have 1 - alpha; a Tensor (K,)
            holds one for each class. None: every weight is 1.
        triton: whether the kernel may be taken.

    Returns:
        Tensor: a scalar. Ignored anchors add 0 to it and have gradients of 0, whatever their
        logits are.

    Raises:
        UserError: shapes, types or devices do not fit.
    """
    _check(pred_logits, gt_labels, alpha)
    if not is_eager(pred_logits):
        return _plain_loss(pred_logits, gt_labels, loss_and_slope, alpha)
    arguments = loss_and_slope, alpha, triton
    if pred_logits.requires_grad and torch.is_grad_enabled():
        return _DenseSigmoidLoss.apply(pred_logits, gt_labels, arguments)
    with torch.no_grad():
        return _loss_and_grad(pred_logits, gt_labels, None, *arguments)


class _DenseSigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred_logits: Tensor, gt_labels: Tensor, arguments: tuple) -> Tensor:
        ctx.save_for_backward(pred_logits, gt_labels)
        ctx.arguments = arguments
        ctx.grad = torch.empty_like(pred_logits)
        return _loss_and_grad(pred_logits, gt_labels, ctx.grad, *arguments)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # this backward will itself be differentiated
            pred_logits, gt_labels = ctx.saved_tensors
            loss = _plain_loss(pred_logits, gt_labels, *ctx.arguments[:2])
            (grad,) = torch.autograd.grad(loss, pred_logits, grad_loss, create_graph=True)
            return grad, None, None
        # The first backward gives the gradient away; a further one, through a graph that was
        # retained, computes it anew.
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            pred_logits, gt_labels = ctx.saved_tensors
            grad = torch.empty_like(pred_logits)
            _loss_and_grad(pred_logits, gt_labels, grad, *ctx.arguments)
        grad_loss = grad_loss / storage_scale(grad)
        if not is_eager(grad_loss):  # such as a batch of them, for several losses at once
            return (grad * grad_loss).to(grad.dtype), None, None
        return multiply_gradient(grad, grad_loss), None, None


def _plain_loss(
    pred_logits: Tensor,
    gt_labels: Tensor,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None,
) -> Tensor:
    """The same sum in operations that PyTorch differentiates, batches, traces and compiles."""
    logits = pred_logits.to(arithmetic_dtype(pred_logits))
    labels = gt_labels.long().unsqueeze(-1)
    is_known = labels >= 0
    is_class = labels == torch.arange(logits.shape[-1], device=logits.device)
    logits = torch.where(is_known, logits, 0.0)
    errors = torch.where(is_class, -logits, logits)
    loss, _ = two_tensors(loss_and_slope, errors)
    if alpha is not None:
        loss = loss * torch.where(is_class, alpha, 1 - alpha)
    return torch.where(is_known, loss, 0.0).sum()


def _loss_and_grad(
    pred_logits: Tensor,
    gt_labels: Tensor,
    grad: Tensor | None,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None,
    triton: bool,
) -> Tensor:
    """Return the summed loss; write its gradient into ``grad`` unless that is None."""
    # A subclass of the formula may have changed it.
    if triton and type(loss_and_slope) is FocalFormula:
        kernel = focal_kernel(pred_logits, _pytorch_focal_loss)
        if kernel is not None:
            return kernel.loss_and_grad(
                pred_logits,
                gt_labels,
                loss_and_slope.gamma,
                alpha,
                grad,
                storage_scale(pred_logits),
            )
    return sum_in_order(dense_anchor_losses(pred_logits, gt_labels, loss_and_slope, alpha, grad))


def _pytorch_focal_loss(
    pred_logits: Tensor, gt_labels: Tensor, gamma: float, alpha: float | None, grad: Tensor
) -> Tensor:
    """What the kernel's numbers are compared with."""
    return sum_in_order(
        dense_anchor_losses(pred_logits, gt_labels, FocalFormula(gamma), alpha, grad)
    )


def _check(pred_logits: Tensor, gt_labels: Tensor, alpha: float | Tensor | None) -> None:
    shape, label_shape = tuple(pred_logits.shape), tuple(gt_labels.shape)
    if not pred_logits.is_floating_point() or not shape or shape[-1] == 0:
        raise UserError(
            f"the logits are {pred_logits.dtype} of shape {shape}: give floating-point numbers of "
            "shape (..., K), K classes"
        )
    if label_shape != shape[:-1]:
        raise UserError(
            f"the labels have shape {label_shape} but the logits {shape}: give one label for each "
            f"anchor, shape {shape[:-1]}"
        )
    if gt_labels.dtype == torch.bool or gt_labels.is_floating_point() or gt_labels.is_complex():
        raise UserError(f"the labels are {gt_labels.dtype}: give integers, such as torch.int64")
    if gt_labels.device != pred_logits.device:
        raise UserError(
            f"the labels are on {gt_labels.device} but the logits on {pred_logits.device}: move "
            "them to one device"
        )
    if isinstance(alpha, Tensor) and alpha.shape != shape[-1:]:
        raise UserError(
            f"alpha has shape {tuple(alpha.shape)} but the logits {shape}: give one alpha for each "
            "of the K classes"
        )
