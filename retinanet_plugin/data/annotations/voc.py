"""Pascal VOC folders, read as Detectron2's loader and evaluation read them."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..findings import Findings, name_alike, shown
from .coco_entries import MOST_PIXELS

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_EXPORT = "export the annotations again"


class VocProblem(Exception):
    """What is wrong with a file: (kind, what, remedy)."""


def is_stock_voc(name: str, metadata: Any) -> bool:
    """Whether a registered data set is read by Detectron2's ``load_voc_instances``."""
    loader = DatasetCatalog[name]
    is_stock = getattr(loader, "__module__", None) == "detectron2.data.datasets.pascal_voc"
    return is_stock and all(hasattr(metadata, key) for key in ("dirname", "split", "thing_classes"))


def image_list(metadata: Any) -> str:
    """The path of the file that lists a data set's images."""
    return os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")


def read_voc(
    name: str, metadata: Any, evaluated: bool, findings: Findings
) -> list[dict[str, Any]] | None:
    """The dataset dicts that ``load_voc_instances`` makes of a folder.

    Args:
        name: of the data set.
        metadata: what is registered for it.
        evaluated: whether Pascal VOC's evaluation will read the folder too, which needs more.
        findings: gets an error for each file that either would fail on.

    Returns:
        None if the list of images cannot be read.
    """
    source = f"the image list {image_list(metadata)} of {name}"
    try:
        ids = list(_read_ids(image_list(metadata), evaluated))
    except VocProblem as problem:
        kind, what, remedy = problem.args
        findings.error(kind, source, what, remedy)
        return None
    if evaluated and metadata.get("year") not in (2007, 2012):
        what = f"the data set is of the year {metadata.get('year')!r}"
        findings.error("year", source, what, "register it with 2007 or 2012, whose AP is to be")
    images = []
    for image_id in ids:
        path = os.path.join(metadata.dirname, "Annotations", f"{image_id}.xml")
        try:
            tree = parse_voc_xml(path)
            image = read_voc_image(tree, metadata.thing_classes, evaluated)
        except VocProblem as problem:
            kind, what, remedy = problem.args
            findings.error(kind, f"the annotations of {name}", f"{path} {what}", remedy)
            continue
        for kind, what, remedy in unread_objects(tree):
            findings.warn(kind, f"the annotations of {name}", f"{path} {what}", remedy)
        file_name = os.path.join(metadata.dirname, "JPEGImages", f"{image_id}.jpg")
        images.append({"file_name": file_name, "image_id": image_id, **image})
    _warn_of_count_from_0(images, name, findings)
    return images


def _warn_of_count_from_0(images: list[dict[str, Any]], name: str, findings: Findings) -> None:
    """Boxes at -1 are those whose xmin or ymin is 0, where Pascal VOC's first pixel is 1."""
    boxes = [(x["file_name"], a["bbox"]) for x in images for a in x["annotations"]]
    early = [(file_name, bbox) for file_name, bbox in boxes if min(bbox[:2]) == -1]
    if early:
        findings.warn(
            "count from 0",
            f"the annotations of {name}",
            f"{len(early):,} of {len(boxes):,} boxes have an xmin or ymin of 0, such as one of "
            f"{os.path.basename(early[0][0])}, but the first pixel of Pascal VOC is 1",
            "if their tool counts from 0, all boxes are read a pixel too far to the left and top: "
            "add 1 to xmin and ymin of all, or convert them: python -m retinanet_plugin convert",
        )


def _read_ids(path: str, evaluated: bool) -> Iterator[str]:
    try:
        with PathManager.open(path) as f:
            lines = [line.strip() for line in f.read().splitlines()]
    except (OSError, ValueError) as error:
        raise VocProblem(
            "file",
            f"it cannot be read ({getattr(error, 'strerror', None) or error})",
            "put Pascal VOC there, or set DETECTRON2_DATASETS to the folder that holds it",
        ) from error
    ids = [line for line in lines if line]
    if len(ids) == 1:
        # Of one line, numpy makes an array that Detectron2's loader cannot go through.
        what = "only one image is listed, which Detectron2's loader cannot read"
        raise VocProblem("one image", what, "list two or more images")
    if lines and lines[0].startswith("\ufeff"):
        what = "it begins with a byte order mark, which becomes part of the first name"
        raise VocProblem("mark", what, "save it as UTF-8 without BOM")
    for number, line in enumerate(lines, 1):
        what = f"line {number} is {line!r}"
        if len(line.split()) > 1 or "#" in line:
            raise VocProblem(
                "line", what, "write the name of one image, without .jpg, in each line"
            )
        if not line and evaluated:
            raise VocProblem("blank line", f"line {number} is empty", "remove it")
    yield from ids


def parse_voc_xml(path: str) -> ET.Element:
    """
    Raises:
        VocProblem: the file cannot be read, or is not XML.
    """
    try:
        with PathManager.open(path) as f:
            return ET.parse(f).getroot()
    except OSError as error:
        remedy = "add the file, or take the image out of the list"
        image_id = os.path.basename(path).removesuffix(".xml")
        if image_id.lower().endswith((".jpg", ".jpeg", ".png")):
            remedy = f"write {os.path.splitext(image_id)[0]} instead of {image_id} into the list"
        raise VocProblem("xml", f"cannot be read ({error.strerror})", remedy) from error
    except UnicodeDecodeError as error:
        remedy = "save it in UTF-8, as which Detectron2 reads it whatever it declares"
        raise VocProblem(
            "encoding", f"is not in UTF-8 ({error.reason}, byte {error.start})", remedy
        ) from error
    # LookupError: an encoding that Python does not know.
    except (ET.ParseError, ValueError, LookupError) as error:
        raise VocProblem("xml syntax", f"is not XML ({error})", _EXPORT) from error


def unread_objects(tree: ET.Element) -> Iterator[tuple[str, str, str]]:
    """What looks like an object but is not read: (kind, what, remedy)."""
    for element in tree.iterfind("./*"):
        if element.tag != "object" and element.tag.lower() == "object":
            yield "tag", f"has <{element.tag}>, which is not read", "write <object>"
        if element.tag == "object" and len(element.findall("bndbox")) > 1:
            what = f"has an object ({element.findtext('name')}) with a second bndbox, not read"
            yield "bndbox twice", what, "write an object for each box"


def read_voc_image(tree: ET.Element, class_names: list[str], evaluated: bool) -> dict[str, Any]:
    """Height, width and annotations of an XML file; a box's first pixel is 1, its last is in it.

    Args:
        tree: its root.
        class_names: what objects can be.
        evaluated: whether Pascal VOC's evaluation will read it too.

    Raises:
        VocProblem: something that is needed is missing, or no number.
    """
    image: dict[str, Any] = {}
    for key in ("height", "width"):
        size = tree.findtext(f"./size/{key}")
        if size is None or not size.strip().isdecimal() or int(size) == 0:
            remedy = "write the pixels of the image file into size"
            raise VocProblem("size", f"has {key} {shown(size)} in its size", remedy)
        image[key] = int(size)
    objects = tree.findall("object")
    image["annotations"] = [
        _read_object(number, found, class_names, evaluated)
        for number, found in enumerate(objects, 1)
    ]
    return image


def _read_object(
    number: int, found: ET.Element, class_names: list[str], evaluated: bool
) -> dict[str, Any]:
    name = found.findtext("name")
    if name not in class_names:
        what = f"has an object {number} of the class {shown(name)}, which the data set lacks"
        alike = name_alike(name or "", class_names)
        if alike is not None:
            what += f", though it has {shown(alike)}"
        remedy = "correct the name, or register the data with its own class_names"
        raise VocProblem("class", what, remedy)
    texts = [found.findtext(f"bndbox/{key}") for key in _CORNERS]
    try:
        x1, y1, x2, y2 = (float(text or "") for text in texts)
    except ValueError:
        x1 = y1 = x2 = y2 = float("nan")
    # The first pixel is 1, and the last one belongs to the box.
    bbox = [x1 - 1, y1 - 1, x2, y2]
    what = f"has an object {number} ({name}) with the bndbox {shown(texts)}"
    if not all(abs(x) < MOST_PIXELS for x in bbox):
        raise VocProblem("bndbox", what, "write xmin, ymin, xmax, ymax in pixels")
    for axis, low, high in (("x", bbox[0], bbox[2]), ("y", bbox[1], bbox[3])):
        if high < low:
            what += f", whose {axis}min is larger than its {axis}max"
            remedy = "write the left upper corner first, xmin and ymin, then xmax and ymax"
            raise VocProblem("corners", what, remedy)
    if evaluated:
        _check_evaluated(number, found, name)
    return {
        "bbox": bbox,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": class_names.index(name),
    }


def _check_evaluated(number: int, found: ET.Element, name: str) -> None:
    """What Pascal VOC's evaluation reads beside, all as integers."""
    for key in ("pose", "truncated", "difficult", *(f"bndbox/{corner}" for corner in _CORNERS)):
        text = found.findtext(key)
        if text is None or (key != "pose" and not _is_integer(text)):
            key = key.removeprefix("bndbox/")
            what = f"has an object {number} ({name}) with {key} {shown(text)}"
            remedy = f"Pascal VOC's evaluation needs {key}: write it"
            if key != "pose":
                remedy += " as an integer"
            raise VocProblem(key, what, remedy)


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
