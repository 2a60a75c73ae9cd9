"""One entry of a file in COCO's format, read as Detectron2's dataset dicts have it, or refused."""

import os
from collections.abc import Collection
from typing import Any

from detectron2.structures import BoxMode

from ..findings import shown

# Larger numbers are no pixels, and soon no numbers for a computer.
MOST_PIXELS = 1e9
LARGEST_ID = 2**63 - 1  # COCO's evaluation sorts ids with numpy, whose integers end there
FORMAT = "write it as COCO's format of object detection has it"
_FLAGS = {None: 0, 0: 0, 1: 1, "0": 0, "1": 1}  # False and True equal 0 and 1


class Unusable(Exception):
    """An entry that cannot be read as meant: (kind, what is wrong, remedy)."""


def read_category(entry: Any) -> tuple[int, str]:
    """Id and name.

    Raises:
        Unusable: as the other functions here.
    """
    _check_object(entry)
    category_id = _id(entry)
    if not isinstance(category_id, int):
        raise Unusable(
            "category id",
            f"has id {shown(category_id)}: write a value of type int",
            "Detectron2 numbers the classes in the order of the ids",
        )
    return category_id, _text(entry, "name")


def read_image(entry: Any, image_root: str) -> dict[str, Any]:
    """A dataset dict without annotations; without ``height`` and ``width`` where the file has none.

    Detectron2's mapper takes these from the image then.
    """
    _check_object(entry)
    image: dict[str, Any] = {
        "image_id": _id(entry),
        "file_name": os.path.join(image_root, _text(entry, "file_name")),
    }
    sizes = {key: entry.get(key) for key in ("height", "width")}
    if any(size is not None for size in sizes.values()):
        image.update({key: _size(key, size) for key, size in sizes.items()})
    image["annotations"] = []
    return image


def read_annotation(
    entry: Any, images: dict[int | str, dict[str, Any]], class_of: dict[int, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dataset dict that a box belongs to, and the box.

    Args:
        entry: of ``annotations``.
        images: dataset dicts by their ids.
        class_of: classes by the ids of their categories.
    """
    _check_object(entry)
    image = images[_reference(entry, "image_id", "images", images)]
    annotation = {
        "bbox": _bbox(entry),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": class_of[_reference(entry, "category_id", "categories", class_of)],
        "iscrowd": _flag(entry, "iscrowd") | _flag(entry, "ignore"),
    }
    if is_id(entry.get("id")):
        annotation["id"] = entry["id"]
    if entry.get("area") is not None:
        annotation["area"] = _area(entry["area"])
    return image, annotation


def is_id(value: Any) -> bool:
    """Whether images and annotations can be told by it."""
    if type(value) is int:
        return -LARGEST_ID <= value <= LARGEST_ID
    return type(value) is str


def is_bbox(values: Any) -> bool:
    """Whether these are four numbers of pixels; sizes of 0 are, negative ones not."""
    if not isinstance(values, list) or len(values) != 4:
        return False
    return all(map(is_number, values)) and values[2] >= 0 and values[3] >= 0


def is_number(value: Any) -> bool:
    """Whether this is a number of pixels: neither a truth value nor infinite nor NaN."""
    return type(value) in (int, float) and -MOST_PIXELS < value < MOST_PIXELS


def is_area_of(area: float, width: float, height: float) -> bool:
    """Whether an object of this area fits in its box, which may be rounded."""
    return area <= (width + 1) * (height + 1)


def _check_object(entry: Any) -> None:
    if type(entry) is not dict:
        raise Unusable("object", f"is {shown(entry)}, which has no 'id'", FORMAT)


def _id(entry: dict[str, Any]) -> int | str:
    value = _required(entry, "id")
    if type(value) is float and value.is_integer():
        value = int(value)
    if not is_id(value):
        raise Unusable(
            "id", f"has id {shown(value)}", "write a value of type int or str, each only once"
        )
    return value


def _text(entry: dict[str, Any], key: str) -> str:
    value = _required(entry, key)
    if type(value) is not str:
        raise Unusable(key, f"has {key} {shown(value)}", "write a value of type str")
    is_plain = value.strip() and "\0" not in value
    if not is_plain or value.encode("utf-8", "replace") != value.encode("utf-8", "surrogatepass"):
        raise Unusable(key, f"has {key} {shown(value)}", "write a text that can be printed")
    return value


def _size(key: str, value: Any) -> int:
    if is_number(value) and value > 0 and value == int(value):
        return int(value)
    raise Unusable(
        "size",
        f"has {key} {shown(value)}",
        "write a value of type int, the pixels of the image file, or neither height nor width",
    )


def _reference(entry: dict[str, Any], field: str, key: str, known: Collection[Any]) -> Any:
    """The value of a field that is the id of an entry in the list ``key``."""
    value = _required(entry, field)
    if type(value) in (int, str, float) and value in known:
        return value
    raise Unusable(field, *_unknown(value, field, key, known))


def _unknown(value: Any, field: str, key: str, known: Collection[Any]) -> tuple[str, str]:
    """What is wrong with a reference to nothing, and the remedy."""
    if type(value) is str and value.strip().lstrip("-").isdecimal() and int(value) in known:
        what = f"has {field} {shown(value)}, a text, but {key!r} has the number {int(value)}"
        return what, "write both as numbers"
    if type(value) is int and str(value) in known:
        what = f"has {field} {value}, a number, but {key!r} has the text {shown(str(value))}"
        return what, "write both as numbers"
    numbers = [number for number in known if type(number) is int]
    if type(value) is int and numbers and value in (min(numbers) - 1, max(numbers) + 1):
        low, high = min(numbers), max(numbers)
        what = f"has {field} {value}, but the ids of {key!r} are from {low} to {high}"
        return what, "number both from 0 or both from 1, or remove the annotation"
    return (
        f"has {field} {shown(value)}, which {key!r} lacks",
        "remove the annotation or add the entry",
    )


def _bbox(entry: dict[str, Any]) -> list[float]:
    if "bbox" not in entry and entry.get("segmentation"):
        remedy = "python -m retinanet_plugin convert writes the boxes of polygons"
        raise Unusable("no bbox", "has a segmentation, but no 'bbox'", remedy)
    bbox = _required(entry, "bbox")
    if is_bbox(bbox):
        return bbox
    if isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox)):
        key = "width" if bbox[2] < 0 else "height"
        what = f"has bbox {shown(bbox)}, whose {key} is negative"
        remedy = "write [x, y, width, height] in pixels, x and y of the left upper corner"
        raise Unusable("bbox", what, remedy)
    raise Unusable(
        "bbox", f"has bbox {shown(bbox)}", "write [x, y, width, height] in pixels, four numbers"
    )


def _flag(entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) in (type(None), bool, int, float, str) and value in _FLAGS:
        return _FLAGS[value]
    raise Unusable(key, f"has {key} {shown(value)}", "write 0 or 1")


def _area(value: Any) -> float:
    if type(value) in (int, float) and 0 <= value < MOST_PIXELS**2:
        return value
    raise Unusable(
        "area", f"has area {shown(value)}", "write the pixels of the object, or leave area out"
    )


def _required(entry: dict[str, Any], key: str) -> Any:
    if key not in entry:
        raise Unusable(f"no {key}", f"has no {key!r}", FORMAT)
    return entry[key]
