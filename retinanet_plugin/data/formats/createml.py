"""CreateML: a list of images, each with boxes by centre, width and height in pixels."""

import json
from typing import Any

from ...errors import UserError
from ...whole_files import write_whole_file
from ..findings import shown
from .annotated_images import AnnotatedImage, AnnotatedImages, Box, class_names_of, plain
from .image_places import place_images, split_of_file
from .json_files import read_json_file
from .numbers import to_label, to_number
from .sizes import take_sizes

# Apple's documents have both pairs, by the version of Create ML.
_IMAGE_KEYS = ("image", "imagefilename")
_BOXES_KEYS = ("annotations", "annotation")


def read_createml(path: str, image_folder: str | None) -> AnnotatedImages:
    """Read a file of CreateML's; classes are in the order of the alphabet.

    Raises:
        UserError: an entry is not as meant, or the images are not found.
    """
    entries = read_json_file(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} is no list of images, as CreateML's format is: export it again")
    names, all_boxes = [], []
    for i, entry in enumerate(entries):
        where = f"entry {i} of {path} (counted from 0)"
        names.append((_text(_value(entry, _IMAGE_KEYS, where), where),))
        boxes = _value(entry, _BOXES_KEYS, where)
        if not isinstance(boxes, list):
            raise UserError(f"{where} has annotations {shown(boxes)}: write a list")
        all_boxes.append([_box(box, f"annotation {j} of {where}") for j, box in enumerate(boxes)])
    split = split_of_file(path)
    images = [AnnotatedImage("", boxes, split=split) for boxes in all_boxes]
    notes = place_images(images, names, path, image_folder)
    notes += take_sizes(images)
    return AnnotatedImages("CreateML", class_names_of(images), images, notes)


def write_createml(dataset: AnnotatedImages, path: str) -> None:
    """Write a file; the names of images are relative to the data set's image folder."""
    coco = dataset.to_coco()
    entries = [{"image": x["file_name"], "annotations": []} for x in coco["images"]]
    for image, entry in zip(dataset.images, entries):
        for box in image.boxes:
            centre = {"x": (box.x1 + box.x2) / 2, "y": (box.y1 + box.y2) / 2}
            size = {"width": box.x2 - box.x1, "height": box.y2 - box.y1}
            coordinates = {key: plain(value) for key, value in (centre | size).items()}
            entry["annotations"].append({"label": box.label, "coordinates": coordinates})
    content = json.dumps(entries, ensure_ascii=False, indent=1).encode()
    write_whole_file(path, lambda file: file.write(content))


def _box(entry: Any, where: str) -> Box:
    label = to_label(_value(entry, ("label",), where), f"{where} has label")
    coordinates = _value(entry, ("coordinates",), where)
    x, y, width, height = (
        to_number(_value(coordinates, (key,), f"coordinates of {where}"), f"{where} has {key}")
        for key in ("x", "y", "width", "height")
    )
    if width < 0 or height < 0:
        raise UserError(f"{where} has width {width:g}, height {height:g}: write the box's size")
    return Box(label, x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _value(entry: Any, keys: tuple[str, ...], where: str) -> Any:
    """The value of the first of some keys."""
    if isinstance(entry, dict):
        for key in keys:
            if key in entry:
                return entry[key]
    raise UserError(f"{where} has no {keys[0]!r}: write it as CreateML's format has it")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} has the image {shown(value)}: write the name of a file")
    return value
