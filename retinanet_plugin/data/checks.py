"""What training or evaluation would stumble over in the data, found before either starts."""

import difflib
import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .annotations.coco_format import CocoFile, read_coco, read_content, to_coco_file
from .annotations.coco_json import CocoJson, describe_source
from .annotations.dataset_dicts import check_dataset_dicts, check_evaluated, load_dataset_dicts
from .annotations.stock_loader import check_stock_loader, is_stock_coco
from .annotations.voc import is_stock_voc, read_voc
from .box_checks import check_boxes
from .dataset_facts import DatasetFacts
from .findings import Findings
from .set_checks import check_each_set, check_sets_together

EVALUATOR_TYPES = ("coco", "pascal_voc")
logger = logging.getLogger(f"detectron2.{__name__}")


def check_datasets(cfg: CfgNode, eval_only: bool = False) -> dict[str, DatasetFacts]:
    """Refuse data that training or evaluation would stumble over later, and warn of the rest.

    Args:
        cfg: names the data sets; see :func:`inspect_datasets`.
        eval_only: whether ``DATASETS.TRAIN`` is not read.

    Returns:
        of each data set, by its name, what it has.

    Raises:
        UserError: the first error, with the number of others.
    """
    findings, facts = inspect_datasets(cfg, eval_only)
    findings.tell(logger)
    return facts


def inspect_datasets(
    cfg: CfgNode, eval_only: bool = False
) -> tuple[Findings, dict[str, DatasetFacts]]:
    """Read the annotations of ``DATASETS.TRAIN`` (unless ``eval_only``) and ``DATASETS.TEST``.

    Args:
        cfg: with the data sets registered.
        eval_only: whether ``DATASETS.TRAIN`` is not read.

    Returns:
        what is wrong or probably not meant, and of each data set that could be read what it has.
    """
    train = () if eval_only else tuple(cfg.DATASETS.TRAIN or ())
    test = tuple(cfg.DATASETS.TEST or ())
    findings = Findings()
    if not eval_only and not train:
        findings.error("train", "DATASETS.TRAIN", "it is empty", "name the data sets to train on")
    if eval_only and not test:
        remedy = "name the data sets to evaluate on"
        findings.error("test", "DATASETS.TEST", "it is empty", remedy)
    facts = {}
    for name in dict.fromkeys(train + test):
        found = _inspect(name, name in train, name in test, cfg, findings)
        if found is not None:
            facts[name] = found
    check_sets_together(facts, train, test, cfg, findings)
    return findings, facts


def num_classes_of(cfg: CfgNode) -> tuple[int, str] | None:
    """How many classes the data have, and the name of the data set that says so.

    Args:
        cfg: the first of ``DATASETS.TRAIN`` and ``DATASETS.TEST`` that says it is asked.

    Returns:
        None if no data set says it before its data are loaded.

    Raises:
        UserError: an annotation file cannot be read.
    """
    for name in (*(cfg.DATASETS.TRAIN or ()), *(cfg.DATASETS.TEST or ())):
        if name not in DatasetCatalog.list():
            continue
        class_names = _class_names(name)
        if class_names:
            return len(class_names), name
    return None


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


def _class_names(name: str) -> list[str] | None:
    loader, metadata = DatasetCatalog[name], MetadataCatalog.get(name)
    findings = Findings()
    coco: CocoFile | None = None
    if isinstance(loader, CocoJson):
        coco = loader.read(findings)
    elif metadata.get("thing_classes"):
        return metadata.thing_classes
    elif is_stock_coco(name):
        coco = read_coco(
            metadata.json_file, "", describe_source(name, metadata.json_file), findings
        )
    findings.raise_errors()
    return coco.class_names if coco else None


def _inspect(
    name: str, trained: bool, evaluated: bool, cfg: CfgNode, findings: Findings
) -> DatasetFacts | None:
    if name not in DatasetCatalog.list():
        close = difflib.get_close_matches(str(name), DatasetCatalog.list(), n=3, cutoff=0.7)
        nearest = f"did you mean {' or '.join(close)}, or " if close else ""
        what = f"no data set is registered as {name!r}"
        remedy = f"{nearest}is it missing in DATASETS.COCO_JSON?"
        findings.error(f"unknown {name}", "DATASETS", what, remedy)
        return None
    if evaluated:
        try:
            check_evaluator_type(name)
        except UserError as error:
            what, _, remedy = str(error).partition(": ")
            findings.error("evaluator", "DATASETS.TEST", what, remedy)
    num_errors = len(findings.errors)
    facts = _read(name, evaluated, cfg, findings)
    if facts is None:
        return None
    # What entries that could be read lack is of little use beside those that could not.
    if len(findings.errors) == num_errors:
        check_each_set(facts, trained, evaluated, cfg, findings)
        check_boxes(facts, findings)
    return facts


def _read(name: str, evaluated: bool, cfg: CfgNode, findings: Findings) -> DatasetFacts | None:
    """The data set as its own loader will read it; None after an error that leaves nothing."""
    metadata = MetadataCatalog.get(name)
    loader = DatasetCatalog[name]
    if isinstance(loader, CocoJson):
        return _coco_facts(name, loader.source, loader.read(findings), loader.called)
    if is_stock_coco(name):
        source = describe_source(name, metadata.json_file)
        content = read_content(metadata.json_file, source, findings)
        if content is None:
            return None
        check_stock_loader(content, metadata.json_file, source, findings)
        return _coco_facts(
            name, source, to_coco_file(content, metadata.image_root, source, findings)
        )
    class_names = list(metadata.get("thing_classes") or ())
    if is_stock_voc(name, metadata):
        images = read_voc(name, metadata, evaluated, findings)
        source = f"the Pascal VOC set {name} in {metadata.dirname}"
    else:
        source = f"the data set {name}"
        class_names = class_names or list(map(str, range(cfg.MODEL.RETINANET.NUM_CLASSES)))
        images = _read_own(name, source, class_names, evaluated, findings)
    return None if images is None else DatasetFacts(name, source, class_names, images)


def _coco_facts(
    name: str, source: str, coco: CocoFile | None, called: str = ""
) -> DatasetFacts | None:
    if coco is None:
        return None
    return DatasetFacts(name, source, coco.class_names, coco.images, coco.is_annotated, called)


def _read_own(
    name: str, source: str, class_names: list[str], evaluated: bool, findings: Findings
) -> list[dict[str, Any]] | None:
    """What a function that somebody registered returns."""
    dicts = load_dataset_dicts(name, source, findings)
    if dicts is None:
        return None
    images = check_dataset_dicts(dicts, len(class_names), evaluated, source, findings)
    if evaluated:
        check_evaluated(name, source, findings)
    return images
