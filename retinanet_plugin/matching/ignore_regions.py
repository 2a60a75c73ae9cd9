"""Regions to ignore (crowds, objects nobody is sure of): what lies in them is no background."""

from typing import Any

import torch
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import UserError

# Fewest regions that those of a batch are padded to.
MIN_PADDED_REGIONS = 4


def check_ignore_threshold(threshold: float) -> None:
    """
    Raises:
        UserError: it is no share of an area.
    """
    if not 0 <= threshold <= 1:
        raise UserError(
            f"MODEL.RETINANET.IGNORE_IOA_THRESH is {threshold}: give the share of an anchor that a "
            "region to ignore has to cover, above 0 and up to 1, or 0 to ignore no regions"
        )


def read_ignore_boxes(batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
    """``ignore_boxes`` (I, 4) of each training input; an empty list where none has any."""
    regions = [x["ignore_boxes"].tensor for x in batched_inputs if "ignore_boxes" in x]
    if not any(len(boxes) for boxes in regions):
        return []
    none = regions[0][:0]
    return [x["ignore_boxes"].tensor if "ignore_boxes" in x else none for x in batched_inputs]


@torch.no_grad()
def ignore_covered(
    gt_labels: Tensor,
    anchors: list[Boxes],
    ignore_boxes: list[Tensor],
    threshold: float,
    num_classes: int,
) -> Tensor:
    """Labels in which background anchors that a region covers are ignored (-1).

    Foreground stays foreground: objects in a crowd that have boxes of their own are to be found.
    (In Detectron and in MMDetection's ``ignore_iof_thr`` a region takes those anchors too.) An
    anchor counts as covered if one region has at least ``threshold`` of the anchor's own area;
    regions are not added up.

    Args:
        gt_labels: (N, R), as in :class:`retinanet_plugin.matching.Targets`.
        anchors: of each level, absolute pixels; R in all.
        ignore_boxes: of each image, (I, 4), absolute pixels, on the anchors' device; boxes without
            an area cover nothing. One at a time takes the memory of a few numbers an anchor.
        threshold: in (0, 1].
        num_classes: K, the label of background.
    """
    # Copies of single columns, on which this is several times as fast as `pairwise_ioa`.
    x1, y1, x2, y2 = (column.contiguous() for column in Boxes.cat(anchors).tensor.unbind(1))
    area = (x2 - x1) * (y2 - y1)
    covered = torch.zeros_like(gt_labels, dtype=torch.bool)
    for covered_in_image, regions in zip(covered, ignore_boxes):
        for rx1, ry1, rx2, ry2 in regions.unbind():
            inter = torch.minimum(x2, rx2).sub_(torch.maximum(x1, rx1)).clamp_(min=0)
            inter *= torch.minimum(y2, ry2).sub_(torch.maximum(y1, ry1)).clamp_(min=0)
            covered_in_image |= inter.div_(area) >= threshold
    return gt_labels.masked_fill(covered & (gt_labels == num_classes), -1)


def padded_regions(ignore_boxes: list[Tensor]) -> Tensor:
    """Regions of N images, (I, 4) each, in one of few shapes (N, I, 4), zeros in the padding.

    I is a power of two, 4 or more, so that few CUDA graphs are needed.
    """
    most = max(MIN_PADDED_REGIONS, *(len(regions) for regions in ignore_boxes))
    padded = ignore_boxes[0].new_zeros(len(ignore_boxes), 1 << (most - 1).bit_length(), 4)
    for regions, image in zip(ignore_boxes, padded):
        image[: len(regions)] = regions
    return padded
