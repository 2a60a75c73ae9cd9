"""A file in COCO's format of object detection, read as what it means, or not at all.

Every annotation becomes a box of Detectron2's dataset dicts, just as the file has it, or an error
that names it: nothing is dropped, rounded or guessed.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..findings import Findings, name_alike, shown
from .coco_entries import FORMAT, Unusable, is_id, read_annotation, read_category, read_image
from .garbage import no_garbage_search
from .json_file import Unreadable, convert_it, read_json


@dataclass
class CocoFile:
    """What an annotation file says of boxes."""

    class_names: list[str]  # in the order of the category ids, as Detectron2 numbers them
    class_of: dict[int, int]  # category id -> class, 0 to K - 1
    # Detectron2's dataset dicts, in the order of their ids. Each annotation has the file's `id` and
    # `area` too, where the file has them; `iscrowd` is 1 for whatever is to be ignored.
    images: list[dict[str, Any]]
    is_annotated: bool  # False: a test set of COCO, whose annotations only its server has


def read_coco(json_file: str, image_root: str, source: str, findings: Findings) -> CocoFile | None:
    """Read an annotation file.

    Args:
        json_file: its path.
        image_root: the folder that the names of the images are in.
        source: what the file is called in ``findings``.
        findings: gets an error for each entry that cannot be read.

    Returns:
        None if the file as a whole cannot be read; after errors, what could be read.
    """
    content = read_content(json_file, source, findings)
    return None if content is None else to_coco_file(content, image_root, source, findings)


@no_garbage_search()
def read_content(json_file: str, source: str, findings: Findings) -> dict[str, Any] | None:
    """The lists ``images``, ``annotations`` and ``categories`` of a file; None after an error."""
    try:
        content = read_json(json_file)
    except Unreadable as error:
        findings.error("file", source, *error.args)
        return None
    keys = ["images", "annotations", "categories"]
    if os.path.basename(json_file).startswith("image_info_"):
        keys.remove("annotations")  # COCO's name for its test sets
    remedy = f"{FORMAT}, or {convert_it(json_file)}"
    if not isinstance(content, dict):
        kind = "a list, as of detections," if isinstance(content, list) else f"{shown(content)},"
        what = f"it is {kind} and no object with the lists {', '.join(map(repr, keys))}"
        findings.error("list", source, what, remedy)
        return None
    for key in keys:
        if not isinstance(content.get(key), list):
            findings.error("list", source, f"it has no list {key!r}", remedy)
            return None
    return content


@no_garbage_search()
def to_coco_file(
    content: dict[str, Any], image_root: str, source: str, findings: Findings
) -> CocoFile:
    """What :func:`read_coco` returns, of the lists that :func:`read_content` returns."""
    categories = _read_categories(content["categories"], source, findings)
    class_of = {category_id: i for i, category_id in enumerate(sorted(categories))}
    images = _read_images(content["images"], image_root, source, findings)
    is_annotated = isinstance(content.get("annotations"), list)
    if is_annotated:
        _read_annotations(content["annotations"], images, class_of, source, findings)
    return CocoFile(
        class_names=[categories[category_id] for category_id in class_of],
        class_of=class_of,
        images=[images[image_id] for image_id in _sorted(images, source, findings)],
        is_annotated=is_annotated,
    )


def _read_categories(entries: list[Any], source: str, findings: Findings) -> dict[int, str]:
    """Names by ids."""
    names: dict[int, str] = {}
    for i, entry in enumerate(entries):
        where = f"categories[{i}]"
        try:
            category_id, name = read_category(entry)
        except Unusable as problem:
            _add(findings, source, "categories", where, problem)
            continue
        if category_id in names:
            _add(findings, source, "categories", where, _used_twice(category_id))
        if name in names.values():
            remedy = "give every category a name of its own"
            what = f"{where} has name {shown(name)}, as another one has"
            findings.error("category name", source, what, remedy)
        elif (alike := name_alike(name, names.values())) is not None:
            remedy = "they are two classes: if one is meant, write it as one category"
            what = f"{where} has name {shown(name)}, and another one {shown(alike)}"
            findings.warn("category name", source, what, remedy)
        names[category_id] = name
    if not entries:
        remedy = "list the classes, each with id and name"
        findings.error("categories", source, "'categories' is empty", remedy)
    return names


def _read_images(
    entries: list[Any], image_root: str, source: str, findings: Findings
) -> dict[int | str, dict[str, Any]]:
    """Dataset dicts by ids."""
    images: dict[int | str, dict[str, Any]] = {}
    for i, entry in enumerate(entries):
        try:
            image = read_image(entry, image_root)
            known = images.get(image["image_id"])
            if known == image:
                what = f"has id {shown(image['image_id'])}, and all else, as another one has"
                raise Unusable("twice", what, "remove one of them")
            if known:
                raise _used_twice(image["image_id"])
        except Unusable as problem:
            name = entry.get("file_name") if isinstance(entry, dict) else None
            where = f"images[{i}] ({name})" if isinstance(name, str) else f"images[{i}]"
            _add(findings, source, "images", where, problem)
            continue
        images[image["image_id"]] = image
    return images


def _read_annotations(
    entries: list[Any],
    images: dict[int | str, dict[str, Any]],
    class_of: dict[int, int],
    source: str,
    findings: Findings,
) -> None:
    """Give each of the images its annotations."""
    seen: set[Any] = set()
    for i, entry in enumerate(entries):
        try:
            image, annotation = read_annotation(entry, images, class_of)
        except Unusable as problem:
            _add(findings, source, "annotations", _where(i, entry, images), problem)
            continue
        image["annotations"].append(annotation)
        if "id" not in annotation:
            continue
        if annotation["id"] in seen:
            findings.warn(
                "annotation id",
                source,
                f"annotations[{i}] has id {shown(annotation['id'])}, as another one has",
                "each counts as an object of its own: give every annotation an id of its own",
            )
        seen.add(annotation["id"])


def _where(i: int, entry: Any, images: dict[int | str, dict[str, Any]]) -> str:
    """How an annotation is named: by its id if it has one, and by its image if there is one."""
    if not isinstance(entry, dict):
        return f"annotations[{i}]"
    name = f"annotation {entry['id']}" if is_id(entry.get("id")) else f"annotations[{i}]"
    image_id: Any = entry.get("image_id")
    image = images.get(image_id) if is_id(image_id) else None
    return f"{name} ({os.path.basename(image['file_name'])})" if image else name


def _sorted(ids: Iterable[int | str], source: str, findings: Findings) -> list[int | str]:
    numbers = [i for i in ids if isinstance(i, int)]
    texts = [i for i in ids if isinstance(i, str)]
    if numbers and texts:
        example = f"'images' has the id {numbers[0]}, a number, and {shown(texts[0])}, a text"
        findings.error("mixed ids", source, example, "write all as numbers or all as texts")
    return [*sorted(numbers), *sorted(texts)]


def _used_twice(entry_id: int | str) -> Unusable:
    what = f"has id {shown(entry_id)}, as another one has"
    return Unusable("id twice", what, "give every entry an id of its own")


def _add(findings: Findings, source: str, key: str, where: str, problem: Unusable) -> None:
    kind, what, remedy = problem.args
    findings.error(f"{key} {kind}", source, f"{where} {what}", remedy)
