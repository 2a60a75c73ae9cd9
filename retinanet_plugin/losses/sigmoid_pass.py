"""One pass over dense logits in chunks that stay in a processor's cache: losses and gradients.

Made of PyTorch's operations, for any loss of the kind that ``dense_sigmoid.py`` describes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, described
from .chunks import chunks
from .stored_gradients import storage_scale

# From errors -x_t, of any shape, to phi of them and its derivative.
LossAndSlope = Callable[[Tensor], tuple[Tensor, Tensor]]

# Losses are summed in rows of this length, which no number of threads changes.
_SUM_LENGTH = 4096
# Of the losses of a chunk: more than this, or not a number, may hide what is not finite.
_HUGE = 1e30


@torch.no_grad()
def dense_anchor_losses(
    pred_logits: Tensor,
    gt_labels: Tensor,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None = None,
    grad: Tensor | None = None,
    gt_qualities: Tensor | None = None,
) -> Tensor:
    """The loss of each anchor, summed over its classes; not differentiable.

    Args:
        pred_logits, gt_labels, loss_and_slope, alpha, gt_qualities: as in
            :func:`dense_sigmoid_loss`.
        grad: shaped as the logits; the gradient of the sum of the losses is written there, times
            :func:`storage_scale`.

    Returns:
        Tensor: (...), float32 (float64 for float64 logits); 0 for ignored anchors.
    """
    losses = torch.empty(
        gt_labels.shape, dtype=arithmetic_dtype(pred_logits), device=pred_logits.device
    )
    memory: list[Tensor] = []
    optional = [tensor for tensor in (grad, gt_qualities) if tensor is not None]
    for logits, labels, out, *rest in chunks([pred_logits, gt_labels, losses, *optional]):
        if logits.is_cpu and (not memory or memory[0].shape != logits.shape):
            memory = [torch.empty_like(logits, dtype=losses.dtype) for _ in range(5)]
        chunk = _Chunk(
            logits if logits.dtype == losses.dtype else _converted(logits, losses.dtype, memory),
            labels.long(),
            rest[0] if grad is not None else None,
            rest[-1] if gt_qualities is not None else None,
        )
        out.copy_(_chunk_losses(chunk, loss_and_slope, alpha, memory))
    return losses


class _Chunk(NamedTuple):
    """What one step of the pass reads, and where it writes the gradient."""

    logits: Tensor  # (..., K), float32 or float64
    labels: Tensor  # (...), int64
    grad: Tensor | None  # as the logits, of their own type
    qualities: Tensor | None  # (...)


def _converted(logits: Tensor, dtype: torch.dtype, memory: list[Tensor]) -> Tensor:
    return memory[0].copy_(logits) if memory else logits.to(dtype)


def two_tensors(loss_and_slope: LossAndSlope, errors: Tensor) -> tuple[Tensor, Tensor]:
    """What a formula returns for ``errors``; projects that build on this one write their own.

    Raises:
        UserError: it is something else than two tensors of that shape.
    """
    result = loss_and_slope(errors)
    if (
        isinstance(result, tuple)
        and len(result) == 2
        and all(isinstance(x, Tensor) and x.shape == errors.shape for x in result)
    ):
        return result
    raise UserError(
        "loss_and_slope of the classification loss does not return two tensors of the shape of "
        f"its argument, {tuple(errors.shape)}, but {described(result)}: return phi(v) and its "
        "derivative for each v"
    )


def _chunk_losses(
    chunk: _Chunk,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None,
    memory: list[Tensor],
) -> Tensor:
    """Losses (...) of a chunk's anchors; gradients go into ``chunk.grad``.

    ``memory`` holds five tensors like the logits on a CPU, where new memory costs as much as the
    arithmetic; elsewhere none.
    """
    is_cpu = chunk.logits.is_cpu
    # No weight of 0 clears the gradient of what is not finite. On a CPU, clearing costs more than
    # looking for that in the losses, for which a GPU would have to be waited for.
    losses = _unmasked_losses(chunk, loss_and_slope, alpha, memory, clears=not is_cpu)
    if is_cpu and not losses.sum().abs() < _HUGE:
        losses = _unmasked_losses(chunk, loss_and_slope, alpha, memory, clears=True)
    return losses.masked_fill_(chunk.labels < 0, 0)


def _unmasked_losses(
    chunk: _Chunk,
    loss_and_slope: LossAndSlope,
    alpha: float | Tensor | None,
    memory: list[Tensor],
    clears: bool,
) -> Tensor:
    """As :func:`_chunk_losses`, but only gradients of ignored anchors are 0, not their losses.

    Every entry is treated as background; then the one foreground entry of an anchor replaces
    that. No step waits for a GPU or depends on the labels' values. ``clears`` says whether what
    is not finite is looked after, too.
    """
    logits, labels, grad, qualities = chunk
    index = labels.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)
    is_class = index == labels.unsqueeze(-1)

    if memory and hasattr(loss_and_slope, "write"):
        _, loss, slope, *spare = memory
        loss_and_slope.write(logits, loss, slope, spare)
    else:
        loss, slope = two_tensors(loss_and_slope, logits)
    errors = -logits.gather(-1, index)
    if qualities is not None:
        fg_loss, fg_slope = soft_foreground(loss_and_slope, errors, qualities.unsqueeze(-1))
    else:
        fg_loss, fg_slope = two_tensors(loss_and_slope, errors)
    bg_weight: float | Tensor = 1.0
    if alpha is not None:
        bg_weight = 1 - alpha
        loss *= bg_weight
        if qualities is None:
            alpha_fg = alpha[index] if isinstance(alpha, Tensor) else alpha
            fg_loss *= alpha_fg
            fg_slope *= alpha_fg
    loss.scatter_(-1, index, torch.where(is_class, fg_loss, loss.gather(-1, index)))

    if grad is not None:
        ignored = (labels < 0).unsqueeze(-1)
        scale = storage_scale(grad)
        weight = bg_weight * scale
        if clears:
            slope.masked_fill_(ignored, 0)
            torch.mul(slope, weight, out=grad)
        else:  # one pass weights, clears, converts and stores
            torch.mul(slope, (~ignored).to(slope.dtype) * weight, out=grad)
        fg_grad = fg_slope.mul_(-scale).to(grad.dtype)
        grad.scatter_(-1, index, torch.where(is_class, fg_grad, grad.gather(-1, index)))
    return loss.sum(-1)


def soft_foreground(
    loss_and_slope: LossAndSlope, errors: Tensor, qualities: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and slope, by the errors, of entries in the class of the truth, whose targets are
    ``qualities`` of the same shape.

    Raises:
        UserError: the formula has none.
    """
    if hasattr(loss_and_slope, "soft_foreground"):
        return loss_and_slope.soft_foreground(errors, qualities.to(errors.dtype))
    raise UserError(
        f"{described(loss_and_slope)} is given gt_qualities but has no method soft_foreground: "
        "derive it from QualityFocalFormula or VarifocalFormula, or leave the qualities out"
    )


def sum_in_order(losses: Tensor) -> Tensor:
    """Their sum; on a CPU in an order that no number of threads changes."""
    if not losses.is_cpu:
        return losses.sum()
    losses = losses.flatten()
    whole = losses[: len(losses) // _SUM_LENGTH * _SUM_LENGTH].view(-1, _SUM_LENGTH)
    return whole.sum(1).sum() + losses[whole.numel() :].sum()


def arithmetic_dtype(pred_logits: Tensor) -> torch.dtype:
    """float32, or float64 for float64 logits."""
    return torch.promote_types(pred_logits.dtype, torch.float32)
