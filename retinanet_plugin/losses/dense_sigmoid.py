"""Sigmoid losses on integer labels in one dense pass: no one-hot targets, no stored graph.

Such a loss is a sum over all (anchor, class) entries of ``alpha_t * phi(-x_t)``. x_t is the logit
of the truth, x in the anchor's class and -x in every other class (arXiv 1708.02002, appendix A);
phi grows with the error -x_t. Cross entropy is ``phi = softplus``.

The pass is made of PyTorch's operations, for any phi. On a GPU, the focal loss and cross entropy
take one kernel in its place. Where PyTorch has to see every operation (``torch.func``, tracing,
compilation, a second derivative), :func:`_plain_loss` takes the place of both.
"""

from typing import Any

import torch
from torch import Tensor

from ..eager import is_eager
from ..errors import UserError
from .focal_kernel import focal_kernel
from .formulas import FocalFormula, QualityFocalFormula, VarifocalFormula
from .sigmoid_pass import (
    LossAndSlope,
    arithmetic_dtype,
    dense_anchor_losses,
    multiply_gradient,
    soft_foreground,
    storage_scale,
    sum_in_order,
    two_tensors,
)

# Those that the kernel knows; a subclass of one may have changed it.
KERNEL_FORMULAS = (FocalFormula, QualityFocalFormula, VarifocalFormula)


def dense_sigmoid_loss(
    pred_logits: Tensor,
    gt_labels: Tensor,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None = None,
    triton: bool = True,
    gt_qualities: Tensor | None = None,
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
        gt_qualities: (...), in [0, 1], any floating type, no gradient flows to it: the target, in
            place of 1, of a foreground anchor's own class. The formula then has a method
            ``soft_foreground``, as :class:`QualityFocalFormula` has; alpha is left to it there,
            and weighs the background.

    Returns:
        Tensor: a scalar. Ignored anchors add 0 to it and have gradients of 0, whatever their
        logits are.

    Raises:
        UserError: shapes, types or devices do not fit.
    """
    _check(pred_logits, gt_labels, alpha, gt_qualities)
    if gt_qualities is not None:
        gt_qualities = gt_qualities.detach()
    if not is_eager(pred_logits):
        return _plain_loss(pred_logits, gt_labels, gt_qualities, loss_and_slope, alpha)
    arguments = loss_and_slope, alpha, triton
    if pred_logits.requires_grad and torch.is_grad_enabled():
        return _DenseSigmoidLoss.apply(pred_logits, gt_labels, gt_qualities, arguments)
    with torch.no_grad():
        return _loss_and_grad(pred_logits, gt_labels, gt_qualities, None, *arguments)


class _DenseSigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pred_logits: Tensor,
        gt_labels: Tensor,
        gt_qualities: Tensor | None,
        arguments: tuple,
    ) -> Tensor:
        ctx.save_for_backward(pred_logits, gt_labels, gt_qualities)
        ctx.arguments = arguments
        ctx.grad = torch.empty_like(pred_logits)
        return _loss_and_grad(pred_logits, gt_labels, gt_qualities, ctx.grad, *arguments)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, qualities = ctx.saved_tensors
        if torch.is_grad_enabled():  # this backward will itself be differentiated
            loss = _plain_loss(logits, labels, qualities, *ctx.arguments[:2])
            (grad,) = torch.autograd.grad(loss, logits, grad_loss, create_graph=True)
            return grad, None, None, None
        # The first backward gives the gradient away; a further one, through a graph that was
        # retained, computes it anew.
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            grad = torch.empty_like(logits)
            _loss_and_grad(logits, labels, qualities, grad, *ctx.arguments)
        grad_loss = grad_loss / storage_scale(grad)
        if not is_eager(grad_loss):  # such as a batch of them, for several losses at once
            return (grad * grad_loss).to(grad.dtype), None, None, None
        return multiply_gradient(grad, grad_loss), None, None, None


def _plain_loss(
    pred_logits: Tensor,
    gt_labels: Tensor,
    gt_qualities: Tensor | None,
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
    if gt_qualities is not None:
        if alpha is not None:
            loss = loss * (1 - alpha)
        qualities = gt_qualities.unsqueeze(-1).expand_as(errors)
        loss = torch.where(is_class, soft_foreground(loss_and_slope, errors, qualities)[0], loss)
    elif alpha is not None:
        loss = loss * torch.where(is_class, alpha, 1 - alpha)
    return torch.where(is_known, loss, 0.0).sum()


def _loss_and_grad(
    pred_logits: Tensor,
    gt_labels: Tensor,
    gt_qualities: Tensor | None,
    grad: Tensor | None,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None,
    triton: bool,
) -> Tensor:
    """Return the summed loss; write its gradient into ``grad`` unless that is None."""
    if triton and type(loss_and_slope) in KERNEL_FORMULAS:
        kernel = focal_kernel(pred_logits, _pytorch_loss)
        if kernel is not None:
            return kernel.loss_and_grad(
                pred_logits,
                gt_labels,
                loss_and_slope,
                alpha,
                grad,
                storage_scale(pred_logits),
                gt_qualities,
            )
    return _pytorch_loss(pred_logits, gt_labels, loss_and_slope, alpha, grad, gt_qualities)


def _pytorch_loss(*arguments: Any) -> Tensor:
    """What the kernel's numbers are compared with."""
    return sum_in_order(dense_anchor_losses(*arguments))


def _check(
    pred_logits: Tensor,
    gt_labels: Tensor,
    alpha: float | Tensor | None,
    gt_qualities: Tensor | None,
) -> None:
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
    if gt_qualities is not None and (
        gt_qualities.shape != label_shape
        or not gt_qualities.is_floating_point()
        or gt_qualities.device != pred_logits.device
    ):
        raise UserError(
            f"the qualities are {gt_qualities.dtype} of shape {tuple(gt_qualities.shape)} on "
            f"{gt_qualities.device}: give floats of the labels' shape {label_shape} on "
            f"{pred_logits.device}"
        )
