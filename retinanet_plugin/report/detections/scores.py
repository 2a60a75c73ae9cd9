"""What a score is worth: hits and false alarms above it, the best threshold, calibration."""

from typing import NamedTuple

import numpy as np

from .boxes import Detections, Truth
from .matching import Matches

GRID = np.arange(101) / 100  # score thresholds of curves and of the slider
NUM_BINS = 10  # of the reliability diagram


class Sweep(NamedTuple):
    """Of each class, (K, 101), how many detections have at least each score of ``GRID``."""

    hits: np.ndarray
    false_alarms: np.ndarray


class Calibration(NamedTuple):
    """Detections in bins of scores; a mean is NaN in an empty bin.

    The expected calibration error is the mean distance of score and precision, over detections
    (Guo et al., arXiv 1706.04599, section 2).
    """

    counts: np.ndarray  # (10,)
    scores: np.ndarray  # (10,), their mean
    precision: np.ndarray  # (10,), the share that are hits
    error: float


def sweep(detections: Detections, truth: Truth, matches: Matches) -> Sweep:
    """Count above each threshold; what counts as nothing is left out."""
    shape = (len(truth.class_names), len(GRID))
    counts = []
    for chosen in (matches.is_hit, matches.is_false_alarm):
        # How many thresholds each reaches: those up to its score.
        reached = np.searchsorted(GRID, detections.scores[chosen], side="right") - 1
        table = np.zeros(shape, int)
        np.add.at(table, (detections.classes[chosen], reached), 1)
        counts.append(table[:, ::-1].cumsum(axis=1)[:, ::-1])
    return Sweep(*counts)


def f1_scores(hits: np.ndarray, false_alarms: np.ndarray, num_boxes: np.ndarray) -> np.ndarray:
    """F1 = 2 hits / (hits + false alarms + boxes), 0 where there is nothing at all."""
    total = hits + false_alarms + num_boxes
    return 2 * hits / np.maximum(total, 1)


def best_threshold(scores: np.ndarray, is_hit: np.ndarray, num_boxes: int) -> float | None:
    """The threshold that gives the best F1; of equal ones the highest.

    It lies midway between two scores, so that ``>`` and ``>=`` choose the same detections.

    Args:
        scores: (D,), descending, of the detections that count.
        is_hit: (D,), bool.
        num_boxes: that there are to find.

    Returns:
        None if no threshold gives a hit.
    """
    if not is_hit.any():
        return None
    hits = np.cumsum(is_hit)
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + num_boxes)
    is_last = np.append(scores[1:] < scores[:-1], True)  # detections of one score go together
    best = int(np.argmax(np.where(is_last, f1, -1)))
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return float(scores[best] + below) / 2


def calibration(detections: Detections, matches: Matches) -> Calibration:
    """Whether of detections with score p a share of p are hits, at an IoU of 0.5."""
    counted = ~matches.is_ignored
    scores, is_hit = detections.scores[counted], matches.is_hit[counted]
    bins = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(bins, scores, minlength=NUM_BINS) / counts
        precision = np.bincount(bins, is_hit, minlength=NUM_BINS) / counts
    gaps = np.nan_to_num(np.abs(mean_scores - precision))
    error = float((counts * gaps).sum() / max(1, counts.sum()))
    return Calibration(counts, mean_scores, precision, error)
