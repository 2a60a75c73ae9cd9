"""Sigmoid losses on integer labels in one dense pass: no one-hot targets, no stored graph.

Such a loss is a sum over all (anchor, class) entries of ``alpha_t * phi(-x_t)``. x_t is the logit
of the truth, x in the anchor's class and -x in every other class (arXiv 1708.02002, appendix A);
phi grows with the error -x_t. Cross entropy is ``phi = softplus``.

The pass is made of PyTorch's operations, for any phi. On a GPU, the focal loss and cross entropy
take one kernel in its place. Where PyTorch has to see every operation (``torch.func``, tracing,
compilation, a second derivative), :func:`_plain_loss` takes the place of both.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    soft_foreground,
    sum_in_order,
    two_tensors,
)
from .stored_gradients import multiply_gradients, storage_scale

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
    soft = None if gt_qualities is None else [gt_qualities]
    return loss_of_levels([pred_logits], [gt_labels], loss_and_slope, alpha, triton, soft)


def loss_of_levels(
    pred_logits: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None = None,
    triton: bool = True,
    gt_qualities: Sequence[Tensor] | None = None,
) -> Tensor:
    """The sum of :func:`dense_sigmoid_loss` over levels; on a GPU for hardly more than one costs.

    Args:
        pred_logits, gt_labels, gt_qualities: of each level, one at least.
        loss_and_slope, alpha, triton: of all of them.
    """
    _check_levels(pred_logits, gt_labels, gt_qualities)
    levels = [
        _Level(logits, labels, None if gt_qualities is None else gt_qualities[i].detach())
        for i, (logits, labels) in enumerate(zip(pred_logits, gt_labels))
    ]
    for level in levels:
        _check(level, alpha)
    if not is_eager(*pred_logits):
        return torch.stack([_plain_loss(x, loss_and_slope, alpha) for x in levels]).sum()
    arguments = loss_and_slope, alpha, triton
    if torch.is_grad_enabled() and any(logits.requires_grad for logits in pred_logits):
        return _DenseSigmoidLoss.apply(levels, arguments, *pred_logits)
    with torch.no_grad():
        return _loss_and_grads(levels, None, *arguments)


class _Level(NamedTuple):
    logits: Tensor  # (..., K)
    labels: Tensor  # (...)
    qualities: Tensor | None  # (...)


class _DenseSigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, levels: list[_Level], arguments: tuple, *pred_logits: Tensor) -> Tensor:
        tensors = [tensor for level in levels for tensor in level]
        ctx.save_for_backward(*tensors)
        ctx.arguments = arguments
        ctx.grads = [torch.empty_like(logits) for logits in pred_logits]
        return _loss_and_grads(levels, ctx.grads, *arguments)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        levels = [_Level(*saved[i : i + 3]) for i in range(0, len(saved), 3)]
        pred_logits = [level.logits for level in levels]
        if torch.is_grad_enabled():  # this backward will itself be differentiated
            loss = torch.stack([_plain_loss(x, *ctx.arguments[:2]) for x in levels]).sum()
            wanted = [x for x, needed in zip(pred_logits, ctx.needs_input_grad[2:]) if needed]
            found = iter(torch.autograd.grad(loss, wanted, grad_loss, create_graph=True))
            return None, None, *(next(found) if x else None for x in ctx.needs_input_grad[2:])
        # The first backward gives the gradients away; a further one, through a graph that was
        # retained, computes them anew.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            grads = [torch.empty_like(logits) for logits in pred_logits]
            _loss_and_grads(levels, grads, *ctx.arguments)
        if not is_eager(grad_loss):  # such as a batch of them, for several losses at once
            return None, None, *((g * (grad_loss / storage_scale(g))).to(g.dtype) for g in grads)
        multiply_gradients(grads, grad_loss)
        return None, None, *grads


def _plain_loss(
    level: _Level, loss_and_slope: LossAndSlope, alpha: float | Tensor | None
) -> Tensor:
    """The same sum in operations that PyTorch differentiates, batches, traces and compiles."""
    pred_logits, gt_labels, gt_qualities = level
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


def _loss_and_grads(
    levels: list[_Level],
    grads: list[Tensor] | None,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None,
    triton: bool,
) -> Tensor:
    """Return the summed loss; write the gradient of each level into ``grads`` unless it is None."""
    if triton and type(loss_and_slope) in KERNEL_FORMULAS:
        kernel = focal_kernel([level.logits for level in levels], _pytorch_loss)
        if kernel is not None:
            return kernel.loss_and_grads(*zip(*levels), loss_and_slope, alpha, grads)
    losses = []
    for i, (logits, labels, qualities) in enumerate(levels):
        grad = None if grads is None else grads[i]
        losses.append(_pytorch_loss(logits, labels, loss_and_slope, alpha, grad, qualities))
    return torch.stack(losses).sum()


def _pytorch_loss(*arguments: Any) -> Tensor:
    """What the kernel's numbers are compared with."""
    return sum_in_order(dense_anchor_losses(*arguments))


def _check_levels(*of_levels: Sequence[Tensor] | None) -> None:
    counts = [len(levels) for levels in of_levels if levels is not None]
    if 0 in counts or len(set(counts)) > 1:
        raise UserError(
            f"logits, labels and, where they are given, qualities are of {counts} levels: give as "
            "many of each, one at least"
        )


def _check(level: _Level, alpha: float | Tensor | None) -> None:
    pred_logits, gt_labels, gt_qualities = level
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
