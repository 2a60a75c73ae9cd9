"""CSV of the VGG Image Annotator (VIA): a row for each region, its shape and class as JSON."""

import json
from typing import Any

from ...errors import UserError
from ..findings import counted, shown
from .annotated_images import AnnotatedImage, AnnotatedImages, Box, class_names_of, without_area
from .csv_columns import read_rows
from .image_places import place_images, split_of_file
from .numbers import to_label, to_number
from .sizes import take_sizes

SHAPE_COLUMN = "region_shape_attributes"
_CLASS_COLUMN = "region_attributes"
_NO_AREAS = ("point", "polyline")
_CLASS_KEYS = ("class", "label", "name", "type", "category")


def read_via_csv(path: str, image_folder: str | None) -> AnnotatedImages:
    """Read rectangles, and the bounding boxes of circles, ellipses and polygons.

    The class is the region attribute of all regions, or that one of several which is called class,
    label, name, type or category.

    Raises:
        UserError: a row is not as meant, or the images are not found.
    """
    rows = list(read_rows(path))
    header = [cell.strip().lstrip("#") for cell in rows[0][1]]
    for name in ("filename", SHAPE_COLUMN, _CLASS_COLUMN):
        if name not in header:
            raise UserError(f"{path} has no column {name}: export it from VIA again")
    boxes_of: dict[str, list[Box]] = {}
    num_left_out = 0
    for number, row in rows[1:]:
        where = f"line {number} of {path}"
        if len(row) != len(header):
            has = counted(len(row), "column", "columns")
            raise UserError(f"{where} has {has}, not {len(header)}: export it from VIA again")
        cells = dict(zip(header, row))
        shape = _object(cells[SHAPE_COLUMN], f"{where} has {SHAPE_COLUMN}")
        boxes = boxes_of.setdefault(cells["filename"].strip(), [])
        if shape.get("name") in _NO_AREAS:
            num_left_out += 1
        elif shape:
            attributes = _object(cells[_CLASS_COLUMN], f"{where} has {_CLASS_COLUMN}")
            boxes.append(Box(_label(attributes, where), *_corners(shape, where)))
    split = split_of_file(path)
    images = [AnnotatedImage("", boxes, split=split) for boxes in boxes_of.values()]
    notes = place_images(images, [(name,) for name in boxes_of], path, image_folder)
    notes += [*take_sizes(images), *without_area(num_left_out)]
    return AnnotatedImages("VIA's CSV", class_names_of(images), images, notes)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{where} {shown(text)}, which is no JSON object: export it from VIA again")
    return content


def _label(attributes: dict[str, Any], where: str) -> str:
    keys = list(attributes) if len(attributes) == 1 else [k for k in _CLASS_KEYS if k in attributes]
    if len(keys) != 1:
        raise UserError(
            f"{where} has the region attributes {shown(attributes)}, of which none or several can "
            "be the class: keep one, such as class"
        )
    return to_label(attributes[keys[0]], f"{where} has {keys[0]}")


def _corners(shape: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    kind = shape.get("name")

    def number(key: str) -> float:
        return to_number(shape.get(key), f"{where} has a {kind} with {key}")

    if kind == "rect":
        x, y = number("x"), number("y")
        corners = x, y, x + number("width"), y + number("height")
    elif kind in ("circle", "ellipse"):
        rx, ry = (number("rx"), number("ry")) if kind == "ellipse" else (number("r"),) * 2
        x, y = number("cx"), number("cy")
        corners = x - rx, y - ry, x + rx, y + ry
    elif kind == "polygon":
        xs, ys = (_numbers(shape.get(f"all_points_{axis}"), where) for axis in "xy")
        corners = min(xs), min(ys), max(xs), max(ys)
    else:
        raise UserError(f"{where} has a shape {shown(kind)}: draw rectangles or polygons")
    if corners[2] < corners[0] or corners[3] < corners[1]:
        raise UserError(f"{where} has a {kind} of negative size: draw it again")
    return corners


def _numbers(values: Any, where: str) -> list[float]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} has a polygon without points: draw it again")
    return [to_number(value, f"{where} has a polygon with") for value in values]
