"""Which format a file is of, by its content."""

import os
import re
from dataclasses import dataclass, field

from .csv_columns import first_cells, is_csv_table
from .folders import files_below, images_below, is_image
from .via_csv import SHAPE_COLUMN
from .yolo import is_label_file, label_file

COCO, YOLO, YOLO_FOLDER = "COCO", "YOLO", "YOLO without data.yaml"
VOC, LABELME, CREATEML = "Pascal VOC", "LabelMe", "CreateML"
CSV, VIA_CSV = "CSV", "VIA's CSV"
# What is not read, but known, so that what to do can be said.
FOREIGN = {
    "CVAT's own XML": "export it from CVAT as COCO 1.0",
    "VIA's own JSON": "export it from VIA as CSV or COCO",
    "CVAT's XML for LabelMe": "export it from CVAT as COCO 1.0",
    "Label Studio's own JSON": "export it from Label Studio as COCO or YOLO",
    "detections in COCO's format": "name the annotation file of their images",
    "BDD100K's own JSON": "convert it to COCO, for which BDD100K has a tool",
    "Hugging Face's metadata": "write its objects as a table, see docs/formats.md",
    "Supervisely's own JSON": "export it from Supervisely as COCO, YOLO or Pascal VOC",
}
_DEPTH = 4  # VOCdevkit/VOC2007/Annotations/a.xml and one above
_BEGINNING = 65536


@dataclass
class Contents:
    """What lies below a folder."""

    formats: dict[str, list[str]] = field(default_factory=dict)  # files by their format
    images: list[str] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=dict)  # other files by their suffix

    def add(self, kind: str, path: str) -> None:
        self.formats.setdefault(kind, []).append(path)


def contents_of_file(path: str) -> Contents:
    """The same of a file alone."""
    kind, path = kind_of(path), os.path.abspath(path)
    if kind:
        return Contents({kind: [path]})
    return Contents(others={os.path.splitext(path)[1].lower(): [path]})


def contents_of(folder: str, image_folder: str | None) -> Contents:
    """The annotation files and images below a folder, four levels deep, sorted.

    Args:
        image_folder: whose images may have YOLO's label files in ``folder``.
    """
    contents = Contents()
    top = os.path.abspath(folder)
    for path in files_below(top, _DEPTH):
        kind = "" if is_image(path) else kind_of(path)
        if is_image(path):
            contents.images.append(path)
        elif kind:
            contents.add(kind, path)
        else:
            suffix = os.path.splitext(path)[1].lower() or os.path.basename(path)
            contents.others.setdefault(suffix, []).append(path)
    label_folders = None
    if image_folder is not None:
        contents.images = images_below(os.path.abspath(image_folder))
        label_folders = os.path.abspath(image_folder), top
    is_yolo = any(_has_yolo_label(image, label_folders) for image in contents.images)
    if YOLO not in contents.formats and is_yolo:
        contents.add(YOLO_FOLDER, top)
    return contents


def kind_of(path: str) -> str:
    """The format of a file, one of :data:`FOREIGN`, or ""."""
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == ".json":
            return _kind_of_json(path)
        if suffix == ".xml":
            return _kind_of_xml(path)
        if suffix == ".jsonl":
            return _kind_of_json_lines(path)
        if suffix in (".csv", ".tsv"):
            return _kind_of_csv(path)
        if suffix in (".yaml", ".yml"):
            return _kind_of_yaml(path)
    except (OSError, ValueError):  # of no format; named as what was found
        pass
    return ""


def _kind_of_json(path: str) -> str:
    """By the keys that are anywhere in the file: it is not parsed, since it may be large."""
    with open(path, "rb") as file:
        beginning = file.read(_BEGINNING)
        # Polygons of LabelMe come before a picture of megabytes, which need not be read.
        if _has(beginning, "shapes") and not _has(beginning, "categories"):
            return LABELME
        content = beginning + file.read()
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        if _has(content, "coordinates") or _has(content, "imagefilename"):
            return CREATEML
        if _has(content, "image_id") and _has(content, "score") and _has(content, "bbox"):
            return "detections in COCO's format"
        if _has(content, "box2d"):
            return "BDD100K's own JSON"
        if _has(content, "image") and (_has(content, "result") or _has(content, "annotator")):
            return "Label Studio's own JSON"
        return CREATEML if _has(content, "image") and _has(content, "annotations") else ""
    if _has(content, "images") and (_has(content, "annotations") or _has(content, "categories")):
        return COCO
    if _has(content, "shapes") and _has(content, "imagePath"):
        return LABELME
    if _has(content, "shape_attributes"):
        return "VIA's own JSON"
    if _has(content, "classTitle") and _has(content, "objects"):
        return "Supervisely's own JSON"
    return ""


def _kind_of_json_lines(path: str) -> str:
    with open(path, "rb") as file:
        beginning = file.read(_BEGINNING)
    is_metadata = _has(beginning, "file_name") and _has(beginning, "objects")
    return "Hugging Face's metadata" if is_metadata else ""


def _has(content: bytes, key: str) -> bool:
    return re.search(rb'"%s"\s*:' % key.encode(), content) is not None


def _kind_of_xml(path: str) -> str:
    with open(path, "rb") as file:
        beginning = file.read(_BEGINNING)
    if re.search(rb"<annotation[\s>]", beginning):
        return "CVAT's XML for LabelMe" if b"<imagesize" in beginning else VOC
    return "CVAT's own XML" if re.search(rb"<annotations[\s>]", beginning) else ""


def _kind_of_yaml(path: str) -> str:
    with open(path, "rb") as file:
        beginning = file.read(_BEGINNING)
    keys = set(re.findall(rb"^(?:\xef\xbb\xbf)?(names|nc|train|val)\s*:", beginning, re.M))
    return YOLO if len(keys) > 1 else ""


def _kind_of_csv(path: str) -> str:
    if SHAPE_COLUMN in first_cells(path):
        return VIA_CSV
    return CSV if is_csv_table(path) else ""


def _has_yolo_label(image: str, folders: tuple[str, str] | None) -> bool:
    """Whether an image has a label file with labels."""
    path = label_file(image, folders)
    return path is not None and is_label_file(path)
