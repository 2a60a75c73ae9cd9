"""The focal loss and its gradient in one GPU kernel, written in Triton; with soft targets as well.

Each logit is read once, each gradient written once, and nothing else of their size is made. The
formulas are those of ``formulas.py``. Importing this file needs Triton, which
PyTorch's CUDA builds bring.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .formulas import FocalFormula, VarifocalFormula
from .stored_gradients import storage_scale

# Four entries for each of 256 threads: with eight, registers would leave room for fewer threads.
_BLOCK_SIZE = 1024
_NUM_WARPS = 8
SMALLEST_NORMAL = tl.constexpr(2.0**-126)  # of float32
# The kernel counts in int32 within a run (below), which a block may pass.
_LONGEST_RUN = 1 << 30


def can_run(pred_logits: torch.Tensor) -> bool:
    """Whether :func:`loss_and_grads` takes these logits."""
    order, run_length = _memory_layout(pred_logits)
    return pred_logits.permute(order).is_contiguous() and run_length <= _LONGEST_RUN


def loss_and_grads(
    pred_logits: Sequence[torch.Tensor],
    gt_labels: Sequence[torch.Tensor],
    gt_qualities: Sequence[torch.Tensor | None],
    formula: FocalFormula,
    alpha: float | torch.Tensor | None,
    grads: Sequence[torch.Tensor] | None,
) -> torch.Tensor:
    """The loss, summed over levels, and its gradient of each level unless ``grads`` is None.

    The arithmetic is float32, the sum is the same in every run, the host does not wait.

    Args:
        pred_logits: of each level, (..., K), float16, bfloat16 or float32, dense in memory with
            its dimensions in any order.
        gt_labels: of each level, (...), integers: below 0 ignored, 0..K-1 a class, K and above
            background.
        gt_qualities: of each level, (...), the soft targets of a formula that has them, or None;
            alpha, a number or None, then weighs background alone.
        formula: one of ``KERNEL_FORMULAS`` in ``dense_sigmoid.py``.
        alpha: weight of foreground entries, those of background have
            1 - alpha; a Tensor (K,) holds one for each class. None: every weight is 1.
        grads: of the logits' types and strides; the gradient times its :func:`storage_scale` is
            written there.

    Returns:
        Tensor: a float32 scalar.
    """
    num_blocks = [triton.cdiv(logits.numel(), _BLOCK_SIZE) for logits in pred_logits]
    block_losses = pred_logits[0].new_empty(sum(num_blocks), dtype=torch.float32)
    losses_of_levels = block_losses.split(num_blocks)
    # Triton launches on the current device, which need not be the logits'.
    with torch.cuda.device_of(block_losses):
        for i, logits in enumerate(pred_logits):
            grad = None if grads is None else grads[i]
            if logits.numel() > 0:
                _launch(
                    logits, gt_labels[i], gt_qualities[i], formula, alpha, grad, losses_of_levels[i]
                )
    return block_losses.sum()


def _launch(pred_logits, gt_labels, gt_qualities, formula, alpha, grad, block_losses):
    order, run_length = _memory_layout(pred_logits)
    label_order = [dim for dim in order if dim != gt_labels.dim()]
    per_class = isinstance(alpha, torch.Tensor)
    foreground_weight, background_weight = 1.0, 1.0
    if alpha is not None and not per_class:
        foreground_weight, background_weight = float(alpha), 1 - float(alpha)
    targets = "hard"
    if gt_qualities is not None:
        foreground_weight = 1.0
        targets = "varifocal" if isinstance(formula, VarifocalFormula) else "quality"
    _focal_kernel[(len(block_losses),)](
        pred_logits,
        gt_labels.permute(label_order).contiguous(),
        # In place of a tensor that is not there, any: the kernel does not touch it.
        alpha.contiguous() if per_class else block_losses,
        block_losses if targets == "hard" else gt_qualities.permute(label_order).contiguous(),
        block_losses if grad is None else grad,
        block_losses,
        pred_logits.numel(),
        run_length,
        float(formula.gamma),
        foreground_weight,
        background_weight,
        storage_scale(pred_logits),
        NUM_CLASSES=pred_logits.shape[-1],
        PER_CLASS=per_class,
        TARGETS=targets,
        WITH_GRAD=grad is not None,
        BLOCK_SIZE=_BLOCK_SIZE,
        num_warps=_NUM_WARPS,
    )


def _memory_layout(pred_logits):
    """Dimensions from the outermost in memory to the innermost, and the length of a run.

    A run is a stretch of memory with one class: all pixels of it (NCHW), or one entry
    (channels-last).
    """
    order = sorted(range(pred_logits.dim()), key=pred_logits.stride, reverse=True)
    inner = order[order.index(pred_logits.dim() - 1) + 1 :]
    return order, math.prod(pred_logits.shape[dim] for dim in inner)


@triton.jit
def _focal_kernel(
    logits,  # in memory (..., NUM_CLASSES, run_length)
    labels,  # integers, in memory (..., run_length)
    alphas,  # (NUM_CLASSES,), read if PER_CLASS
    qualities,  # as the labels, read unless TARGETS is "hard"
    grad,  # in memory as the logits, written if WITH_GRAD
    block_losses,  # of each program
    num_entries,
    run_length,
    gamma,
    foreground_weight,  # read unless PER_CLASS
    background_weight,
    grad_scale,
    NUM_CLASSES: tl.constexpr,
    PER_CLASS: tl.constexpr,
    TARGETS: tl.constexpr,  # "hard", "quality" or "varifocal"
    WITH_GRAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    # There may be more than 2^31 entries. int64 is for the one start of a block; from there on
    # int32 is enough, and divides faster.
    start = tl.program_id(0).to(tl.int64) * BLOCK_SIZE
    entry = tl.arange(0, BLOCK_SIZE)
    in_bounds = entry < num_entries - start
    run = start // run_length
    position = (start % run_length).to(tl.int32) + entry  # counted from the start of that run
    runs = (run % NUM_CLASSES).to(tl.int32) + position // run_length  # from the run of class 0
    cls = runs % NUM_CLASSES
    anchor = runs // NUM_CLASSES * run_length + position % run_length
    first_anchor = run // NUM_CLASSES * run_length

    x = tl.load(logits + start + entry, mask=in_bounds, other=0.0).to(tl.float32)
    # As they come, since a conversion of a level costs the host as much as this kernel.
    label = tl.load(labels + first_anchor + anchor, mask=in_bounds, other=0)
    is_foreground = label == cls
    is_known = in_bounds & (label >= 0)
    if TARGETS != "hard":
        quality_at = qualities + first_anchor + anchor
        quality = tl.load(quality_at, mask=in_bounds & is_foreground, other=0.0).to(tl.float32)
    if TARGETS == "varifocal":
        is_foreground = is_foreground & (quality > 0)
    v = tl.where(is_foreground, -x, x)  # the error -x_t
    loss, slope = _focal_formula(v, gamma)
    if TARGETS != "hard":
        soft_loss, soft_slope = _soft_formula(v, quality, gamma, TARGETS)
        loss = tl.where(is_foreground, soft_loss, loss)
        slope = tl.where(is_foreground, soft_slope, slope)

    if PER_CLASS:
        alpha = tl.load(alphas + cls).to(tl.float32)
        weight = tl.where(is_foreground, alpha, 1.0 - alpha)
    else:
        weight = tl.where(is_foreground, foreground_weight, background_weight)
    loss = tl.where(is_known, weight * loss, 0.0)
    tl.store(block_losses + tl.program_id(0), tl.sum(loss, axis=0))
    if WITH_GRAD:
        slope = tl.where(is_foreground, -slope, slope) * weight * grad_scale
        # Less than a normal number is 0, as in the pass on a CPU. What is not a number stays.
        is_zero = (tl.abs(slope) < SMALLEST_NORMAL) | (label < 0)
        tl.store(grad + start + entry, tl.where(is_zero, 0.0, slope), mask=in_bounds)


@triton.jit
def _focal_formula(v, gamma):
    """As ``FocalFormula`` in ``formulas.py``, of float32 errors of any size."""
    q, p_t, log1p_exp = _sigmoid_and_logarithm(v)
    focus = q * q
    if gamma == 0:
        focus = tl.full(q.shape, 1.0, tl.float32)
    elif gamma != 2:
        focus = tl.exp(gamma * (tl.minimum(v, 0.0) - log1p_exp))  # of gamma log(q)
    loss = focus * (tl.maximum(v, 0.0) + log1p_exp)
    return loss, gamma * p_t * loss + q * focus


@triton.jit
def _soft_formula(v, quality, gamma, TARGETS: tl.constexpr):
    """``soft_foreground`` of ``QualityFocalFormula`` or, q > 0, ``VarifocalFormula``."""
    one_minus_p, p, log1p_exp = _sigmoid_and_logarithm(v)
    cross_entropy = log1p_exp + quality * tl.maximum(v, 0.0) + (1 - quality) * tl.maximum(-v, 0.0)
    distance = quality - p
    if TARGETS == "varifocal":
        return quality * cross_entropy, quality * distance
    size = tl.abs(distance)
    focus = distance * distance
    steepness = 2 * size
    if gamma == 0:
        focus = tl.full(v.shape, 1.0, tl.float32)
        steepness = tl.full(v.shape, 0.0, tl.float32)
    elif gamma != 2:
        logarithm = tl.log(tl.maximum(size, 1e-30))
        focus = tl.exp(gamma * logarithm)
        steepness = gamma * tl.exp((gamma - 1) * logarithm)
    steepness = tl.where(distance < 0, -steepness, steepness)
    return (
        focus * cross_entropy,
        focus * distance + steepness * p * one_minus_p * cross_entropy,
    )


@triton.jit
def _sigmoid_and_logarithm(v):
    """sigmoid(v), sigmoid(-v) and log(1 + exp(-|v|)), of float32 values of any size."""
    exp = tl.exp(-tl.abs(v))  # of no positive number: cannot overflow
    larger = 1.0 / (1.0 + exp)
    smaller = exp * larger
    # log(1 + exp) as the series of 2 artanh(s), s <= 1/3; a GPU's fast logarithm near 1 would
    # lose the small losses.
    s = exp / (2.0 + exp)
    s2 = s * s
    series = 1.0 / 9 + s2 * (1.0 / 11 + s2 * (1.0 / 13 + s2 * (1.0 / 15)))
    series = 1.0 + s2 * (1.0 / 3 + s2 * (1.0 / 5 + s2 * (1.0 / 7 + s2 * series)))
    is_positive = v >= 0
    return (
        tl.where(is_positive, larger, smaller),
        tl.where(is_positive, smaller, larger),
        2.0 * s * series,
    )
