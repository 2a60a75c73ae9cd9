"""Which box of the truth each detection finds, by the rules of COCO's evaluation.

Best detections choose first, so what those above a score find does not depend on those below it.
"""

from typing import NamedTuple

import numpy as np

from .boxes import Detections, Truth
from .overlaps import Overlaps

IOU_THRESHS = np.linspace(0.5, 0.95, 10)  # of COCO's AP
_MOST_IOU = 1 - 1e-10  # in COCO's evaluation, 1 is enough for any threshold


class Matches(NamedTuple):
    """Of each of D detections the box that it finds, and whether it counts as nothing."""

    box: np.ndarray  # (D,), an index of the truth, or -1
    is_ignored: np.ndarray  # (D,), bool: it finds nothing, and lies in a crowd of its class

    @property
    def is_hit(self) -> np.ndarray:
        return self.box >= 0

    @property
    def is_false_alarm(self) -> np.ndarray:
        return (self.box < 0) & ~self.is_ignored


def match_detections(
    detections: Detections,
    truth: Truth,
    overlaps: Overlaps,
    iou_thresh: float = 0.5,
    same_class: bool = True,
) -> Matches:
    """Each detection, best first, takes the free box that it overlaps most.

    Args:
        detections: D.
        truth: M boxes.
        overlaps: of both.
        iou_thresh: the least IoU with a box, and the least share of the detection in a crowd.
        same_class: whether only boxes of the detection's class can be found. Crowds that are to be
            ignored are always of its class.
    """
    is_own = detections.classes[overlaps.detection] == truth.classes[overlaps.box]
    is_crowd = truth.is_crowd[overlaps.box]
    enough = overlaps.iou >= min(iou_thresh, _MOST_IOU)
    chosen = np.flatnonzero(enough & ~is_crowd & (is_own | (not same_class)))
    # Of equal overlaps the own class comes first, then, as in COCO's evaluation, the last box.
    order = np.lexsort(
        (
            -overlaps.box[chosen],
            ~is_own[chosen],
            -overlaps.iou[chosen],
            overlaps.detection[chosen],
        )
    )
    chosen = chosen[order]
    found = [-1] * len(detections)
    is_taken = [False] * len(truth.boxes)
    for d, b in zip(overlaps.detection[chosen].tolist(), overlaps.box[chosen].tolist()):
        if found[d] < 0 and not is_taken[b]:
            found[d], is_taken[b] = b, True
    box = np.array(found, int)
    is_ignored = np.zeros(len(detections), bool)
    is_ignored[overlaps.detection[enough & is_crowd & is_own]] = True
    return Matches(box, is_ignored & (box < 0))
