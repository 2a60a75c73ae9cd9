"""Which anchors see which ground-truth boxes, by IoU: Detectron2's labels without its matrix."""

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes
from fvcore.common.registry import Registry
from torch import nn

from ..errors import UserError
from .blocks import AnchorBlocks
from .dense import dense_search
from .targets import BestBoxes, GroundTruth, padded_truth

MATCHER_REGISTRY = Registry("RETINANET_MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers, chosen by ``MODEL.RETINANET.MATCHER_NAME``; built as ``matcher(cfg)`` and called as
:meth:`IoUMatcher.forward` is.
"""
# The smallest IoU above 0 in float32: pairs that do not overlap at all are never of interest.
ANY_OVERLAP = 2.0**-149


@MATCHER_REGISTRY.register()
class IoUMatcher(nn.Module):
    """Labels anchors by the bands of their best IoU (Lin et al., arXiv 1708.02002, section 4).

    IoU >= 0.5 is foreground, < 0.4 background, between them ignored. As in Detectron2's RetinaNet,
    every anchor that reaches a box's best IoU is foreground too, however low that IoU is
    (a "low-quality match"; Ren et al., arXiv 1506.01497, section 3.1.2, case i), and regresses to
    the box that it overlaps most itself. Labels, and the boxes of foreground anchors, are those
    of Detectron2's ``Matcher`` bit for bit. Two switches correct what is doubtful in it.

    On a CPU only the IoUs that matter are computed; on other devices all of them are, in fixed
    shapes, so that nothing waits for the device. Results are the same.
    """

    # A CUDA graph can hold match_padded.
    static = True

    @configurable
    def __init__(
        self,
        *,
        num_classes,
        iou_thresholds,
        iou_labels,
        skip_unreached_boxes=False,
        low_quality_to_cause=False,
        memory_mb=16,
    ):
        """
        Args:
            num_classes (int): K, the label of background.
            iou_thresholds (list[float]): ascending borders of the IoU bands, ``[0.4, 0.5]``.
            iou_labels (list[int]): of each band, lowest first: 0 background, -1 ignored,
                1 foreground; one more than borders.
            skip_unreached_boxes (bool): a box that overlaps no anchor makes none foreground.
                Otherwise it makes every anchor of its image so, all having its best IoU: 0.
            low_quality_to_cause (bool): an anchor that is foreground only as a low-quality match
                takes class and box from the box that it is the best anchor of; from several,
                from that of the highest IoU with it, the first of equal ones.
            memory_mb (float): about the MiB of temporaries to work in, next to the results; on a
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
    def from_config(cls, cfg):
        retinanet = cfg.MODEL.RETINANET
        return {
            "num_classes": retinanet.NUM_CLASSES,
            "iou_thresholds": retinanet.IOU_THRESHOLDS,
            "iou_labels": retinanet.IOU_LABELS,
            "skip_unreached_boxes": retinanet.MATCHER_SKIP_UNREACHED_BOXES,
            "low_quality_to_cause": retinanet.MATCHER_LOW_QUALITY_TO_CAUSE,
            "memory_mb": retinanet.MATCHER_MEMORY_MB,
        }

    def extra_repr(self):
        return f"iou_thresholds={self.iou_thresholds}, iou_labels={self.iou_labels}"

    @torch.no_grad()
    def forward(self, anchors, gt_instances):
        """
        Args:
            anchors (list[Boxes]): of each level, Hi*Wi*A boxes, absolute pixels; R in all.
            gt_instances (list[Instances]): N images with ``gt_boxes``, absolute pixels, and
                ``gt_classes``.

        Returns:
            tuple[Tensor, Tensor]: labels (N, R), int64: -1 ignored, 0..K-1 a class, K background;
            and matched boxes (N, R, 4), absolute pixels, zeros where an anchor is not foreground.
        """
        if anchors[0].device.type != "cpu":
            return self.match_padded(anchors, *padded_truth(gt_instances))
        truth, num_anchors = GroundTruth(gt_instances), sum(len(boxes) for boxes in anchors)
        gt_labels, matched_gt_boxes = truth.no_targets(num_anchors, self.num_classes)
        if len(truth.boxes) == 0 or num_anchors == 0:
            return gt_labels, matched_gt_boxes

        best, cause = BestBoxes(truth, num_anchors), BestBoxes(truth, num_anchors)
        best_iou = self._search(anchors, truth, best, cause)
        bands = self._bands(best)
        self._add_low_quality(anchors, truth, best_iou, best, cause, bands)

        bands = bands.view_as(gt_labels)
        for image, instances in enumerate(gt_instances):
            if len(instances) == 0:
                bands[image] = 0  # whatever the label of the lowest band
        foreground = (bands.view(-1) == 1).nonzero().squeeze(1)
        _, box = best.get(foreground)
        gt_labels.view(-1)[foreground] = truth.classes[box]
        gt_labels.masked_fill_(bands == -1, -1)
        matched_gt_boxes.view(-1, 4)[foreground] = truth.boxes[box]
        return gt_labels, matched_gt_boxes

    @torch.no_grad()
    def match_padded(self, anchors, gt_boxes, gt_classes):
        """:meth:`forward` in shapes that depend on no values.

        Args:
            anchors (list[Boxes]): as in :meth:`forward`.
            gt_boxes, gt_classes (Tensor): (N, M, 4) and (N, M), as
                :func:`retinanet_plugin.matching.padded_truth` makes them; M > 0.

        Returns:
            tuple[Tensor, Tensor]: as :meth:`forward` does.
        """
        is_box = gt_classes >= 0
        best, cause = dense_search(
            Boxes.cat(anchors).tensor, gt_boxes, is_box, int(self.memory_mb * 2**20)
        )
        bands = torch.full_like(best.box, self.iou_labels[0], dtype=torch.int8)
        for threshold, label in zip(self.iou_thresholds, self.iou_labels[1:]):
            bands.masked_fill_(best.value >= threshold, label)
        low_quality = cause.value > 0 if self.skip_unreached_boxes else cause.value >= 0
        weak = low_quality & (bands != 1)
        bands.masked_fill_(weak, 1)
        bands.masked_fill_(~is_box.any(1, keepdim=True), 0)  # whatever the lowest band's label

        box = torch.where(weak, cause.box, best.box) if self.low_quality_to_cause else best.box
        foreground = bands == 1
        gt_labels = gt_classes.gather(1, box).masked_fill_(~foreground, self.num_classes)
        gt_labels.masked_fill_(bands == -1, -1)
        box, background = box.unsqueeze(2).expand(-1, -1, 4), ~foreground.unsqueeze(2)
        return gt_labels, gt_boxes.gather(1, box).masked_fill_(background, 0)

    def _search(self, anchors, truth, best, cause):
        """The best IoU (M,) of each box; fills ``best`` and ``cause``.

        ``best`` gets all pairs that can matter to an anchor's band: those that reach the lowest
        threshold. ``cause`` gets the pairs that have their box's best IoU.
        """
        blocks = self._blocks(anchors)
        boxes, best_iou = truth.boxes, truth.boxes.new_empty(len(truth.boxes))
        # Where the lowest band is foreground, every overlap matters.
        min_iou = ANY_OVERLAP if self.iou_labels[0] == 1 else self.iou_thresholds[0]
        for start, stop in blocks.box_chunks(len(boxes)):
            bound = blocks.iou_bound(boxes[start:stop])
            good_iou = blocks.good_iou(boxes[start:stop], bound)
            wanted = bound >= good_iou.clamp(ANY_OVERLAP, min_iou)[:, None]
            box, block = wanted.nonzero(as_tuple=True)
            box += start
            block_iou = [good_iou[:0]]
            for pairs in blocks.pairs(boxes, box, block):
                best.offer(*blocks.reaching(min_iou, *pairs))
                block_iou.append(pairs[-1].amax(1))
            block_iou = torch.cat(block_iou)
            best_iou[start:stop] = good_iou
            best_iou.scatter_reduce_(0, box, block_iou, "amax")
            # Only now is a box's best IoU known: look again at the few blocks that have it.
            again = ((block_iou == best_iou[box]) & (block_iou > 0)).nonzero().squeeze(1)
            for pairs in blocks.pairs(boxes, box[again], block[again]):
                cause.offer(*blocks.reaching(best_iou[pairs[0], None], *pairs))
        return best_iou

    def _bands(self, best):
        """The label (N * R,), int8, of the band of each anchor's best IoU."""
        bands = torch.full_like(best.rank, self.iou_labels[0], dtype=torch.int8)
        slot = best.taken().nonzero().squeeze(1)
        iou, _ = best.get(slot)
        band = torch.bucketize(iou, iou.new_tensor(self.iou_thresholds), right=True)
        bands[slot] = bands.new_tensor(self.iou_labels)[band]
        return bands

    def _add_low_quality(self, anchors, truth, best_iou, best, cause, bands):
        """Make low-quality matches foreground in ``bands``, with the right box in ``best``."""
        low_quality = cause.taken().view(len(truth.first_box), -1)
        if not self.skip_unreached_boxes:
            unreached = (best_iou == 0).nonzero().squeeze(1)
            low_quality[truth.image[unreached]] = True
            if self.low_quality_to_cause:
                cause.set_default(unreached)
        weak = low_quality.view(-1) & (bands != 1)
        bands[weak] = 1
        if self.low_quality_to_cause:
            best.rank = torch.where(weak, cause.rank, best.rank)
        else:
            missing = (weak & ~best.taken()).view_as(low_quality).any(0).nonzero().squeeze(1)
            self._complete(anchors, missing, truth, best)

    def _complete(self, anchors, index, truth, best):
        """Offer every box that overlaps the anchors ``index`` (S,), however little."""
        if len(index) == 0:
            return
        blocks = self._blocks([Boxes.cat(anchors)[index]])
        for start, stop in blocks.box_chunks(len(truth.boxes)):
            bound = blocks.iou_bound(truth.boxes[start:stop])
            box, block = (bound >= ANY_OVERLAP).nonzero(as_tuple=True)
            for pairs in blocks.pairs(truth.boxes, box + start, block):
                box, chosen, iou = blocks.reaching(ANY_OVERLAP, *pairs)
                best.offer(box, index[chosen], iou)

    def _blocks(self, anchors):
        return AnchorBlocks(anchors, int(self.memory_mb * 2**20))


def _check_bands(iou_thresholds, iou_labels):
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


def check_memory(memory_mb):
    """Refuse a memory budget that is not a positive number of MiB."""
    if not memory_mb > 0:
        raise UserError(
            f"MODEL.RETINANET.MATCHER_MEMORY_MB is {memory_mb}: give a number of MiB above 0, "
            "such as 16"
        )
