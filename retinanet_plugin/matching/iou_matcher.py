"""Which anchors see which ground-truth boxes, by IoU: Detectron2's labels without its matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..eager import values_at_hand
from ..errors import UserError
from .best_boxes import BestBoxes
from .ground_truth import GroundTruth, check_devices, padded_truth
from .iou_matrix import matrix_search
from .iou_search import ANY_OVERLAP, add_all_overlaps, search
from .registry import MATCHER_REGISTRY, check_memory
from .targets import Targets


@MATCHER_REGISTRY.register()
class IoUMatcher(nn.Module):
    """Labels anchors by the bands of their best IoU (Lin et al., arXiv 1708.02002, section 4).

    IoU >= 0.5 is foreground, < 0.4 background, between them ignored. As in Detectron2's RetinaNet,
    every anchor that reaches a box's best IoU is foreground too, however low that IoU is
    (a "low-quality match"; Ren et al., arXiv 1506.01497, section 3.1.2, case i), and regresses to
    the box that it overlaps most itself. Labels, and the boxes of foreground anchors, are those
    of Detectron2's ``Matcher`` bit for bit. Two switches correct what is doubtful in it.

    On a CPU only the IoUs that matter are computed. On other devices, for fake tensors and while a
    program is recorded all of them are, in fixed shapes, so that nothing waits for the device or
    asks for values. Results are the same.
    """

    needs_predictions: bool = False
    # A CUDA graph can hold match_padded: none of its shapes depends on values.
    fixed_shapes: bool = True

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        iou_thresholds: Sequence[float],
        iou_labels: Sequence[int],
        skip_unreached_boxes: bool = False,
        low_quality_to_cause: bool = False,
        memory_mb: float = 16,
    ) -> None:
        """
        Args:
            num_classes: K, the label of background.
            iou_thresholds: ascending borders of the IoU bands, ``[0.4, 0.5]``.
            iou_labels: of each band, lowest first: 0 background, -1 ignored, 1 foreground; one
                more than borders.
            skip_unreached_boxes: a box that overlaps no anchor makes none foreground. Otherwise
                it makes every anchor of its image so, all having its best IoU: 0.
            low_quality_to_cause: an anchor that is foreground only as a low-quality match takes
                class and box from the box that it is the best anchor of; from several, from that
                of the highest IoU with it, the first of equal ones.
            memory_mb: about the MiB of temporaries to work in, next to the results; on a
                GPU, for each image.

        Raises:
            UserError: thresholds, labels or memory make no sense.
        """
        super().__init__()
        _check_bands(iou_thresholds, iou_labels)
        check_memory(memory_mb)
        self.num_classes = num_classes
        self.iou_thresholds = list(iou_thresholds)
        self.iou_labels = list(iou_labels)
        self.skip_unreached_boxes = skip_unreached_boxes
        self.low_quality_to_cause = low_quality_to_cause
        self.memory_mb = memory_mb

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        retinanet = cfg.MODEL.RETINANET
        return {
            "num_classes": retinanet.NUM_CLASSES,
            "iou_thresholds": retinanet.IOU_THRESHOLDS,
            "iou_labels": retinanet.IOU_LABELS,
            "skip_unreached_boxes": retinanet.MATCHER_SKIP_UNREACHED_BOXES,
            "low_quality_to_cause": retinanet.MATCHER_LOW_QUALITY_TO_CAUSE,
            "memory_mb": retinanet.MATCHER_MEMORY_MB,
        }

    def extra_repr(self) -> str:
        return f"iou_thresholds={self.iou_thresholds}, iou_labels={self.iou_labels}"

    @torch.no_grad()
    def forward(self, anchors: list[Boxes], gt_instances: list[Instances]) -> Targets:
        """
        Args:
            anchors: of each level, Hi*Wi*A boxes, absolute pixels; R in all.
            gt_instances: N images with ``gt_boxes``, absolute pixels, and ``gt_classes``.

        Raises:
            UserError: ground truth is on another device than the anchors.
        """
        check_devices(anchors, gt_instances)
        boxes = [x.tensor for x in anchors] + [x.gt_boxes.tensor for x in gt_instances]
        # The search ranks IoUs by their bits in float32.
        if not all(values_at_hand(x) and x.dtype == torch.float32 for x in boxes):
            return self.match_padded(anchors, *padded_truth(gt_instances))

        truth, num_anchors = GroundTruth(gt_instances), sum(len(boxes) for boxes in anchors)
        targets = truth.all_background(num_anchors, self.num_classes)
        if len(truth.boxes) == 0 or num_anchors == 0:
            return targets
        # Where the lowest band is foreground, every overlap matters.
        min_iou = ANY_OVERLAP if self.iou_labels[0] == 1 else self.iou_thresholds[0]
        best, claims, best_iou = search(anchors, truth, min_iou, self._max_bytes)
        bands = self._bands(best)
        self._add_low_quality(bands, best, claims, best_iou, anchors, truth)

        bands = bands.view_as(targets.gt_labels)
        for image, instances in enumerate(gt_instances):
            if len(instances) == 0:
                bands[image] = 0  # whatever the label of the lowest band
        foreground = (bands.view(-1) == 1).nonzero().squeeze(1)
        _, box = best.get(foreground)
        targets.gt_labels.view(-1)[foreground] = truth.classes[box]
        targets.gt_labels.masked_fill_(bands == -1, -1)
        targets.matched_gt_boxes.view(-1, 4)[foreground] = truth.boxes[box]
        return targets

    @torch.no_grad()
    def match_padded(self, anchors: list[Boxes], gt_boxes: Tensor, gt_classes: Tensor) -> Targets:
        """:meth:`forward` in shapes that depend on no values.

        Args:
            anchors: as in :meth:`forward`.
            gt_boxes, gt_classes: (N, M, 4) and (N, M), as
                :func:`retinanet_plugin.matching.padded_truth` makes them; M > 0.
        """
        anchor_boxes = Boxes.cat(anchors).tensor
        if len(anchor_boxes) == 0:
            no_labels = gt_classes.new_zeros(len(gt_boxes), 0)
            return Targets(no_labels, gt_boxes.new_zeros(len(gt_boxes), 0, 4))
        is_box = gt_classes >= 0
        best, claims = matrix_search(anchor_boxes, gt_boxes, is_box, self._max_bytes)
        bands = torch.full_like(best.box, self.iou_labels[0], dtype=torch.int8)
        for threshold, label in zip(self.iou_thresholds, self.iou_labels[1:]):
            bands.masked_fill_(best.value >= threshold, label)
        claimed = claims.value > 0 if self.skip_unreached_boxes else claims.value >= 0
        low_quality = claimed & (bands != 1)
        bands.masked_fill_(low_quality, 1)
        bands.masked_fill_(~is_box.any(1, keepdim=True), 0)  # whatever the lowest band's label

        box = best.box
        if self.low_quality_to_cause:
            box = torch.where(low_quality, claims.box, box)
        foreground = bands == 1
        gt_labels = gt_classes.gather(1, box).masked_fill_(~foreground, self.num_classes)
        gt_labels.masked_fill_(bands == -1, -1)
        box, background = box.unsqueeze(2).expand(-1, -1, 4), ~foreground.unsqueeze(2)
        return Targets(gt_labels, gt_boxes.gather(1, box).masked_fill_(background, 0))

    @property
    def _max_bytes(self) -> int:
        return int(self.memory_mb * 2**20)

    def _bands(self, best: BestBoxes) -> Tensor:
        """The label (N * R,), int8, of the band of each anchor's best IoU."""
        bands = torch.full_like(best.rank, self.iou_labels[0], dtype=torch.int8)
        position = best.in_a_pair().nonzero().squeeze(1)
        iou, _ = best.get(position)
        band = torch.bucketize(iou, iou.new_tensor(self.iou_thresholds), right=True)
        bands[position] = bands.new_tensor(self.iou_labels)[band]
        return bands

    def _add_low_quality(
        self,
        bands: Tensor,
        best: BestBoxes,
        claims: BestBoxes,
        best_iou: Tensor,
        anchors: list[Boxes],
        truth: GroundTruth,
    ) -> None:
        """Make low-quality matches foreground in ``bands``, with the right box in ``best``."""
        claimed = claims.in_a_pair().view(len(truth.first_box), -1)
        if not self.skip_unreached_boxes:
            unreached = (best_iou == 0).nonzero().squeeze(1)
            claimed[truth.image[unreached]] = True
            if self.low_quality_to_cause:
                claims.set_default(unreached)
        low_quality = claimed.view(-1) & (bands != 1)
        bands[low_quality] = 1
        if self.low_quality_to_cause:
            best.rank = torch.where(low_quality, claims.rank, best.rank)
        else:
            # Their best box may overlap them too little to have been looked at.
            unknown = (low_quality & ~best.in_a_pair()).view_as(claimed).any(0)
            index = unknown.nonzero().squeeze(1)
            add_all_overlaps(best, index, anchors, truth, self._max_bytes)


def _check_bands(iou_thresholds: Sequence[float], iou_labels: Sequence[int]) -> None:
    thresholds = list(iou_thresholds)
    if not thresholds or thresholds[0] <= 0 or thresholds != sorted(thresholds):
        raise UserError(
            f"MODEL.RETINANET.IOU_THRESHOLDS is {thresholds}: give one or more IoUs above 0 in "
            "ascending order, such as [0.4, 0.5]"
        )
    if len(iou_labels) != len(thresholds) + 1 or not set(iou_labels) <= {-1, 0, 1}:
        raise UserError(
            f"MODEL.RETINANET.IOU_LABELS is {list(iou_labels)}: give each of the "
            f"{len(thresholds) + 1} bands that IOU_THRESHOLDS makes one of 0 (background), "
            "-1 (ignored) and 1 (foreground)"
        )
