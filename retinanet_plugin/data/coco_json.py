"""Data sets in COCO's format: registered from a config, checked before training starts."""
import difflib
import json
import math
import os
from collections import defaultdict

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from ..errors import UserError

_COCO_FIELDS = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def register_coco_json(entries):
    """Register data sets in Detectron2's catalogs, as ``DATASETS.COCO_JSON`` lists them.

    Args:
        entries (list[tuple[str, str, str]]): (name, annotation file, image folder). An entry
            that is registered already with the same files is skipped.

    Raises:
        UserError: an entry is not such a triple, or its name stands for other data already.
    """
    for entry in entries:
        if len(entry) != 3 or not all(isinstance(field, str) for field in entry):
            raise UserError(
                f"DATASETS.COCO_JSON has the entry {entry}: write (name, annotation file, image "
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


def check_datasets(cfg, eval_only=False):
    """Refuse data that training or evaluation would stumble over later.

    Reads the annotation files of ``DATASETS.TRAIN`` (unless ``eval_only``) and ``DATASETS.TEST``
    that are in COCO's format; of others, the class names that they registered.

    Raises:
        UserError: a name that is not registered, an unusable annotation file, missing images,
            categories that differ between data sets or from ``MODEL.RETINANET.NUM_CLASSES``.
    """
    names = list(cfg.DATASETS.TEST)
    if not eval_only:
        if not cfg.DATASETS.TRAIN:
            raise UserError("DATASETS.TRAIN is empty: name the data sets to train on")
        names = list(cfg.DATASETS.TRAIN) + names
    elif not names:
        raise UserError("DATASETS.TEST is empty: name the data sets to evaluate on")
    classes_of = {name: _check_dataset(name) for name in names}
    classes_of = {name: classes for name, classes in classes_of.items() if classes is not None}
    if not classes_of:
        return
    first, *others = classes_of
    for name in others:
        if classes_of[name] != classes_of[first]:
            raise UserError(
                f"the categories of {first} ({_list(classes_of[first])}) and {name} "
                f"({_list(classes_of[name])}) differ: use data sets with the same categories"
            )
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    if num_classes != len(classes_of[first]):
        raise UserError(
            f"MODEL.RETINANET.NUM_CLASSES is {num_classes} but {first} has "
            f"{len(classes_of[first])} categories ({_list(classes_of[first])}): "
            f"set MODEL.RETINANET.NUM_CLASSES {len(classes_of[first])}"
        )


def _check_dataset(name):
    """Class names of a registered data set, in the order of the class ids; None: unknown."""
    if name not in DatasetCatalog.list():
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3, cutoff=0.4)
        raise UserError(
            f"no data set is registered as {name!r}: "
            + (f"did you mean {' or '.join(close)}, or " if close else "")
            + "is it missing in DATASETS.COCO_JSON?"
        )
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file is None or metadata.get("evaluator_type") != "coco":
        return metadata.get("thing_classes")
    coco = _read_coco(name, json_file)
    _check_images(name, metadata.image_root, coco["images"])
    # Detectron2 numbers the categories in the order of their ids.
    return [c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])]


def _read_coco(name, json_file):
    try:
        with PathManager.open(json_file) as f:
            coco = json.load(f)
    except OSError as error:
        raise UserError(
            f"the annotation file {json_file} of {name} cannot be read ({error.strerror}): "
            "correct its path, or set DETECTRON2_DATASETS for Detectron2's own data sets"
        ) from error
    except ValueError as error:
        raise UserError(
            f"the annotation file {json_file} of {name} is not JSON ({error}): export it again"
        ) from error
    if os.path.basename(json_file).startswith("image_info_") and isinstance(coco, dict):
        # COCO's name for test sets, whose annotations only its evaluation server has.
        coco.setdefault("annotations", [])
    source = f"the annotation file {json_file} of {name}"
    for key, fields in _COCO_FIELDS.items():
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise UserError(
                f"{source} has no list {key!r}: it is not in COCO's format of object detection"
            )
        for i, entry in enumerate(coco[key]):
            for field in fields:
                if not isinstance(entry, dict) or field not in entry:
                    raise UserError(
                        f"{source}: {key}[{i}] has no {field!r}: it is not in COCO's format of "
                        "object detection"
                    )
    _check_annotations(source, coco)
    return coco


def _check_annotations(source, coco):
    """Refuse annotations that point to nothing, or whose box is none."""
    known = {
        "category_id": ("categories", {c["id"] for c in coco["categories"]}),
        "image_id": ("images", {image["id"] for image in coco["images"]}),
    }
    for annotation in coco["annotations"]:
        for field, (key, ids) in known.items():
            if annotation[field] not in ids:
                raise UserError(
                    f"{source}: annotation {annotation['id']} has {field} {annotation[field]}, "
                    f"which {key!r} lacks: remove the annotation or add the entry"
                )
        bbox = annotation["bbox"]
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_finite, bbox)):
            raise UserError(
                f"{source}: annotation {annotation['id']} has bbox {bbox}: write [x, y, width, "
                "height] in pixels"
            )


def _is_finite(number):
    return isinstance(number, (int, float)) and math.isfinite(number)


def _check_images(name, image_root, images):
    files_in = defaultdict(list)
    for image in images:
        folder, file_name = os.path.split(os.path.join(image_root, image["file_name"]))
        files_in[folder].append(file_name)
    missing = []
    for folder, file_names in files_in.items():
        present = set(PathManager.ls(folder)) if PathManager.isdir(folder) else set()
        missing += [os.path.join(folder, f) for f in file_names if f not in present]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(images)} images of {name} are missing, the first is "
            f"{missing[0]}: correct the image folder, or remove them from the annotation file"
        )


def _list(names, most=6):
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... {len(names)} in all"
