"""COCO's format of object detection: files that also name their images' folder, more or less."""

import json
from typing import Any

from ...errors import UserError
from ...whole_files import write_whole_file
from ..annotations.coco_format import read_content, to_coco_file
from ..findings import Findings, shown
from .annotated_images import AnnotatedImage, AnnotatedImages, Box
from .coco_masks import add_boxes_of_masks
from .image_places import place_images, split_of_file
from .sizes import take_sizes


def read_coco_file(path: str, image_folder: str | None) -> AnnotatedImages:
    """Read a file in COCO's format.

    Polygons and masks are not kept; those without a box give theirs. A category of Roboflow's that
    only groups others is no class.

    Raises:
        UserError: an entry cannot be read, or the images are not found.
    """
    source = f"the annotation file {path}"
    findings = Findings()
    content = read_content(path, source, findings)
    coco, notes = None, []
    if content is not None:
        notes = [*_leave_out_groups(content, path), *add_boxes_of_masks(content, path)]
        coco = to_coco_file(content, "", source, findings)
    for error in findings.errors.values():
        raise UserError(str(error))
    assert coco is not None
    names = [(image["file_name"],) for image in coco.images]
    images = []
    for entry in coco.images:
        boxes = []
        for annotation in entry["annotations"]:
            x, y, width, height = annotation["bbox"]
            label = coco.class_names[annotation["category_id"]]
            boxes.append(Box(label, x, y, x + width, y + height, bool(annotation["iscrowd"])))
        size = entry.get("width", 0), entry.get("height", 0)
        images.append(AnnotatedImage("", boxes, *size, split_of_file(path)))
    notes += place_images(images, names, path, image_folder)
    return AnnotatedImages("COCO", coco.class_names, images, notes + take_sizes(images))


def write_coco_file(dataset: AnnotatedImages, path: str) -> None:
    """Write a file whose ``file_name`` are relative to the data set's image folder."""
    content = json.dumps(dataset.to_coco(), ensure_ascii=False).encode()
    write_whole_file(path, lambda file: file.write(content))


def _leave_out_groups(content: dict[str, Any], path: str) -> list[str]:
    """Remove Roboflow's category that only groups the others; its name may be that of one of them.

    Returns:
        a note on each.
    """
    categories = [x for x in content["categories"] if isinstance(x, dict)]
    used = [x.get("category_id") for x in content.get("annotations", []) if isinstance(x, dict)]
    groups = [
        group
        for group in categories
        if group.get("supercategory") == "none"
        and group.get("id") not in used
        and any(x.get("supercategory", "") == group.get("name") for x in categories)
    ]
    content["categories"] = [x for x in content["categories"] if x not in groups]
    return [
        f"{path}: the category {shown(group.get('name'))} has no box and groups others: no class"
        for group in groups
    ]
