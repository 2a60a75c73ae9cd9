"""What detections find: a box of the truth, nothing, or something in a region to ignore."""

from typing import Any

from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou


def match_detections(
    detections: list[dict[str, Any]],
    detected_boxes: Boxes,
    truth: list[dict[str, Any]],
    truth_boxes: Boxes,
) -> list[int | None]:
    """Of each detection, best first, the index of the truth that it finds, or None.

    It finds the box of its class that it overlaps most, with an IoU of 0.5 or more, among those
    that no better detection has found.
    """
    iou = pairwise_iou(detected_boxes, truth_boxes)
    matches: list[int | None] = []
    for d, ious in zip(detections, iou.tolist()):
        candidates = [
            (overlap, i)
            for i, overlap in enumerate(ious)
            if overlap >= 0.5 and i not in matches and truth[i]["category_id"] == d["category_id"]
        ]
        matches.append(max(candidates)[1] if candidates else None)
    return matches


def in_regions(
    detections: list[dict[str, Any]],
    detected_boxes: Boxes,
    regions: list[dict[str, Any]],
    region_boxes: Boxes,
) -> list[bool]:
    """Whether half of a detection's area or more is in a region to ignore of its class, so that
    COCO's evaluation counts it as nothing unless it finds an object."""
    shares = pairwise_ioa(region_boxes, detected_boxes).T.tolist()
    return [
        any(
            share >= 0.5 and region["category_id"] == d["category_id"]
            for share, region in zip(shares_of_d, regions)
        )
        for d, shares_of_d in zip(detections, shares)
    ]
