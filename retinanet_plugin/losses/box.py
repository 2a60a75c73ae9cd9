"""Box losses, on foreground anchors only."""
import math

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.common.registry import Registry
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import nn

from ..compat import box_iou_loss

BOX_LOSS_REGISTRY = Registry("RETINANET_BOX_LOSS")
BOX_LOSS_REGISTRY.__doc__ = """
Box losses, chosen by ``MODEL.RETINANET.BBOX_REG_LOSS_TYPE``: builders ``builder(cfg)`` of modules
that are called as :meth:`SmoothL1BoxLoss.forward` is.
"""


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
            Tensor: the sum over the F anchors, a scalar. A side of no length has no finite delta,
            its logarithm is -inf: that term is left out. Detectron2's mapper removes such boxes;
            with others, stock's loss would be infinite.
        """
        gt_anchor_deltas = self.box2box_transform.get_deltas(anchors, gt_boxes)
        gt_anchor_deltas = torch.where(
            gt_anchor_deltas == -math.inf, pred_anchor_deltas.detach(), gt_anchor_deltas
        )
        return smooth_l1_loss(pred_anchor_deltas, gt_anchor_deltas, self.beta, reduction="sum")


class IoUBoxLoss(nn.Module):
    """A loss between decoded boxes.

    GIoU: Rezatofighi et al., arXiv 1902.09630, algorithm 2. DIoU and CIoU: Zheng et al., arXiv
    1911.08287, equations 7 and 10. CIoU compares aspect ratios, which a box without width and
    height lacks: as in stock, its loss is not a number.
    """

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


@BOX_LOSS_REGISTRY.register()
def diou(cfg):
    return IoUBoxLoss(_box2box_transform(cfg), box_iou_loss("diou"))


@BOX_LOSS_REGISTRY.register()
def ciou(cfg):
    return IoUBoxLoss(_box2box_transform(cfg), box_iou_loss("ciou"))


def _box2box_transform(cfg):
    return Box2BoxTransform(weights=cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS)
