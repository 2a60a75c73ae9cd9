"""Boxes of COCO's annotations that have a polygon or a mask alone."""

from typing import Any

import numpy as np
from pycocotools import mask

from ..findings import counted
from .json_files import read_json_file


def add_boxes_of_masks(content: dict[str, Any], path: str) -> list[str]:
    """Give annotations without a box the bounding box of their segmentation, where they have one.

    Args:
        content: of the file, whose segmentations may be lost.
        path: of the file, which is read again if it must be.

    Returns:
        a note on how many these are.
    """
    annotations = content.get("annotations", [])
    without = [i for i, x in enumerate(annotations) if isinstance(x, dict) and not _has_box(x)]
    if not any("segmentation" in annotations[i] for i in without):
        return []
    originals = read_json_file(path)["annotations"]
    boxes = {i: _bounding_box(originals[i].get("segmentation")) for i in without}
    found = {i: box for i, box in boxes.items() if box is not None}
    for i, box in found.items():
        annotations[i]["bbox"] = box
    have = counted(len(found), "annotation has", "annotations have")
    return [f"{have} no box: that of its polygon or mask was taken"] if found else []


def _has_box(annotation: dict[str, Any]) -> bool:
    """Some tools write four zeros for none."""
    return annotation.get("bbox") not in (None, [], [0, 0, 0, 0])


def _bounding_box(segmentation: Any) -> list[float] | None:
    """Left, top, width, height; None if there is nothing that it could be of."""
    try:
        if isinstance(segmentation, dict):
            rle = segmentation
            if isinstance(rle["counts"], list):
                rle = mask.frPyObjects(rle, *rle["size"])
            box = [float(x) for x in mask.toBbox(rle)]
            return box if box[2] > 0 and box[3] > 0 else None
        points = np.concatenate([np.array(x, np.float64).reshape(-1, 2) for x in segmentation])
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    except (KeyError, TypeError, ValueError):
        return None
    return [left, top, right - left, bottom - top]
