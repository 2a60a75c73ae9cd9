"""Data sets in COCO's format: registered from a config, read with errors that a user can mend."""

import json
import math
import os
from collections.abc import Iterable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..errors import UserError

# What Detectron2 reads of each list, and the types that it can use.
_FIELDS: dict[str, dict[str, Any]] = {
    "images": {"id": (int, str), "file_name": str, "height": (int, float), "width": (int, float)},
    "annotations": {"id": (int, str), "image_id": (int, str), "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
# What COCO's evaluation reads beside.
_EVALUATION_FIELDS = {"area": (int, float), "iscrowd": int}


def register_coco_json(entries: Iterable[Any] | None) -> None:
    """Register data sets in Detectron2's catalogs, as ``DATASETS.COCO_JSON`` lists them.

    Args:
        entries: (name, annotation file, image folder), three strings each. An entry that is
            registered already with the same files is skipped.

    Raises:
        UserError: an entry is not such a triple, or its name stands for other data already.
    """
    for entry in entries or ():
        is_triple = isinstance(entry, (list, tuple)) and len(entry) == 3
        if not is_triple or not all(isinstance(field, str) for field in entry):
            raise UserError(
                f"DATASETS.COCO_JSON has the entry {entry!r}: write (name, annotation file, image "
                "folder), three strings"
            )
        name, json_file, image_root = entry
        if name not in DatasetCatalog.list():
            register_coco_instances(name, {}, json_file, image_root)
            continue
        metadata = MetadataCatalog.get(name)
        known = (metadata.get("json_file"), metadata.get("image_root"))
        if known != (json_file, image_root):
            raise UserError(
                f"DATASETS.COCO_JSON names a data set {name!r}, which is registered already with "
                f"other files {known}: choose another name"
            )


def read_coco(name: str, json_file: str, evaluated: bool) -> dict[str, list[dict[str, Any]]]:
    """The content of an annotation file, if Detectron2 can train on it or evaluate with it.

    Args:
        name: of the data set, for messages.
        json_file: in COCO's format of object detection.
        evaluated: whether COCO's evaluation will read it.

    Returns:
        with the lists ``images``, ``annotations`` and ``categories``.

    Raises:
        UserError: the file cannot be read, is no JSON, or an entry of it cannot be used.
    """
    source = f"the annotation file {json_file} of {name}"
    try:
        with PathManager.open(json_file) as f:
            coco = json.load(f)
    except OSError as error:
        raise UserError(
            f"{source} cannot be read ({error.strerror}): correct its path, or set "
            "DETECTRON2_DATASETS for Detectron2's own data sets"
        ) from error
    except ValueError as error:
        raise UserError(f"{source} is not JSON ({error}): export it again") from error
    if os.path.basename(json_file).startswith("image_info_") and isinstance(coco, dict):
        # COCO's name for test sets, whose annotations only its evaluation server has.
        coco.setdefault("annotations", [])
    for key, fields in _FIELDS.items():
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise UserError(
                f"{source} has no list {key!r}: it is not in COCO's format of object detection"
            )
        if evaluated and key == "annotations":
            fields = {**fields, **_EVALUATION_FIELDS}
        _check_entries(source, key, coco[key], fields)
    _check_annotations(source, coco, evaluated)
    return coco


def _check_entries(source: str, key: str, entries: list[Any], fields: dict[str, Any]) -> None:
    """Refuse entries that lack a field or have one of the wrong type, and ids used twice."""
    seen = set()
    for i, entry in enumerate(entries):
        for field, types in fields.items():
            if not isinstance(entry, dict) or field not in entry:
                raise UserError(
                    f"{source}: {key}[{i}] has no {field!r}: it is not in COCO's format of object "
                    "detection"
                )
            if not isinstance(entry[field], types):
                types = types if isinstance(types, tuple) else (types,)
                raise UserError(
                    f"{source}: {key}[{i}] has {field} {entry[field]!r}: write a value of type "
                    f"{' or '.join(t.__name__ for t in types)}"
                )
        if entry["id"] in seen:
            raise UserError(
                f"{source}: {key}[{i}] has id {entry['id']!r}, as another one has: give every "
                "entry an id of its own"
            )
        seen.add(entry["id"])


def _check_annotations(source: str, coco: dict[str, Any], evaluated: bool) -> None:
    """Refuse annotations that point to nothing, or whose box is none."""
    known = {
        "category_id": ("categories", {c["id"] for c in coco["categories"]}),
        "image_id": ("images", {image["id"] for image in coco["images"]}),
    }
    for annotation in coco["annotations"]:
        this = f"{source}: annotation {annotation['id']}"
        for field, (key, ids) in known.items():
            if annotation[field] not in ids:
                raise UserError(
                    f"{this} has {field} {annotation[field]}, which {key!r} lacks: remove the "
                    "annotation or add the entry"
                )
        bbox = annotation["bbox"]
        if len(bbox) != 4 or not all(map(_is_finite, bbox)) or min(bbox[2:]) < 0:
            raise UserError(f"{this} has bbox {bbox}: write [x, y, width, height] in pixels")
        if evaluated and annotation["id"] == 0:
            raise UserError(
                f"{this} would count as not found, since COCO's evaluation takes 0 for no match: "
                "number annotations from 1"
            )


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)
