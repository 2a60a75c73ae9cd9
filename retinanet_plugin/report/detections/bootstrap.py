"""How AP varies with the images that it was measured on: the bootstrap over images."""

import numpy as np

from .boxes import Detections, Truth
from .matching import IOU_THRESHS, Matches, match_detections
from .overlaps import Overlaps

RESAMPLES = 200
RECALLS = np.linspace(0, 1, 101)  # at which COCO's AP takes precision
_MOST_AT_ONCE = 1 << 21  # numbers: so that they stay near the processor


def draw_images(num_images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(B, N): how often each image is in each of B samples of N images, drawn with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)


def match_at_all_thresholds(
    detections: Detections, truth: Truth, overlaps: Overlaps
) -> list[Matches]:
    """Matches at the ten IoU thresholds of COCO's AP."""
    return [match_detections(detections, truth, overlaps, t) for t in IOU_THRESHS]


def resampled_ap(
    detections: Detections, truth: Truth, matches: list[Matches], counts: np.ndarray
) -> np.ndarray:
    """COCO's AP on samples of images, without matching anew: images do not share boxes.

    It is exact but for the order of equal scores in an image that is drawn twice.

    Args:
        matches: of :func:`match_at_all_thresholds`.
        counts: (B, N), of :func:`draw_images`; all 1 for the AP itself.

    Returns:
        (B, K, 10): AP of each class and IoU threshold; NaN where a sample has no box of a class.
    """
    num_classes = len(truth.class_names)
    ap = np.empty((len(counts), num_classes, len(matches)))
    is_object = ~truth.is_crowd
    for k in range(num_classes):
        images = truth.image[is_object & (truth.classes == k)]
        members = np.flatnonzero(detections.classes == k)
        of_class = [Matches(m.box[members], m.is_ignored[members]) for m in matches]
        step = max(1, _MOST_AT_ONCE // max(1, len(members)))
        for start in range(0, len(counts), step):
            part = counts[start : start + step]
            num_boxes = part[:, images].sum(axis=1)
            weights = part[:, detections.image[members]]
            ap[start : start + step, k] = _ap_of_class(weights, num_boxes, of_class)
    return ap


def interval(samples: np.ndarray) -> list[float] | None:
    """The middle 95% of samples, (low, high); None if none is a number."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return None
    return [float(x) for x in np.percentile(samples, [2.5, 97.5])]


def _ap_of_class(weights: np.ndarray, num_boxes: np.ndarray, matches: list[Matches]) -> np.ndarray:
    """(B, 10), of detections that count (B, D) times, best first, and (B,) boxes."""
    all_counted = np.cumsum(weights, axis=1)
    columns = []
    for match in matches:
        hits = np.flatnonzero(match.is_hit)
        counted = all_counted
        if match.is_ignored.any():
            counted = np.cumsum(weights * ~match.is_ignored, axis=1)
        columns.append(_mean_precision(weights[:, hits], counted[:, hits], num_boxes))
    ap = np.stack(columns, axis=1)
    ap[num_boxes == 0] = np.nan
    return ap


def _mean_precision(hits: np.ndarray, counted: np.ndarray, num_boxes: np.ndarray) -> np.ndarray:
    """(B,): the mean over 101 recalls of the highest precision at that recall or more.

    Precision falls between hits, so that only those are looked at.

    Args:
        hits: (B, P), how often each hit counts.
        counted: (B, P), hits and false alarms up to it.
        num_boxes: (B,).
    """
    num_samples, num_hits = hits.shape
    if not num_hits:
        return np.zeros(num_samples)
    found = np.cumsum(hits, axis=1)
    precision = found / np.maximum(counted, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.hstack([precision, np.zeros((num_samples, 1))])  # at recalls beyond reach
    # All samples in one ascending list, in whole numbers so that equal recalls are equal.
    row_step = int(max(found.max(), num_boxes.max(initial=0))) + 2
    offsets = np.arange(num_samples)[:, None] * row_step
    wanted = _hits_for_recall(num_boxes)
    places = np.searchsorted((found + offsets).ravel(), (wanted + offsets).ravel())
    places = places.reshape(wanted.shape) - np.arange(num_samples)[:, None] * num_hits
    return np.take_along_axis(precision, places, axis=1).mean(axis=1)


def _hits_for_recall(num_boxes: np.ndarray) -> np.ndarray:
    """(B, 101): the least number of hits whose share of the boxes is each recall or more."""
    boxes = np.maximum(num_boxes, 1)[:, None]
    wanted = np.ceil(RECALLS * boxes).astype(int)
    return wanted - ((wanted - 1) / boxes >= RECALLS) + (wanted / boxes < RECALLS)
