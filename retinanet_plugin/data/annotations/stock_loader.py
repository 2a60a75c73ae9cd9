"""What Detectron2's own loader of COCO's format would lose in a file, or fail on.

It reads the data sets that Detectron2 registers itself, such as coco_2017_train, and those of
``register_coco_instances``.
"""

from typing import Any

from detectron2.data import DatasetCatalog

from ..findings import Findings, shown

_REMEDY = "mend the file, or let DATASETS.COCO_JSON register it, whose reader takes this"


def is_stock_coco(name: str) -> bool:
    """Whether a registered data set is read by Detectron2's ``load_coco_json``."""
    loader = DatasetCatalog[name]
    return getattr(loader, "__module__", None) == "detectron2.data.datasets.coco"


def check_stock_loader(
    content: dict[str, Any], json_file: str, source: str, findings: Findings
) -> None:
    """Find entries that mean something, but not to Detectron2's loader.

    Args:
        content: of :func:`retinanet_plugin.data.annotations.coco_format.read_content`. Entries that
            mean nothing are found elsewhere.
        json_file: where it is from.
        source: what the file is called in ``findings``.
        findings: gets the errors.
    """
    for i, image in enumerate(content["images"]):
        if isinstance(image, dict) and (image.get("height") is None or image.get("width") is None):
            what = f"images[{i}] has no height and width, which Detectron2's loader needs"
            findings.error("stock size", source, what, _REMEDY)
    seen: set[Any] = set()
    for i, annotation in enumerate(content.get("annotations", ())):
        if not isinstance(annotation, dict):
            continue
        problem = _problem(annotation)
        annotation_id = shown(annotation.get("id"))
        if "minival" not in json_file and annotation_id in seen:  # as Detectron2 has it
            problem = problem or ("id", f"has id {annotation_id}, as another one has")
        seen.add(annotation_id)
        if problem:
            kind, what = problem
            where = f"annotation {annotation_id}" if "id" in annotation else f"annotations[{i}]"
            findings.error(f"stock {kind}", source, f"{where} {what}", _REMEDY)


def _problem(annotation: dict[str, Any]) -> tuple[str, str] | None:
    """A kind and what is wrong; None if nothing is."""
    if not annotation.get("segmentation", True):
        return (
            "segmentation",
            "has a segmentation without a polygon of three points or more, for which Detectron2's "
            "loader drops the box",
        )
    if annotation.get("iscrowd", 0) in (None, "0"):
        value = shown(annotation["iscrowd"])
        return "iscrowd", f"has iscrowd {value}, which Detectron2 takes for a crowd"
    if annotation.get("ignore", 0) not in (0, False):
        value = shown(annotation["ignore"])
        return "ignore", f"has ignore {value}, which Detectron2's loader refuses"
    if annotation.get("id") is None:
        return "no id", "has no 'id', which Detectron2's loader needs"
    return None
