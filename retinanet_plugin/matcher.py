"""Which anchors see which ground-truth boxes: labels and matched boxes for the losses."""
import torch
from detectron2.config import configurable
from detectron2.structures import Boxes, pairwise_iou
from fvcore.common.registry import Registry
from torch import nn

MATCHER_REGISTRY = Registry("RETINANET_MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers, chosen by ``MODEL.RETINANET.MATCHER_NAME``; built as ``matcher(cfg)`` and called as
:meth:`IoUMatcher.forward` is.
"""


@MATCHER_REGISTRY.register()
class IoUMatcher(nn.Module):
    """Labels anchors by the bands of their best IoU (arXiv 1708.02002, section 4).

    IoU >= 0.5 is foreground, < 0.4 background, between them ignored. As in Detectron2's RetinaNet,
    every anchor that reaches a box's best IoU is foreground too, however low that IoU is
    (a "low-quality match"), and regresses to the box which it overlaps most itself.
    """

    @configurable
    def __init__(self, *, num_classes, iou_thresholds, iou_labels, block_bytes=64 << 20):
        """
        Args:
            num_classes (int): K, the label of background.
            iou_thresholds (list[float]): ascending borders of the IoU bands, ``[0.4, 0.5]``.
            iou_labels (list[int]): of each band, lowest first: 0 background, -1 ignored,
                1 foreground; one more than borders.
            block_bytes (int): about the memory of a block of the IoU matrix, which is
                never held whole.
        """
        super().__init__()
        if list(iou_thresholds) != sorted(iou_thresholds):
            raise ValueError(f"IOU_THRESHOLDS must ascend, got {iou_thresholds}")
        if len(iou_labels) != len(iou_thresholds) + 1 or not set(iou_labels) <= {-1, 0, 1}:
            raise ValueError(
                f"IOU_LABELS must hold one of -1, 0, 1 for each of the {len(iou_thresholds) + 1} "
                f"bands, got {iou_labels}"
            )
        self.num_classes = num_classes
        self.iou_thresholds = list(iou_thresholds)
        self.iou_labels = list(iou_labels)
        self.block_bytes = block_bytes

    @classmethod
    def from_config(cls, cfg):
        return {
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "iou_thresholds": cfg.MODEL.RETINANET.IOU_THRESHOLDS,
            "iou_labels": cfg.MODEL.RETINANET.IOU_LABELS,
        }

    def extra_repr(self):
        return f"iou_thresholds={self.iou_thresholds}, iou_labels={self.iou_labels}"

    @torch.no_grad()
    def forward(self, anchors, gt_instances):
        """
        Args:
            anchors (list[Boxes]): of each level, Hi*Wi*A boxes; R in all.
            gt_instances (list[Instances]): N images with ``gt_boxes`` and ``gt_classes``.

        Returns:
            tuple[Tensor, Tensor]: labels (N, R), int64: -1 ignored, 0..K-1 a class, K background;
            and matched boxes (N, R, 4), absolute pixels, zeros in an image without boxes.
            The matched box of an anchor that is not foreground has no meaning.
        """
        anchors = Boxes.cat(anchors)
        matches = [self._match_image(anchors, instances) for instances in gt_instances]
        gt_labels, matched_gt_boxes = zip(*matches)
        return torch.stack(gt_labels), torch.stack(matched_gt_boxes)

    def _match_image(self, anchors, instances):
        if len(instances) == 0:
            background = torch.full(
                (len(anchors),), self.num_classes, dtype=torch.int64, device=anchors.device
            )
            return background, torch.zeros_like(anchors.tensor)
        best_iou, best_box, low_quality = self._best_matches(anchors, instances.gt_boxes)
        band = torch.bucketize(best_iou, best_iou.new_tensor(self.iou_thresholds), right=True)
        anchor_labels = torch.tensor(self.iou_labels, device=best_iou.device)[band]
        anchor_labels[low_quality] = 1

        gt_labels = instances.gt_classes[best_box]
        gt_labels[anchor_labels == 0] = self.num_classes
        gt_labels[anchor_labels == -1] = -1
        return gt_labels, instances.gt_boxes.tensor[best_box]

    def _best_matches(self, anchors, gt_boxes):
        """Exactly what a whole (M, R) IoU matrix would give, from blocks of its rows.

        Returns:
            best IoU (R,) of each anchor; the first box (R,) that has it; whether the anchor
            reaches the best IoU of any box (R,), bool. A box that overlaps no anchor has best
            IoU 0, which every anchor that it does not touch reaches: stock behaviour.
        """
        num_anchors = len(anchors)
        best_iou = anchors.tensor.new_full((num_anchors,), -1.0)
        best_box = torch.zeros(num_anchors, dtype=torch.int64, device=anchors.device)
        low_quality = torch.zeros(num_anchors, dtype=torch.bool, device=anchors.device)
        # pairwise_iou holds about seven float32 values for an entry of the matrix.
        rows = max(1, self.block_bytes // (7 * 4 * num_anchors))
        for start in range(0, len(gt_boxes), rows):
            iou = pairwise_iou(gt_boxes[start : start + rows], anchors)
            low_quality |= (iou == iou.max(dim=1, keepdim=True).values).any(dim=0)
            block_iou, block_box = iou.max(dim=0)
            better = block_iou > best_iou
            best_iou = torch.where(better, block_iou, best_iou)
            best_box = torch.where(better, block_box + start, best_box)
        return best_iou, best_box, low_quality
