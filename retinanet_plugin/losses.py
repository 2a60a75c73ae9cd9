"""Classification and box losses on integer labels: no one-hot targets, no stored graph."""
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.common.registry import Registry
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import nn
from torch.autograd.function import once_differentiable

CLS_LOSS_REGISTRY = Registry("RETINANET_CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = """
Classification losses, chosen by ``MODEL.RETINANET.CLS_LOSS_NAME``; built as ``loss(cfg)`` and
called as :meth:`FocalLoss.forward` is.
"""

BOX_LOSS_REGISTRY = Registry("RETINANET_BOX_LOSS")
BOX_LOSS_REGISTRY.__doc__ = """
Box losses, chosen by ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE``: builders ``builder(cfg)`` of modules
that are called as :meth:`SmoothL1BoxLoss.forward` is.
"""


@CLS_LOSS_REGISTRY.register()
class FocalLoss(nn.Module):
    """Focal loss (Lin et al., arXiv 1708.02002, sections 3.2 and 3.3), a sum over all entries.

    ``FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)``, where p_t is the probability of the truth:
    the sigmoid p of the logit in the anchor's class, 1 - p in every other class; alpha_t is
    alpha, or 1 - alpha.
    """

    @configurable
    def __init__(self, *, alpha, gamma):
        """
        Args:
            alpha (float): weight of foreground entries; those of background have 1 - alpha.
                Negative: no balancing.
            gamma (float): focusing; 0 is cross entropy.
        """
        super().__init__()
        if gamma < 0:
            raise ValueError(f"FOCAL_LOSS_GAMMA must not be negative, got {gamma}")
        self.alpha = alpha
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg):
        return {
            "alpha": cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA,
            "gamma": cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
        }

    def extra_repr(self):
        return f"alpha={self.alpha}, gamma={self.gamma}"

    def forward(self, pred_logits, gt_labels):
        """
        Args:
            pred_logits (list[Tensor]): of each level, logits (..., K) in any memory layout.
            gt_labels (list[Tensor]): of each level, labels (...), int64: -1 ignored,
                0..K-1 a class, K background.

        Returns:
            Tensor: the sum over all entries that are not ignored, a float32 scalar (float64 for
            float64 logits).
        """
        return sum(
            sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma)
            for logits, labels in zip(pred_logits, gt_labels)
        )


def sigmoid_focal_loss(pred_logits, gt_labels, *, alpha, gamma):
    """Focal loss of :class:`FocalLoss` on integer labels, with its gradient in the same pass.

    The arithmetic is float32 (float64 for float64 logits), under autocast as well.

    Args:
        pred_logits (Tensor): (..., K), any floating type, any memory layout.
        gt_labels (Tensor): (...), int64: -1 ignored, 0..K-1 a class, K background.
        alpha (float): weight of foreground entries; negative: no balancing.
        gamma (float): focusing parameter, not negative.

    Returns:
        Tensor: the sum over all entries that are not ignored, a scalar.
    """
    return _DenseFocalLoss.apply(pred_logits, gt_labels, alpha, gamma)


class _DenseFocalLoss(torch.autograd.Function):
    """Loss and gradient together, in chunks that stay in the cache.

    Costs one tensor of the logits' size and type, the gradient, which the first backward gives
    away. A further backward through a retained graph computes it anew.
    """

    @staticmethod
    def forward(ctx, pred_logits, gt_labels, alpha, gamma):
        ctx.save_for_backward(pred_logits, gt_labels)
        ctx.parameters = alpha, gamma
        grad = torch.empty_like(pred_logits) if ctx.needs_input_grad[0] else None
        loss = _focal_loss_into(grad, pred_logits, gt_labels, alpha, gamma)
        ctx.grad = grad
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        pred_logits, gt_labels = ctx.saved_tensors
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            grad = torch.empty_like(pred_logits)
            _focal_loss_into(grad, pred_logits, gt_labels, *ctx.parameters)
        return grad.mul_(grad_loss), None, None, None


def _focal_loss_into(grad, pred_logits, gt_labels, alpha, gamma):
    """Return the summed loss; write its gradient into ``grad`` unless that is None."""
    dtype = torch.promote_types(pred_logits.dtype, torch.float32)
    loss = pred_logits.new_zeros((), dtype=dtype)
    # 2**16 float32 values fit a core's cache; a GPU wants large kernels instead.
    chunk_size = 1 << 24 if pred_logits.is_cuda else 1 << 16
    chunks = _chunks((pred_logits, gt_labels, grad), chunk_size)
    for logits, labels, grad_chunk in chunks:
        loss_chunk, exact_grad = _focal_loss_chunk(logits.to(dtype), labels, alpha, gamma)
        loss += loss_chunk
        if grad_chunk is not None:
            grad_chunk.copy_(exact_grad)
    return loss


def _chunks(tensors, size):
    """Split tensors that share their leading dimensions so that the first has <= size values."""
    first = tensors[0]
    if first.numel() <= size or first.dim() == 1:
        yield tensors
    elif first[0].numel() > size:
        for i in range(first.shape[0]):
            yield from _chunks([t if t is None else t[i] for t in tensors], size)
    else:
        step = size // first[0].numel()
        for i in range(0, first.shape[0], step):
            yield [t if t is None else t[i : i + step] for t in tensors]


def _focal_loss_chunk(logits, labels, alpha, gamma):
    """Sum of the loss and its gradient (..., K), for logits (..., K) and labels (...).

    Every entry is treated as background; then the one foreground entry of an anchor replaces
    that, and ignored anchors are cleared.
    """
    num_classes = logits.shape[-1]
    alpha_fg, alpha_bg = (1.0, 1.0) if alpha < 0 else (alpha, 1 - alpha)
    loss, grad = _focal_terms(logits, gamma)
    loss *= alpha_bg
    grad *= alpha_bg

    is_class = ((labels >= 0) & (labels < num_classes)).unsqueeze(-1)
    index = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    fg_loss, fg_grad = _focal_terms(-logits.gather(-1, index), gamma)
    loss.scatter_(-1, index, torch.where(is_class, fg_loss * alpha_fg, loss.gather(-1, index)))
    grad.scatter_(-1, index, torch.where(is_class, fg_grad * -alpha_fg, grad.gather(-1, index)))

    ignored = labels < 0
    grad.masked_fill_(ignored.unsqueeze(-1), 0)
    return loss.sum(-1).masked_fill_(ignored, 0).sum(), grad


def _focal_terms(error_logits, gamma):
    """-(1 - p_t)^gamma log(p_t) and its derivative, both for ``error_logits`` = -x_t.

    x_t, the logit of the truth, is x in the anchor's class and -x in every other (appendix A of
    the paper); so the sigmoid q of the argument is 1 - p_t, and its softplus -log(p_t).
    """
    q = torch.sigmoid(error_logits)
    cross_entropy = F.softplus(error_logits)
    if gamma == 0:
        return cross_entropy, q
    focus = q if gamma == 1 else q * q if gamma == 2 else q.pow(gamma)
    loss = focus * cross_entropy
    # d/dv: gamma q^gamma (1 - q) softplus(v) + q^gamma q
    grad = torch.addcmul(focus * q, loss, 1 - q, value=gamma)
    return loss, grad


class SmoothL1BoxLoss(nn.Module):
    """Smooth L1 between box deltas (arXiv 1708.02002, section 4.1; Fast R-CNN, eq. 3)."""

    def __init__(self, box2box_transform, beta):
        """
        Args:
            box2box_transform (Box2BoxTransform): between boxes and deltas.
            beta (float): where the L1 part begins; 0 is the L1 loss.
        """
        super().__init__()
        self.box2box_transform = box2box_transform
        self.beta = beta

    def extra_repr(self):
        return f"beta={self.beta}"

    def forward(self, pred_anchor_deltas, anchors, gt_boxes):
        """
        Args:
            pred_anchor_deltas (Tensor): (F, 4), deltas of the F foreground anchors of a batch.
            anchors (Tensor): (F, 4), absolute pixels.
            gt_boxes (Tensor): (F, 4), the boxes matched to them, absolute pixels.

        Returns:
            Tensor: the sum over the F anchors, a scalar.
        """
        gt_anchor_deltas = self.box2box_transform.get_deltas(anchors, gt_boxes)
        return smooth_l1_loss(pred_anchor_deltas, gt_anchor_deltas, self.beta, reduction="sum")


class IoUBoxLoss(nn.Module):
    """A loss between decoded boxes, such as GIoU (Rezatofighi et al., arXiv 1902.09630)."""

    def __init__(self, box2box_transform, iou_loss):
        """
        Args:
            box2box_transform (Box2BoxTransform): between boxes and deltas.
            iou_loss (callable): ``iou_loss(boxes (F, 4), gt_boxes (F, 4), reduction="sum")``.
        """
        super().__init__()
        self.box2box_transform = box2box_transform
        self.iou_loss = iou_loss

    def extra_repr(self):
        return self.iou_loss.__name__

    def forward(self, pred_anchor_deltas, anchors, gt_boxes):
        """Arguments and result as in :meth:`SmoothL1BoxLoss.forward`."""
        pred_boxes = self.box2box_transform.apply_deltas(pred_anchor_deltas, anchors)
        return self.iou_loss(pred_boxes, gt_boxes, reduction="sum")


@BOX_LOSS_REGISTRY.register()
def smooth_l1(cfg):
    return SmoothL1BoxLoss(_box2box_transform(cfg), cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA)


@BOX_LOSS_REGISTRY.register()
def giou(cfg):
    return IoUBoxLoss(_box2box_transform(cfg), giou_loss)


def _box2box_transform(cfg):
    return Box2BoxTransform(weights=cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS)
