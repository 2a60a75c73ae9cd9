"""Dataset dicts that somebody's own function returned, checked as Detectron2 will read them."""

import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..findings import Findings, shown
from .coco_entries import MOST_PIXELS, is_id

_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
_DOCS = "see Detectron2's tutorial on data sets"


def load_dataset_dicts(name: str, source: str, findings: Findings) -> list[Any] | None:
    """Call the function that is registered for a data set; None after an error.

    It is called twice: training and evaluation call it again, and must get the same images.
    """
    try:
        dicts, again = DatasetCatalog.get(name), DatasetCatalog.get(name)
    except Exception as error:  # it may be anybody's
        reason = f"{type(error).__name__}: {error}"
        remedy = "correct the function, or the files that it reads"
        findings.error("function", source, f"the function raises {reason}", remedy)
        return None
    if not isinstance(dicts, list):
        kind = type(dicts).__name__
        findings.error("list", source, f"the function returns a {kind}", "return a list of dicts")
        return None
    if _outline(dicts) != _outline(again):
        what = "the function returns other images, or others first, when it is called again"
        remedy = "sort what it lists, and give random choices a seed of their own"
        findings.error("other images", source, what, remedy)
    return dicts


def check_dataset_dicts(
    dicts: list[Any], num_classes: int, evaluated: bool, source: str, findings: Findings
) -> list[dict[str, Any]]:
    """The dicts and annotations that Detectron2 can read; each other one is an error.

    Args:
        dicts: what the function returned; not changed.
        num_classes: K.
        evaluated: whether an evaluation will read them, which needs ``image_id``.
        source: what the data set is called in ``findings``.
        findings: is added to.
    """
    readable = []
    _check_all_annotated(dicts, source, findings)
    seen: set[Any] = set()
    for i, image in enumerate(dicts):
        problem = _image_problem(image, evaluated)
        if not problem and evaluated and image["image_id"] in seen:
            problem = f"has image_id {shown(image['image_id'])}, as another one has"
        if problem:
            name = image.get("file_name", "") if isinstance(image, dict) else ""
            where = f"dict {i} ({name})" if name else f"dict {i}"
            findings.error("image " + problem.split()[1], source, f"{where} {problem}", _DOCS)
            continue
        seen.add(image.get("image_id"))
        annotations = []
        for j, annotation in enumerate(image.get("annotations", ())):
            problem = _annotation_problem(annotation, num_classes)
            if problem:
                what = f"annotation {j} of {image['file_name']} (counted from 0) {problem}"
                findings.error("annotation " + problem.split()[1], source, what, _DOCS)
            else:
                annotations.append(annotation)
        readable.append(
            {**image, "file_name": os.fspath(image["file_name"]), "annotations": annotations}
        )
    return readable


def check_evaluated(name: str, source: str, findings: Findings) -> None:
    """Find what COCO's evaluation of a data set would lack.

    Args:
        name, source: of the data set, in the catalog and in ``findings``.
        findings: is added to.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "coco":
        return
    class_names = metadata.get("thing_classes")
    class_of = metadata.get("thing_dataset_id_to_contiguous_id")
    setting = f"set it of MetadataCatalog.get({name!r})"
    if not class_names:
        findings.error("classes", source, "its metadata have no thing_classes", setting)
    elif class_of is not None and sorted(class_of.values()) != list(range(len(class_names))):
        what = f"its thing_dataset_id_to_contiguous_id {shown(class_of)} does not name every class"
        findings.error("class ids", source, what, f"{setting}, from ids to 0 to K - 1")


def _outline(dicts: Any) -> Any:
    """Of each dict what image it is of, and how many objects it has."""
    if not isinstance(dicts, list):
        return type(dicts)
    return [
        (str(x.get("file_name")), str(x.get("image_id")), _length(x.get("annotations")))
        for x in dicts
        if isinstance(x, dict)
    ]


def _length(annotations: Any) -> int:
    return len(annotations) if isinstance(annotations, (list, tuple)) else 0


def _check_all_annotated(dicts: list[Any], source: str, findings: Findings) -> None:
    """Detectron2 looks at the first dict to see whether a data set has annotations at all."""
    lacking = [x for x in dicts if isinstance(x, dict) and "annotations" not in x]
    if 0 < len(lacking) < len(dicts):
        what = f"the dict of {lacking[0].get('file_name')} has no annotations, though others have"
        remedy = "give a dict an empty list of annotations where its image has no object"
        findings.error("no annotations", source, what, remedy, len(lacking))


def _image_problem(image: Any, evaluated: bool) -> str:
    """What is wrong with a dict, its annotations aside; "" if nothing is."""
    if not isinstance(image, dict):
        return f"is {shown(image)}, not a dict"
    if not isinstance(image.get("file_name"), (str, os.PathLike)):
        return f"has file_name {shown(image.get('file_name'))}, not a path"
    if evaluated and not is_id(image.get("image_id")):
        return f"has image_id {shown(image.get('image_id'))}, not a number or a text"
    if "height" in image or "width" in image:
        for key in ("height", "width"):
            size = image.get(key)
            if not isinstance(size, Integral) or isinstance(size, bool) or int(size) <= 0:
                return f"has {key} {shown(size)}, not a number of pixels"
    if not isinstance(image.get("annotations", []), (list, tuple)):
        return f"has annotations {shown(image['annotations'])}, not a list"
    return ""


def _annotation_problem(annotation: Any, num_classes: int) -> str:
    """What is wrong with an annotation; "" if nothing is."""
    if not isinstance(annotation, dict):
        return f"is {shown(annotation)}, not a dict"
    mode = annotation.get("bbox_mode")
    if not isinstance(mode, BoxMode) or mode not in _MODES:
        return f"has bbox_mode {mode}, not {' or '.join(f'BoxMode.{m.name}' for m in _MODES)}"
    bbox = annotation.get("bbox")
    if not _is_bbox(bbox, mode):
        return f"has bbox {shown(bbox)}, not {_four_numbers(mode)}"
    class_id = annotation.get("category_id")
    if not isinstance(class_id, Integral) or isinstance(class_id, bool):
        return f"has category_id {shown(class_id)}, not a number"
    if not 0 <= int(class_id) < num_classes:
        return f"has category_id {class_id}, not one of 0 to {num_classes - 1}"
    area = annotation.get("area", 0)
    if not isinstance(area, Real) or not 0 <= float(area) < math.inf:
        return f"has area {shown(area)}, not a number of pixels"
    iscrowd = annotation.get("iscrowd", 0)
    if not isinstance(iscrowd, Integral) or iscrowd not in (0, 1):
        return f"has iscrowd {shown(iscrowd)}, not 0 or 1"
    if annotation.get("ignore") and not iscrowd:
        return (
            f"has ignore {shown(annotation['ignore'])}, which nothing reads (iscrowd 1 is ignored)"
        )
    return ""


def _is_bbox(bbox: Any, mode: BoxMode) -> bool:
    is_sequence = isinstance(bbox, (list, tuple)) or (
        isinstance(bbox, np.ndarray) and bbox.ndim == 1
    )
    if not is_sequence or len(bbox) != 4:
        return False
    if not all(isinstance(x, Real) and not isinstance(x, bool) for x in bbox):
        return False
    if not all(math.isfinite(x) and abs(x) < MOST_PIXELS for x in map(float, bbox)):
        return False
    smallest: Sequence[Any] = bbox[:2] if mode == BoxMode.XYXY_ABS else (0, 0)
    return bool(bbox[2] >= smallest[0] and bbox[3] >= smallest[1])


def _four_numbers(mode: BoxMode) -> str:
    return "[x1, y1, x2, y2]" if mode == BoxMode.XYXY_ABS else "[x, y, width, height] in pixels"
