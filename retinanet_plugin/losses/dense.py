"""Sigmoid losses on integer labels in one dense pass: no one-hot targets, no stored graph.

Such a loss is a sum over all (anchor, class) entries of ``alpha_t * phi(-x_t)``. x_t is the logit
of the truth, x in the anchor's class and -x in every other class (arXiv 1708.02002, appendix A);
phi grows with the error -x_t. Cross entropy is ``phi = softplus``.
"""
import torch
from torch.autograd.function import once_differentiable

# Values of a chunk: 2**16 float32 stay in a core's cache; a GPU wants few large kernels.
_CHUNK_SIZE = {"cpu": 1 << 16, "cuda": 1 << 24}
# Gradients wait for backward in the type of the logits. Background gradients of a well-trained
# model (p^2 and less) would underflow in float16; a power of two keeps them exact.
_FLOAT16_SCALE = 2.0**10


def dense_sigmoid_loss(pred_logits, gt_labels, terms, alpha=None):
    """Sum over all entries that are not ignored; its gradient is computed in the same pass.

    The arithmetic is float32 (float64 for float64 logits), under autocast as well. Costs one
    tensor of the logits' size and type, the gradient.

    Args:
        pred_logits (Tensor): (..., K), any floating type, any memory layout.
        gt_labels (Tensor): (...), int64: -1 ignored, 0..K-1 a class, K background.
        terms (callable): from the errors -x_t, of any shape, to phi of them and its derivative.
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
        # A loss scale such as 2**16 does not fit float16, its product with the gradient does.
        for (chunk,) in _chunks([grad]):
            chunk.copy_(chunk.to(grad_loss.dtype) * grad_loss)
        return grad, None, None, None


def _loss_and_grad(pred_logits, gt_labels, terms, alpha, grad):
    """Return the summed loss; write its gradient into ``grad`` unless that is None."""
    dtype = torch.promote_types(pred_logits.dtype, torch.float32)
    scale = _storage_scale(pred_logits)
    loss = pred_logits.new_zeros((), dtype=dtype)
    for logits, labels, grad_chunk in _chunks([pred_logits, gt_labels, grad]):
        anchor_losses, exact_grad = _weighted_terms(logits.to(dtype), labels, terms, alpha)
        loss += anchor_losses.sum()
        if grad_chunk is not None:
            grad_chunk.copy_(exact_grad if scale == 1 else exact_grad * scale)
    return loss


def _storage_scale(grad):
    return _FLOAT16_SCALE if grad.dtype == torch.float16 else 1.0


def _weighted_terms(logits, labels, terms, alpha):
    """Loss (...) and gradient (..., K) for logits (..., K) and labels (...).

    Every entry is treated as background; then the one foreground entry of an anchor replaces
    that, and ignored anchors are cleared.
    """
    num_classes = logits.shape[-1]
    loss, grad = terms(logits)
    if alpha is not None:
        loss *= 1 - alpha
        grad *= 1 - alpha

    is_class = ((labels >= 0) & (labels < num_classes)).unsqueeze(-1)
    index = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    fg_loss, fg_grad = terms(-logits.gather(-1, index))
    if alpha is not None:
        alpha_fg = alpha[index] if isinstance(alpha, torch.Tensor) else alpha
        fg_loss *= alpha_fg
        fg_grad *= alpha_fg
    loss.scatter_(-1, index, torch.where(is_class, fg_loss, loss.gather(-1, index)))
    grad.scatter_(-1, index, torch.where(is_class, -fg_grad, grad.gather(-1, index)))

    ignored = labels < 0
    grad.masked_fill_(ignored.unsqueeze(-1), 0)
    return loss.sum(-1).masked_fill_(ignored, 0), grad


def _chunks(tensors):
    """Split tensors that share their leading dimensions so that the first stays in the cache."""
    first = tensors[0]
    size = _CHUNK_SIZE.get(first.device.type, _CHUNK_SIZE["cuda"])
    if first.numel() <= size or first.dim() == 1:
        yield tensors
    elif first[0].numel() > size:
        for i in range(len(first)):
            yield from _chunks([t if t is None else t[i] for t in tensors])
    else:
        step = size // first[0].numel()
        for i in range(0, len(first), step):
            yield [t if t is None else t[i : i + step] for t in tensors]
