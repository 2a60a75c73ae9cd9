"""Box losses, on foreground anchors only."""
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.common.registry import Registry
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import nn

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
