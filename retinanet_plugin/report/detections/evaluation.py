"""All numbers of a report: of one detector, and of two side by side."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .bootstrap import draw_images, interval, match_at_all_thresholds, resampled_ap
from .boxes import Detections, Truth
from .coco_metrics import CocoMetrics, coco_metrics
from .errors import KINDS, confusion_matrix, kinds_of_false_alarms
from .matching import Matches
from .overlaps import find_overlaps
from .right_images import doubt
from .scores import (
    GRID,
    Calibration,
    Sweep,
    best_threshold,
    calibration,
    f1_scores,
    sweep,
)


@dataclass
class Evaluation:
    """Of one detector. Kinds, confusions and worst images are of detections from score_thresh."""

    detections: Detections
    matches: Matches  # at IoU 0.5
    coco: CocoMetrics
    sweep: Sweep
    calibration: Calibration
    score_thresh: float  # of ``GRID``, the one of the best F1 over all classes
    score_thresholds: list[float]  # (K,), of the best F1 of each class
    kinds: np.ndarray  # (D,), of false alarms: indices of ``KINDS``, or -1
    confusion_matrix: np.ndarray  # (K + 1, K + 1)
    samples: np.ndarray  # (B, K, 10), AP on resampled images
    doubt: str  # whether all detections are of these images and classes; "": there is none

    @property
    def is_shown(self) -> np.ndarray:
        """(D,), bool: from ``score_thresh``."""
        return self.detections.scores >= self.score_thresh


def evaluate(detections: Detections, truth: Truth, seed: int = 0) -> Evaluation:
    """Compute what a report says of a detector; one ``seed`` draws the same images for each."""
    overlaps = find_overlaps(detections, truth)
    at_all = match_at_all_thresholds(detections, truth, overlaps)
    matches = at_all[0]
    counts = sweep(detections, truth, matches)
    hits, false_alarms = (x.sum(axis=0) for x in counts)
    # Of equal thresholds the highest, as for each class.
    f1 = f1_scores(hits, false_alarms, truth.counts.sum())[::-1]
    score_thresh = float(GRID[::-1][np.argmax(f1)]) if f1.any() else 0.5
    return Evaluation(
        detections=detections,
        matches=matches,
        coco=coco_metrics(detections, truth),
        sweep=counts,
        calibration=calibration(detections, matches),
        score_thresh=score_thresh,
        score_thresholds=_thresholds(detections, truth, matches, score_thresh),
        kinds=kinds_of_false_alarms(detections, truth, overlaps, matches),
        confusion_matrix=confusion_matrix(detections, truth, overlaps, score_thresh),
        samples=resampled_ap(detections, truth, at_all, draw_images(len(truth.images), seed=seed)),
        doubt="; ".join(filter(None, (detections.warning, doubt(detections, truth, matches)))),
    )


def ap_samples(samples: np.ndarray) -> dict[str, np.ndarray]:
    """AP, AP50 and AP75 (B,) of each sample of images, from AP by class and IoU (B, K, 10)."""
    chosen = {"AP": samples, "AP50": samples[..., :1], "AP75": samples[..., 5:6]}
    return {name: _mean(values, (1, 2)) for name, values in chosen.items()}


def class_ap_samples(samples: np.ndarray) -> np.ndarray:
    """(B, K): AP of each class on each sample."""
    return samples.mean(axis=2)


def error_counts(evaluation: Evaluation, truth: Truth) -> dict[str, int]:
    """Hits, false alarms by kind, and misses, from ``score_thresh``."""
    shown = evaluation.is_shown
    hits = int((evaluation.matches.is_hit & shown).sum())
    kinds = np.bincount(evaluation.kinds[shown & (evaluation.kinds >= 0)], minlength=len(KINDS))
    return {
        "hits": hits,
        **dict(zip(KINDS, kinds.tolist())),
        "misses": int(truth.counts.sum()) - hits,
    }


def to_json(evaluation: Evaluation, truth: Truth) -> dict[str, Any]:
    """Every number of a detector, as plain values."""
    classes = truth.class_names
    f1 = f1_scores(*evaluation.sweep, truth.counts[:, None])
    reliability = evaluation.calibration
    return {
        "detector": evaluation.detections.name,
        "num_detections": len(evaluation.detections),
        "doubt": evaluation.doubt,
        "metrics": evaluation.coco.metrics,
        "intervals": {n: interval(x) for n, x in ap_samples(evaluation.samples).items()},
        "by_class": [
            {"class": name, "boxes": int(count), **metrics, "AP_interval": interval(samples)}
            for name, count, metrics, samples in zip(
                classes,
                truth.counts,
                evaluation.coco.by_class,
                class_ap_samples(evaluation.samples).T,
            )
        ],
        "score_thresh": evaluation.score_thresh,
        "score_thresholds": dict(zip(classes, evaluation.score_thresholds)),
        "errors": error_counts(evaluation, truth),
        "confusion_matrix": {
            "classes": classes,
            "score_thresh": evaluation.score_thresh,
            "matrix": evaluation.confusion_matrix.tolist(),
        },
        "calibration": {
            "ece": reliability.error,
            "counts": reliability.counts.tolist(),
            "scores": _plain(reliability.scores),
            "precision": _plain(reliability.precision),
        },
        "curves": {
            "recalls": [i / 100 for i in range(101)],
            "precision": {n: _plain(x) for n, x in zip(classes, evaluation.coco.precision.T)},
            "score_thresholds": GRID.tolist(),
            "f1": {name: values.tolist() for name, values in zip(classes, f1)},
            "hits": dict(zip(classes, evaluation.sweep.hits.tolist())),
            "false_alarms": dict(zip(classes, evaluation.sweep.false_alarms.tolist())),
        },
    }


def difference(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Second minus first, with intervals of the differences on the same samples of images."""
    a, b = first.coco.metrics, second.coco.metrics
    metrics = {name: _minus(b[name], a[name]) for name in a}
    samples = [ap_samples(x.samples) for x in (first, second)]
    change = (class_ap_samples(second.samples) - class_ap_samples(first.samples)).T
    return {
        "metrics": metrics,
        "intervals": {name: interval(samples[1][name] - samples[0][name]) for name in samples[0]},
        "by_class": [
            {"AP": _minus(y["AP"], x["AP"]), "AP_interval": interval(z)}
            for x, y, z in zip(first.coco.by_class, second.coco.by_class, change)
        ],
    }


def _thresholds(
    detections: Detections, truth: Truth, matches: Matches, otherwise: float
) -> list[float]:
    """Of each class; ``otherwise`` for one without a hit."""
    thresholds = []
    for k, count in enumerate(truth.counts.tolist()):
        chosen = (detections.classes == k) & ~matches.is_ignored
        best = best_threshold(detections.scores[chosen], matches.is_hit[chosen], count)
        thresholds.append(otherwise if best is None else best)
    return thresholds


def _mean(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Of the numbers among values; NaN where there is none."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=axes)
    count = known.sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(x) else float(x) for x in values]
