"""Box losses, of each anchor that they are given."""

import math
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn

from .box_deltas import boxes_of, deltas_of
from .iou_losses import ciou_loss, diou_loss, giou_loss

BOX_LOSS_REGISTRY = Registry("RETINANET_BOX_LOSS")
BOX_LOSS_REGISTRY.__doc__ = """
Box losses, chosen by ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE``: builders ``builder(cfg)`` of modules
that are called as :meth:`SmoothL1BoxLoss.forward` is.
"""


class SmoothL1BoxLoss(nn.Module):
    """Smooth L1 between box deltas (arXiv 1708.02002, section 4.1; Fast R-CNN, eq. 3)."""

    # A CUDA graph can hold it: no operation waits for values or has a shape that depends on them.
    fixed_shapes = True

    def __init__(self, weights: Sequence[float], beta: float):
        """
        Args:
            weights: four factors, of dx, dy, dw, dh, as in Detectron2's ``Box2BoxTransform``;
                stock's are (1, 1, 1, 1).
            beta: where the L1 part begins; 0 is the L1 loss. Stock's is 0.1.
        """
        super().__init__()
        self.weights = tuple(weights)
        self.beta = beta

    def extra_repr(self) -> str:
        return f"beta={self.beta}"

    def forward(self, pred_anchor_deltas: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """
        Args:
            pred_anchor_deltas: (F, 4), deltas of F anchors of a batch: the foreground ones, or all
                of them with perfect deltas in place of those that are not.
            anchors: (F, 4), absolute pixels.
            gt_boxes: (F, 4), the boxes matched to them, absolute pixels.

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
    """A loss between decoded boxes, one of ``losses/iou_losses.py``.

    CIoU compares aspect ratios, which a box without width and height lacks: as in stock, its loss
    is not a number.
    """

    fixed_shapes = True

    def __init__(self, weights: Sequence[float], iou_loss: Callable[[Tensor, Tensor], Tensor]):
        """
        Args:
            weights: as in :class:`SmoothL1BoxLoss`.
            iou_loss: from boxes (F, 4) and matched boxes (F, 4) to losses (F,), such as
                :func:`retinanet_plugin.losses.giou_loss`.
        """
        super().__init__()
        self.weights = tuple(weights)
        self.iou_loss = iou_loss

    def extra_repr(self) -> str:
        return self.iou_loss.__name__

    def forward(self, pred_anchor_deltas: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Arguments and result as in :meth:`SmoothL1BoxLoss.forward`."""
        return self.iou_loss(boxes_of(pred_anchor_deltas, anchors, self.weights), gt_boxes)


@BOX_LOSS_REGISTRY.register()
def smooth_l1(cfg: CfgNode) -> SmoothL1BoxLoss:
    retinanet = cfg.MODEL.RETINANET
    return SmoothL1BoxLoss(retinanet.BBOX_REG_WEIGHTS, retinanet.SMOOTH_L1_LOSS_BETA)


@BOX_LOSS_REGISTRY.register()
def giou(cfg: CfgNode) -> IoUBoxLoss:
    return IoUBoxLoss(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS, giou_loss)


@BOX_LOSS_REGISTRY.register()
def diou(cfg: CfgNode) -> IoUBoxLoss:
    return IoUBoxLoss(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS, diou_loss)


@BOX_LOSS_REGISTRY.register()
def ciou(cfg: CfgNode) -> IoUBoxLoss:
    return IoUBoxLoss(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS, ciou_loss)
