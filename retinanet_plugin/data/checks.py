"""What training or evaluation would stumble over in the data, found before either starts."""

import difflib
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from .coco_json import read_coco

EVALUATOR_TYPES = ("coco", "pascal_voc")


def check_datasets(cfg: CfgNode, eval_only: bool = False) -> None:
    """Refuse data that training or evaluation would stumble over later.

    Reads the annotation files of ``DATASETS.TRAIN`` (unless ``eval_only``) and ``DATASETS.TEST``
    that are in COCO's format; of others, the class names that they registered.

    Raises:
        UserError: a name that is not registered, an unusable annotation file, missing images, a
            test set that no evaluator here knows, categories that differ between data sets or
            from ``MODEL.RETINANET.NUM_CLASSES``.
    """
    train = () if eval_only else tuple(cfg.DATASETS.TRAIN or ())
    test = tuple(cfg.DATASETS.TEST or ())
    if not eval_only and not train:
        raise UserError("DATASETS.TRAIN is empty: name the data sets to train on")
    if eval_only and not test:
        raise UserError("DATASETS.TEST is empty: name the data sets to evaluate on")
    classes_of = {name: _check_dataset(name, name in train, name in test) for name in train + test}
    for name in test:
        check_evaluator_type(name)
    known = {name: classes for name, classes in classes_of.items() if classes is not None}
    if known:
        _check_classes(known, cfg.MODEL.RETINANET.NUM_CLASSES)


def check_evaluator_type(name: str) -> str:
    """The evaluator type of a registered data set, ``coco`` or ``pascal_voc``.

    Raises:
        UserError: it has another one, or none.
    """
    evaluator_type = MetadataCatalog.get(name).get("evaluator_type")
    if evaluator_type not in EVALUATOR_TYPES:
        raise UserError(
            f"the data set {name} has the evaluator type {evaluator_type!r}, but this trainer "
            f"knows {' and '.join(map(repr, EVALUATOR_TYPES))}: set evaluator_type of "
            f"MetadataCatalog.get({name!r}), or leave it out of DATASETS.TEST"
        )
    return evaluator_type


def _check_classes(classes_of: dict[str, list[str]], num_classes: int) -> None:
    first, *others = classes_of
    for name in others:
        if classes_of[name] != classes_of[first]:
            raise UserError(
                f"the categories of {first} ({_list(classes_of[first])}) and {name} "
                f"({_list(classes_of[name])}) differ: use data sets with the same categories"
            )
    if num_classes != len(classes_of[first]):
        raise UserError(
            f"MODEL.RETINANET.NUM_CLASSES is {num_classes} but {first} has "
            f"{len(classes_of[first])} categories ({_list(classes_of[first])}): "
            f"set MODEL.RETINANET.NUM_CLASSES {len(classes_of[first])}"
        )


def _check_dataset(name: str, trained: bool, evaluated: bool) -> list[str] | None:
    """Class names of a registered data set, in the order of the class ids; None: unknown."""
    if name not in DatasetCatalog.list():
        close = difflib.get_close_matches(str(name), DatasetCatalog.list(), n=3, cutoff=0.4)
        raise UserError(
            f"no data set is registered as {name!r}: "
            + (f"did you mean {' or '.join(close)}, or " if close else "")
            + "is it missing in DATASETS.COCO_JSON?"
        )
    metadata = MetadataCatalog.get(name)
    evaluator_type, json_file = metadata.get("evaluator_type"), metadata.get("json_file")
    if evaluator_type == "pascal_voc":
        _check_voc(name, metadata)
    if evaluator_type != "coco" or json_file is None:
        return metadata.get("thing_classes")
    coco = read_coco(name, json_file, evaluated)
    _check_images(name, metadata.image_root, coco["images"])
    if trained and not any(not a.get("iscrowd", 0) for a in coco["annotations"]):
        raise UserError(
            f"the annotation file {json_file} of {name} has no box to train on: annotate objects, "
            "or take it out of DATASETS.TRAIN"
        )
    # Detectron2 numbers the categories in the order of their ids.
    return [c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])]


def _check_voc(name: str, metadata: Any) -> None:
    path = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
    if not PathManager.isfile(path):
        raise UserError(
            f"the image list {path} of {name} does not exist: put Pascal VOC there, or set "
            "DETECTRON2_DATASETS to the folder that holds it"
        )


def _check_images(name: str, image_root: str, images: list[dict[str, Any]]) -> None:
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


def _list(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown}, ... {len(names)} in all"
