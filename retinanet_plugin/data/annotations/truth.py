"""The boxes that COCO's evaluation compares detections with, from the present annotations."""

import json
import os
from typing import Any

import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode, PolygonMasks

from ... import compat
from ...whole_files import write_whole_file
from ..findings import Findings
from .coco_entries import is_area_of
from .coco_format import CocoFile, read_coco
from .coco_json import CocoJson, describe_source
from .stock_loader import is_stock_coco

TRUTH_FILE = "coco_instances_truth.json"


def coco_evaluator(dataset_name: str, output_dir: str, detections_per_image: int) -> COCOEvaluator:
    """Detectron2's ``COCOEvaluator`` for boxes, by the annotations that the data set has now.

    Detectron2 would keep the first annotations of a data set that is registered in Python, and
    read files by other rules than training does.

    Args:
        dataset_name: of a registered data set of the evaluator type ``coco``.
        output_dir: gets the truth in COCO's format, and the detections when there are some.
        detections_per_image: as many as the model keeps.

    Raises:
        UserError: the annotations cannot be read, or ``output_dir`` cannot be written.
    """
    truth = _read_truth(dataset_name)
    path = os.path.join(output_dir, TRUTH_FILE)
    content = json.dumps(_to_coco(truth)).encode()
    write_whole_file(path, lambda file: file.write(content))
    # The evaluator reads what is registered for a name; the data set's own entry stays as it is.
    name = f"{dataset_name} as evaluated"
    if name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(
        json_file=path,
        thing_classes=truth.class_names,
        thing_dataset_id_to_contiguous_id=truth.class_of,
    )
    return compat.coco_evaluator(name, output_dir, detections_per_image, _evaluator_type())


def _evaluator_type() -> type[COCOEvaluator]:
    try:
        from .box_evaluator import BoxEvaluator
    except ImportError:  # of faster-coco-eval, which Detectron2 does not bring
        return COCOEvaluator
    return BoxEvaluator


def _read_truth(name: str) -> CocoFile:
    """The annotations of a data set: of its annotation file, or what its function returns."""
    metadata = MetadataCatalog.get(name)
    loader = DatasetCatalog[name]
    findings = Findings()
    truth: CocoFile | None
    if isinstance(loader, CocoJson):
        truth = loader.read(findings)
    elif is_stock_coco(name):
        source = describe_source(name, metadata.json_file)
        truth = read_coco(metadata.json_file, metadata.get("image_root", ""), source, findings)
    else:
        images = DatasetCatalog.get(name)
        class_names = list(metadata.thing_classes)
        class_of = metadata.get("thing_dataset_id_to_contiguous_id")
        class_of = class_of or {i: i for i in range(len(class_names))}
        truth = CocoFile(class_names, class_of, images, any("annotations" in x for x in images))
    findings.raise_errors()
    assert truth is not None
    return truth


def _to_coco(truth: CocoFile) -> dict[str, Any]:
    """COCO's format, with the ids of images and categories that the data have.

    Annotations are numbered from 1, since COCO's evaluation takes 0 for no match.
    """
    id_of = {class_id: category_id for category_id, class_id in truth.class_of.items()}
    coco: dict[str, Any] = {
        "images": [
            {"id": image["image_id"], "file_name": image["file_name"]} for image in truth.images
        ],
        "categories": [
            {"id": id_of[class_id], "name": name} for class_id, name in enumerate(truth.class_names)
        ],
    }
    annotations = [
        (image["image_id"], annotation)
        for image in truth.images
        for annotation in image.get("annotations", ())
    ]
    if truth.is_annotated and annotations:  # without, the evaluator writes detections only
        coco["annotations"] = [
            _annotation(number, image_id, id_of[int(annotation["category_id"])], annotation)
            for number, (image_id, annotation) in enumerate(annotations, 1)
        ]
    return coco


def _annotation(
    number: int, image_id: Any, category_id: int, annotation: dict[str, Any]
) -> dict[str, Any]:
    bbox = [x.item() if hasattr(x, "item") else x for x in annotation["bbox"]]
    if annotation["bbox_mode"] != BoxMode.XYWH_ABS:
        bbox = BoxMode.convert(bbox, annotation["bbox_mode"], BoxMode.XYWH_ABS)
    area = annotation.get("area")
    if area is None or not is_area_of(area, *bbox[2:]):
        area = _area(annotation, bbox)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": float(area),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }


def _area(annotation: dict[str, Any], bbox: list[float]) -> float:
    """Of the object's mask, as in COCO, or else of its box."""
    mask = annotation.get("segmentation")
    try:
        if isinstance(mask, dict):
            return float(mask_util.area(mask))
        if mask:
            return float(PolygonMasks([mask]).area()[0])
    except (ValueError, TypeError, AssertionError, KeyError, AttributeError):
        pass  # not a mask: no box depends on it
    return float(bbox[2] * bbox[3])
