"""Box losses, of each foreground anchor."""

import math

import torch
from fvcore.common.registry import Registry
from fvcore.nn import smooth_l1_loss
from torch import nn

from .deltas import boxes_of, deltas_of
from .iou import ciou_loss, diou_loss, giou_loss

BOX_LOSS_REGISTRY = Registry("RETINANET_BOX_LOSS")
BOX_LOSS_REGISTRY.__doc__ = """
Box losses, chosen by ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE``: builders ``builder(cfg)`` of modules
that are called as :meth:`SmoothL1BoxLoss.forward` is.
"""


class SmoothL1BoxLoss(nn.Module):
    """Smooth L1 between box deltas (arXiv 1708.02002, section 4.1; Fast R-CNN, eq. 3)."""

    # A CUDA graph can hold it: no operation waits for values or has a shape that depends on them.
    static = True

    def __init__(self, weights, beta):
        """
        Args:
            weights (sequence[float]): factors of dx, dy, dw, dh, as in Detectron2's
                ``Box2BoxTransform``.
            beta (float): where the L1 part begins; 0 is the L1 loss.
        """
        super().__init__()
        self.weights = tuple(weights)
        self.beta = beta

    def extra_repr(self):
        return f"beta={self.beta}"

    def forward(self, pred_anchor_deltas, anchors, gt_boxes):
        """
        Args:
            pred_anchor_deltas (Tensor): (F, 4), deltas of F anchors of a batch: the foreground
                ones, or all of them with perfect deltas in place of those that are not.
            anchors (Tensor): (F, 4), absolute pixels.
            gt_boxes (Tensor): (F, 4), the boxes matched to them, absolute pixels.

        Returns:
            Tensor: the loss of each of the F anchors, (F,). A side of no length has no finite
            delta, its logarithm is -inf: that term is left out. Detectron2's mapper removes such
            boxes; with others, stock's loss would be infinite.
        """
        gt_anchor_deltas = deltas_of(anchors, gt_boxes, self.weights)
        gt_anchor_deltas = torch.where(
            gt_anchor_deltas == -math.inf, pred_anchor_deltas.detach(), gt_anchor_deltas
        )
        return smooth_l1_loss(pred_anchor_deltas, gt_anchor_deltas, self.beta).sum(1)


class IoUBoxLoss(nn.Module):
    """A loss between decoded boxes, one of ``losses/iou.py``.

    CIoU compares aspect ratios, which a box without width and height lacks: as in stock, its loss
    is not a number.
    """

    static = True

    def __init__(self, weights, iou_loss):
        """
        Args:
            weights: as in :class:`SmoothL1BoxLoss`.
            iou_loss (callable): from boxes (F, 4) and matched boxes (F, 4) to losses (F,).
        """
        super().__init__()
        self.weights = tuple(weights)
        self.iou_loss = iou_loss

    def extra_repr(self):
        return self.iou_loss.__name__

    def forward(self, pred_anchor_deltas, anchors, gt_boxes):
        """Arguments and result as in :meth:`SmoothL1BoxLoss.forward`."""
        return self.iou_loss(boxes_of(pred_anchor_deltas, anchors, self.weights), gt_boxes)


@BOX_LOSS_REGISTRY.register()
def smooth_l1(cfg):
    retinanet = cfg.MODEL.RETINANET
    return SmoothL1BoxLoss(retinanet.BBOX_REG_WEIGHTS, retinanet.SMOOTH_L1_LOSS_BETA)


@BOX_LOSS_REGISTRY.register()
def giou(cfg):
    return IoUBoxLoss(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS, giou_loss)


@BOX_LOSS_REGISTRY.register()
def diou(cfg):
    return IoUBoxLoss(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS, diou_loss)


@BOX_LOSS_REGISTRY.register()
def ciou(cfg):
    return IoUBoxLoss(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS, ciou_loss)
