"""Sigmoid losses on integer labels in one dense pass: no one-hot targets, no stored graph.

Such a loss is a sum over all (anchor, class) entries of ``alpha_t * phi(-x_t)``. x_t is the logit
of the truth, x in the anchor's class and -x in every other class (arXiv 1708.02002, appendix A);
phi grows with the error -x_t. Cross entropy is ``phi = softplus``.

The pass is made of PyTorch's operations, for any phi. On a GPU, the focal loss and cross entropy
take one kernel in its place.
"""

import functools
import logging

import torch
from torch.autograd.function import once_differentiable

from .terms import FocalTerms

# Values of a chunk: on a CPU 2**17 float32 for a thread, which stay in its cache; a GPU wants few
# large kernels.
_CHUNK_SIZE = {"cpu": 1 << 17, "cuda": 1 << 24}
# Gradients wait for backward in the type of the logits. Background gradients of a well-trained
# model (p^2 and less) would underflow in float16; a power of two keeps them exact. It leaves room
# for slopes up to 60; those of cross entropy and the focal losses stay below 3.
_FLOAT16_SCALE = 2.0**10


def dense_sigmoid_loss(pred_logits, gt_labels, terms, alpha=None):
    """Sum over all entries that are not ignored; its gradient is computed in the same pass.

    The arithmetic is float32 (float64 for float64 logits), under autocast as well. Costs one
    tensor of the logits' size and type, the gradient.

    Args:
        pred_logits (Tensor): (..., K), any floating type, any memory layout.
        gt_labels (Tensor): (...), int64: -1 ignored, 0..K-1 a class, K background.
        terms (callable): from the errors -x_t, of any shape, to phi of them and its derivative.
            :class:`FocalTerms` takes the kernel where that runs.
        alpha (float or Tensor or None): weight of foreground entries, those of background have
            1 - alpha; a Tensor (K,) holds one for each class. None: every weight is 1.

    Returns:
        Tensor: a scalar.
    """
    return _DenseSigmoidLoss.apply(pred_logits, gt_labels, terms, alpha)


class _DenseSigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred_logits, gt_labels, terms, alpha):
        ctx.save_for_backward(pred_logits, gt_labels)
        ctx.arguments = terms, alpha
        ctx.grad = torch.empty_like(pred_logits) if ctx.needs_input_grad[0] else None
        return _loss_and_grad(pred_logits, gt_labels, terms, alpha, ctx.grad)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        # The first backward gives the gradient away; a further one, through a graph that was
        # retained, computes it anew.
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            pred_logits, gt_labels = ctx.saved_tensors
            grad = torch.empty_like(pred_logits)
            _loss_and_grad(pred_logits, gt_labels, *ctx.arguments, grad)
        grad_loss = grad_loss / _storage_scale(grad)
        if grad.dtype == grad_loss.dtype:
            return grad.mul_(grad_loss), None, None, None
        # In float32: a loss scale may not fit float16, though its product with the gradient does. A
        # vector of one value, unlike a scalar, takes the product to its type.
        for (chunk,) in _chunks([grad]):
            torch.mul(chunk, grad_loss.view(1), out=chunk)
        return grad, None, None, None


@torch.no_grad()
def dense_anchor_losses(pred_logits, gt_labels, terms, alpha=None):
    """The loss of each anchor, summed over its classes; no gradient.

    Arguments as in :func:`dense_sigmoid_loss`.

    Returns:
        Tensor: (...), float32 (float64 for float64 logits); 0 for ignored anchors.
    """
    losses = torch.empty(gt_labels.shape, dtype=_dtype(pred_logits), device=pred_logits.device)
    for logits, labels, out in _chunks([pred_logits, gt_labels, losses]):
        out.copy_(_chunk_losses(logits, labels, terms, alpha))
    return losses


def _loss_and_grad(pred_logits, gt_labels, terms, alpha, grad):
    """Return the summed loss; write its gradient into ``grad`` unless that is None."""
    kernel = _kernel_for(pred_logits, terms)
    if kernel is not None:
        scale = _storage_scale(pred_logits)
        return kernel.loss_and_grad(pred_logits, gt_labels, terms.gamma, alpha, grad, scale)
    loss = pred_logits.new_zeros((), dtype=_dtype(pred_logits))
    for logits, labels, grad_chunk in _chunks([pred_logits, gt_labels, grad]):
        loss += _chunk_losses(logits, labels, terms, alpha, grad_chunk).sum()
    return loss


def _kernel_for(pred_logits, terms):
    """The module ``triton_focal`` if it can take the place of the pass below, else None."""
    if type(terms) is not FocalTerms:  # a subclass may have changed the formula
        return None
    if not pred_logits.is_cuda or pred_logits.dtype == torch.float64:
        return None
    kernel = _triton_focal(pred_logits.device, pred_logits.dtype)
    return kernel if kernel is not None and kernel.can_run(pred_logits) else None


@functools.cache
def _triton_focal(device, dtype):
    """The module ``triton_focal``, or None where it does not work.

    That is tried on one entry: Triton may be missing or too old, or lack the C compiler that it
    builds its launcher with. It does not support GPUs below compute capability 7.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < (7, 0):
        return None
    try:
        from . import triton_focal

        logits = torch.zeros(1, 1, dtype=dtype, device=device)
        labels = torch.zeros(1, dtype=torch.int64, device=device)
        triton_focal.loss_and_grad(logits, labels, 2.0, None, torch.empty_like(logits), 1.0)
    except Exception as error:
        logging.getLogger(__name__).warning(
            f"the focal loss takes PyTorch's operations, slower than its Triton kernel: {error!r}"
        )
        return None
    return triton_focal


def _dtype(pred_logits):
    return torch.promote_types(pred_logits.dtype, torch.float32)


def _storage_scale(grad):
    return _FLOAT16_SCALE if grad.dtype == torch.float16 else 1.0


def _chunk_losses(logits, labels, terms, alpha, grad=None):
    """Losses (...) of anchors for logits (..., K) and labels (...); gradients go into ``grad``.

    Every entry is treated as background; then the one foreground entry of an anchor replaces
    that, and ignored anchors are cleared. No step waits for a GPU or depends on the labels' values.
    """
    logits = logits.to(_dtype(logits))
    index = labels.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)
    is_class = index == labels.unsqueeze(-1)
    ignored = labels < 0

    loss, slope = terms(logits)
    fg_loss, fg_slope = terms(-logits.gather(-1, index))
    bg_weight = 1.0
    if alpha is not None:
        bg_weight = 1 - alpha
        alpha_fg = alpha[index] if isinstance(alpha, torch.Tensor) else alpha
        loss *= bg_weight
        fg_loss *= alpha_fg
        fg_slope *= alpha_fg
    loss.scatter_(-1, index, torch.where(is_class, fg_loss, loss.gather(-1, index)))

    if grad is not None:
        # One pass weights, clears, converts and stores.
        scale = _storage_scale(grad)
        weight = (~ignored).unsqueeze(-1).to(slope.dtype) * (bg_weight * scale)
        torch.mul(slope, weight, out=grad)
        fg_grad = fg_slope.mul_(-scale).to(grad.dtype)
        grad.scatter_(-1, index, torch.where(is_class, fg_grad, grad.gather(-1, index)))
    return loss.sum(-1).masked_fill_(ignored, 0)


def _chunks(tensors):
    """Split tensors that share their leading dimensions so that the first stays in the cache.

    None stays None. Parts are cut in the memory order of the first tensor, whose last dimension,
    the classes, is not cut.
    """
    first = tensors[0]
    size = _CHUNK_SIZE.get(first.device.type, _CHUNK_SIZE["cuda"])
    if first.device.type == "cpu":
        size *= torch.get_num_threads()
    order = sorted(range(first.dim() - 1), key=first.stride, reverse=True)
    tensors = [t if t is None else t.permute(*order, *range(len(order), t.dim())) for t in tensors]
    return _split(tensors, size)


def _split(tensors, size):
    first = tensors[0]
    if first.numel() <= size or first.dim() == 1:
        yield tensors
    elif first[0].numel() > size:
        for i in range(len(first)):
            yield from _split([t if t is None else t[i] for t in tensors], size)
    else:
        step = size // first[0].numel()
        for i in range(0, len(first), step):
            yield [t if t is None else t[i : i + step] for t in tensors]
