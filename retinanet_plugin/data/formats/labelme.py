"""LabelMe: a JSON file for each image, with shapes whose bounding boxes are the objects."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

from ...errors import UserError
from ..findings import shown
from .annotated_images import (
    AnnotatedImage,
    AnnotatedImages,
    Box,
    class_names_of,
    plain,
    without_area,
)
from .image_places import place_images, split_of_file
from .json_files import read_json_file
from .numbers import to_label, to_number, to_size
from .sizes import take_sizes

# Each has the fewest points that it can consist of.
_AREAS = {"rectangle": 2, "polygon": 3, "circle": 2, "mask": 2, "rotation": 4}
_NO_AREAS = ("point", "points", "line", "linestrip")


def read_labelme(paths: Sequence[str], image_folder: str | None) -> AnnotatedImages:
    """Read the files of one folder; classes are in the order of the alphabet.

    A shape with a ``group_id`` is a part of the object that all shapes of its label and number in
    the image are, as LabelMe's own converters have it. Points and lines are no objects: left out.

    Args:
        paths: JSON files in one folder.
        image_folder: of the images; None: look in the usual places.

    Raises:
        UserError: a file is not as meant, or its image is not found.
    """
    names, images, num_left_out = [], [], 0
    for path in paths:
        content = read_json_file(path)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise UserError(
                f"{path} has no list 'shapes', as LabelMe's files have: export it again"
            )
        image_path = content.get("imagePath")
        if not isinstance(image_path, str) or not image_path.strip():
            raise UserError(f"{path} has imagePath {shown(image_path)}: write its image's name")
        stem = os.path.splitext(os.path.basename(path))[0]
        names.append((image_path, stem))
        shapes = content["shapes"]
        boxes = _boxes(shapes, path)
        num_left_out += sum(shape["shape_type"] in _NO_AREAS for shape in shapes)
        width, height = (to_size(content.get(key), f"{path} has {key}") for key in _SIZE_KEYS)
        images.append(AnnotatedImage("", boxes, width, height, split_of_file(path)))
    notes = place_images(images, names, paths[0], image_folder, paths)
    notes += [*take_sizes(images), *without_area(num_left_out)]
    return AnnotatedImages("LabelMe", class_names_of(images), images, notes)


def write_labelme(dataset: AnnotatedImages, folder: str, place: str) -> list[str]:
    """Write a file for each image, below ``folder`` as the image is below the common folder.

    Args:
        folder: to write into.
        place: where its content goes.

    Returns:
        what is to be said of it.
    """
    for image in dataset.images:
        below = os.path.relpath(image.file_name, dataset.image_folder)
        path = os.path.splitext(below)[0] + ".json"
        if os.path.exists(os.path.join(folder, path)):
            raise UserError(f"two images would have the file {path}: rename one of them")
        beside = os.path.dirname(os.path.join(place, path))
        content: dict[str, Any] = {
            "version": "5.0.1",
            "flags": {},
            "shapes": [_shape(box) for box in image.boxes],
            "imagePath": os.path.relpath(image.file_name, beside),
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
        with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
    return []


_SIZE_KEYS = ("imageWidth", "imageHeight")


def _shape(box: Box) -> dict[str, Any]:
    return {
        "label": box.label,
        "points": [[plain(box.x1), plain(box.y1)], [plain(box.x2), plain(box.y2)]],
        "group_id": None,
        "shape_type": "rectangle",
        "flags": {},
    }


def _boxes(shapes: Iterable[Any], path: str) -> list[Box]:
    """The bounding boxes, in the order of their first shapes."""
    objects: dict[Any, Box] = {}
    for i, shape in enumerate(shapes):
        where = f"shape {i} of {path} (counted from 0)"
        if not isinstance(shape, dict):
            raise UserError(f"{where} is {shown(shape)}: export it again")
        label = to_label(shape.get("label"), f"{where} has label")
        kind = shape.setdefault("shape_type", "polygon")  # LabelMe's early files have none
        if kind in _NO_AREAS:
            continue
        if kind not in _AREAS:
            known = ", ".join(_AREAS)
            raise UserError(f"{where} has shape_type {shown(kind)}: draw one of {known}")
        corners = _corners(kind, _points(shape, kind, where))
        group = shape.get("group_id")
        key = i if group is None else (label, str(group))
        if key in objects:
            corners = _union(objects[key], corners)
        objects[key] = Box(label, *corners)
    return list(objects.values())


def _points(shape: dict[str, Any], kind: str, where: str) -> list[tuple[float, float]]:
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < _AREAS[kind]:
        raise UserError(
            f"{where} has points {shown(points)}: a {kind} has {_AREAS[kind]} or more [x, y]"
        )
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise UserError(f"{where} has the point {shown(point)}: write [x, y]")
    return [(to_number(x, f"{where} has x"), to_number(y, f"{where} has y")) for x, y in points]


def _corners(kind: str, points: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*points)
    if kind == "circle":  # its centre, and a point on it
        radius = math.dist(points[0], points[1])
        return xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius
    last = 1 if kind == "mask" else 0  # whose points are its first and its last pixel
    return min(xs), min(ys), max(xs) + last, max(ys) + last


def _union(
    box: Box, corners: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = corners
    return min(box.x1, x1), min(box.y1, y1), max(box.x2, x2), max(box.y2, y2)
