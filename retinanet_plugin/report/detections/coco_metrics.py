"""COCO's metrics, by faster-coco-eval, or by pycocotools, which gives the same more slowly."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    from faster_coco_eval import COCO
    from faster_coco_eval import COCOeval_faster as COCOeval
except ImportError:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

from .boxes import Detections, Truth

METRICS = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
# Of each class; of ``METRICS``, those that depend on the class.
CLASS_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
_SIZES = ("all", "small", "medium", "large")


@dataclass
class CocoMetrics:
    """From 0 to 1; None where there is nothing to find."""

    metrics: dict[str, float | None]  # by ``METRICS``
    by_class: list[dict[str, float | None]]  # K, by ``CLASS_METRICS``
    precision: np.ndarray  # (101, K) at IoU 0.5, at the recalls 0, 0.01, ... 1; NaN without boxes


def coco_metrics(detections: Detections, truth: Truth) -> CocoMetrics:
    """What COCO's evaluation of boxes says, with its thresholds, sizes and limits."""
    with contextlib.redirect_stdout(io.StringIO()):  # both libraries tell their progress
        coco = _coco(truth, _annotations(truth))
        # Columns of COCO's arrays of results; ids count from 1 in both.
        results = np.column_stack(
            [detections.image + 1, detections.boxes, detections.scores, detections.classes + 1]
        )
        # Of no results, loadRes cannot tell of what kind they are.
        found = coco.loadRes(results) if len(results) else _coco(truth, [])
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    by_class = [_of_class(precision[:, :, k], recall[:, k]) for k in range(len(truth.class_names))]
    at_half = precision[0, :, :, 0, -1]
    return CocoMetrics(
        metrics={name: _known(value) for name, value in zip(METRICS, evaluation.stats)},
        by_class=by_class,
        precision=np.where(at_half < 0, np.nan, at_half),
    )


def _of_class(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """By ``CLASS_METRICS``, of precision (10, 101, 4, 3) and recall (10, 4, 3)."""
    values = [precision[..., 0, -1].mean(), precision[0, :, 0, -1].mean()]
    values.append(precision[5, :, 0, -1].mean())
    values += [precision[..., size, -1].mean() for size in range(1, len(_SIZES))]
    values.append(recall[:, 0, -1].mean())
    return {name: _known(value) for name, value in zip(CLASS_METRICS, values)}


def _known(value: float) -> float | None:
    """COCO's evaluation writes -1 where there is nothing to find."""
    return None if value < 0 else float(value)


def _coco(truth: Truth, annotations: list[dict[str, Any]]) -> COCO:
    """The images and classes of the truth, with annotations."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(len(truth.images))],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(truth.class_names)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _annotations(truth: Truth) -> list[dict[str, Any]]:
    columns = (truth.image, truth.classes, truth.boxes, truth.areas, truth.is_crowd)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "id": i + 1,
            "image_id": image + 1,
            "category_id": k + 1,
            "bbox": box,
            "area": area,
            "iscrowd": int(is_crowd),
        }
        for i, (image, k, box, area, is_crowd) in enumerate(rows)
    ]
