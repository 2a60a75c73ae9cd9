"""The truth and the detections of a report, as arrays over all images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances

from ...data.annotations.coco_entries import is_area_of
from ...data.annotations.coco_format import read_coco
from ...data.box_checks import check_boxes
from ...data.dataset_facts import DatasetFacts
from ...data.findings import Findings
from ...errors import UserError

MOST_DETECTIONS = 100  # of a class in an image: COCO's evaluation ignores the others


@dataclass
class Truth:
    """M boxes of all images, (x, y, width, height) in absolute pixels; classes are 0 to K - 1."""

    class_names: list[str]  # K
    category_ids: list[int]  # K
    images: list[dict[str, Any]]  # N of Detectron2's dataset dicts, by ascending ``image_id``
    image: np.ndarray  # (M,), the index of the image that each box is in
    classes: np.ndarray  # (M,)
    boxes: np.ndarray  # (M, 4)
    areas: np.ndarray  # (M,), of the objects, which decide over small, medium and large
    is_crowd: np.ndarray  # (M,), bool

    @property
    def counts(self) -> np.ndarray:
        """(K,): how many objects there are to find, crowds left out."""
        return np.bincount(self.classes[~self.is_crowd], minlength=len(self.class_names))


@dataclass
class Detections:
    """D detections, best first: by score, then in the order in which COCO's evaluation has them."""

    name: str
    image: np.ndarray  # (D,), an index of ``Truth.images``
    classes: np.ndarray  # (D,)
    boxes: np.ndarray  # (D, 4), (x, y, width, height) in absolute pixels
    scores: np.ndarray  # (D,), 0 to 1
    warning: str = ""  # what else was given, and is not here

    def __len__(self) -> int:
        return len(self.scores)


def read_truth(path: str, image_folder: str) -> Truth:
    """Read an annotation file in COCO's format.

    Raises:
        UserError: it cannot be read, an entry of it is not as meant, or there is nothing to find.
    """
    findings = Findings()
    coco = read_coco(path, image_folder, f"the annotation file {path}", findings)
    findings.raise_errors()
    assert coco is not None
    truth = truth_of(coco.images, coco.class_names, list(coco.class_of))
    if not truth.counts.any():
        raise UserError(
            f"the annotation file {path} has no boxes to find: name one with annotated objects "
            "other than crowds"
        )
    return truth


def truth_warnings(path: str, truth: Truth) -> list[str]:
    """What is probably not meant in the boxes of an annotation file, a sentence a kind."""
    findings = Findings()
    source = f"the annotation file {path}"
    check_boxes(DatasetFacts(path, source, truth.class_names, truth.images), findings)
    return [str(found) for found in (*findings.errors.values(), *findings.warnings.values())]


def truth_of(
    images: list[dict[str, Any]], class_names: list[str], category_ids: list[int]
) -> Truth:
    """The truth of N of Detectron2's dataset dicts, whose annotations have classes 0 to K - 1."""
    annotations = [
        (i, annotation)
        for i, image in enumerate(images)
        for annotation in image.get("annotations", ())
    ]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS) for _, a in annotations]
    return Truth(
        class_names=class_names,
        category_ids=category_ids,
        images=images,
        image=np.array([i for i, _ in annotations], int),
        classes=np.array([a["category_id"] for _, a in annotations], int),
        boxes=np.array(boxes, float).reshape(-1, 4),
        areas=np.array([_area(a, box) for (_, a), box in zip(annotations, boxes)], float),
        is_crowd=np.array([bool(a.get("iscrowd", 0)) for _, a in annotations], bool),
    )


def detections_of(found: Sequence[Instances], name: str = "") -> Detections:
    """What a model found in each of N images, in the memory of the CPU."""
    boxes = np.concatenate([x.pred_boxes.tensor.numpy() for x in found]).astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    return best_first(
        name,
        np.repeat(np.arange(len(found)), [len(x) for x in found]),
        np.concatenate([x.pred_classes.numpy() for x in found]),
        boxes,
        np.concatenate([x.scores.numpy() for x in found]).astype(float),
    )


def best_first(
    name: str, image: np.ndarray, classes: np.ndarray, boxes: np.ndarray, scores: np.ndarray
) -> Detections:
    """Detections in their order, without those beyond the best 100 of a class in an image."""
    order = np.lexsort((image, -scores))  # stable, as COCO's evaluation is
    image, classes, boxes, scores = image[order], classes[order], boxes[order], scores[order]
    group = np.lexsort((classes, image))
    is_first = np.diff(image[group], prepend=-1) != 0
    is_first |= np.diff(classes[group], prepend=-1) != 0
    starts = np.maximum.accumulate(np.where(is_first, np.arange(len(group)), 0))
    kept = np.empty(len(group), bool)
    kept[group] = np.arange(len(group)) - starts < MOST_DETECTIONS
    return Detections(name, image[kept], classes[kept], boxes[kept], scores[kept])


def _area(annotation: dict[str, Any], box: Sequence[float]) -> float:
    """As the evaluation after training has it: the file's, if it can be the area of the object."""
    width, height = box[2:]
    area = annotation.get("area")
    return width * height if area is None or not is_area_of(area, width, height) else area
