"""False alarms and misses by kind, and which class is taken for which."""

import numpy as np

from .boxes import Detections, Truth
from .matching import Matches, match_detections
from .overlaps import Overlaps

IOU_THRESH = 0.5
KINDS = {
    "poor_box": "poor box",
    "wrong_class": "wrong class",
    "double": "double",
    "background": "background",
    "wrong_class_and_poor_box": "wrong class and poor box",
}


def kinds_of_false_alarms(
    detections: Detections, truth: Truth, overlaps: Overlaps, matches: Matches
) -> np.ndarray:
    """Why detections are false alarms.

    As TIDE has it (Bolya et al., arXiv 2008.08115, section 2.2, after Hoiem et al., ECCV 2012), a
    false alarm is the first of these that is true of its highest IoU with objects of the image:

    - poor box: from 0.1 to 0.5 with one of its class;
    - wrong class: 0.5 or more with one of another class;
    - double: 0.5 or more with one of its class, which a better detection has found;
    - background: under 0.1 with all;
    - wrong class and poor box: what is left.

    Returns:
        (D,): an index of ``KINDS``; -1 for what is no false alarm.
    """
    is_object = ~truth.is_crowd[overlaps.box]
    is_own = detections.classes[overlaps.detection] == truth.classes[overlaps.box]
    own = _highest(overlaps, is_object & is_own, len(detections))
    other = _highest(overlaps, is_object & ~is_own, len(detections))
    kinds = np.select(
        [(own > 0) & (own < IOU_THRESH), other >= IOU_THRESH, own >= IOU_THRESH, other == 0],
        [0, 1, 2, 3],
        4,
    )
    return np.where(matches.is_false_alarm, kinds, -1)


def confusion_matrix(
    detections: Detections, truth: Truth, overlaps: Overlaps, score_thresh: float
) -> np.ndarray:
    """How many objects of each class are detected as each class.

    The highest scores are matched first, each with the free object of any class that it overlaps
    most, at an IoU of 0.5 or more.

    Returns:
        (K + 1, K + 1): rows are the truth, the last of them background (false alarms), columns the
        detections, the last of them missed.
    """
    matches = match_detections(detections, truth, overlaps, IOU_THRESH, same_class=False)
    k = len(truth.class_names)
    counted = (detections.scores >= score_thresh) & ~matches.is_ignored
    box = matches.box[counted]
    rows = np.where(box >= 0, truth.classes[box], k)
    missed = np.bincount(truth.classes[box[box >= 0]], minlength=k)
    matrix = np.zeros((k + 1, k + 1), int)
    np.add.at(matrix, (rows, detections.classes[counted]), 1)
    matrix[:k, k] = truth.counts - missed
    return matrix


def _highest(overlaps: Overlaps, chosen: np.ndarray, count: int) -> np.ndarray:
    """(D,): the highest IoU of each detection with boxes of chosen pairs; 0 without one."""
    highest = np.zeros(count)
    np.maximum.at(highest, overlaps.detection[chosen], overlaps.iou[chosen])
    return highest
