"""A data set written in one of the formats; nothing that is there already is touched."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import yaml

from ...errors import UserError
from ...new_folders import check_new_folder, whole_folder
from ...whole_files import refuse_existing
from ..findings import counted, name_alike, shown
from .annotated_images import AnnotatedImage, AnnotatedImages, Box
from .coco import write_coco_file
from .createml import write_createml
from .csv_table import write_csv_table
from .labelme import write_labelme
from .voc import write_voc_file
from .yolo import write_yolo_labels


def write_dataset(dataset: AnnotatedImages, path: str, file_format: str) -> AnnotatedImages:
    """Write a data set. No image is copied: folders of YOLO and Pascal VOC hold links to them.

    Args:
        dataset: what :func:`read_dataset` returns.
        path: a file for ``coco``, ``createml`` and ``csv``; a folder for the others.
        file_format: one of :data:`FORMATS`.

    Returns:
        what was written; its notes are those of ``dataset`` and what the format cannot hold.

    Raises:
        UserError: ``path`` is there, and is no empty folder where one is written; it cannot be
            written, or two images would have one name.
    """
    if file_format in _FILES:
        refuse_existing(path)
    else:
        check_new_folder(path)
    written = _fitted(dataset, file_format)
    written.notes += _notes_on_names(dataset.class_names)
    if file_format in _FILES:
        if len({image.split for image in written.images}) > 1:
            note = "train, val and test are in one file: convert one at a time to keep them"
            written.notes.append(note)
        _FILES[file_format](written, path)
        return written
    try:
        with whole_folder(path) as folder:
            written.notes += _FOLDERS[file_format](written, folder, path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}): make room, or correct the permissions"
        ) from error
    return written


def _fitted(dataset: AnnotatedImages, file_format: str) -> AnnotatedImages:
    """What a format can hold of a data set; its notes say what it cannot."""
    images, notes = dataset.images, list(dataset.notes)
    if file_format not in _MARKS_IGNORED:
        images = _mapped(images, lambda box, image: None if box.ignored else box)
        if lost := dataset.num_boxes - _num_boxes(images):
            boxes = counted(lost, "box to be ignored was", "boxes to be ignored were")
            notes.append(f"{boxes} left out, since {file_format} cannot mark them")
    if file_format in _ENDS_AT_BORDER:
        before, images = images, _mapped(images, _cut)
        if lost := _num_boxes(before) - _num_boxes(images):
            boxes = counted(lost, "box outside of its image was", "boxes outside of images were")
            notes.append(f"{boxes} left out")
        kept = {box for image in before for box in image.boxes}
        if num_cut := sum(box not in kept for image in images for box in image.boxes):
            boxes = counted(
                num_cut, "box that leaves its image was", "boxes that leave images were"
            )
            notes.append(f"{boxes} cut at the border, as {file_format} wants it")
    return replace(dataset, images=images, notes=notes)


def _notes_on_names(names: Sequence[str]) -> list[str]:
    """A note on each two names that are hardly to be told apart; some formats cannot."""
    pairs = [(name, name_alike(name, names[:i])) for i, name in enumerate(names)]
    return [
        f"the classes {shown(first)} and {shown(name)} differ in capital letters or blanks alone: "
        "if one is meant, give both one name"
        for name, first in pairs
        if first is not None
    ]


def _mapped(
    images: Sequence[AnnotatedImage], change: Callable[[Box, AnnotatedImage], Box | None]
) -> list[AnnotatedImage]:
    """The images with other boxes, or without them where ``change`` returns None."""
    changed = []
    for image in images:
        boxes = [change(box, image) for box in image.boxes]
        changed.append(replace(image, boxes=[box for box in boxes if box is not None]))
    return changed


def _cut(box: Box, image: AnnotatedImage) -> Box | None:
    x1, y1 = max(box.x1, 0), max(box.y1, 0)
    x2, y2 = min(box.x2, image.width), min(box.y2, image.height)
    return box._replace(x1=x1, y1=y1, x2=x2, y2=y2) if x1 <= x2 and y1 <= y2 else None


def _num_boxes(images: Sequence[AnnotatedImage]) -> int:
    return sum(len(image.boxes) for image in images)


def _write_yolo(dataset: AnnotatedImages, folder: str, _: str) -> list[str]:
    """``images/``, ``labels/`` and ``data.yaml``; of a data set with splits, a folder for each."""
    splits = sorted({image.split for image in dataset.images})
    for split in splits:
        images = [image for image in dataset.images if image.split == split]
        for image, name in zip(images, _names(images)):
            _link(image.file_name, os.path.join(folder, "images", split, name))
            label = os.path.join(folder, "labels", split, f"{os.path.splitext(name)[0]}.txt")
            write_yolo_labels(image, label, dataset.class_names)
    places = {split or "train": os.path.join("images", split) for split in splits}
    content = places | {"names": dict(enumerate(dataset.class_names))}
    with open(os.path.join(folder, "data.yaml"), "w", encoding="utf-8") as file:
        yaml.safe_dump(content, file, allow_unicode=True, sort_keys=False)
    notes = [_LINKED]
    if "val" not in places:
        notes.append("data.yaml has no val, which Ultralytics' training wants")
    return notes


def _write_voc(dataset: AnnotatedImages, folder: str, _: str) -> list[str]:
    """``Annotations/``, ``JPEGImages/`` and lists of the images in ``ImageSets/Main/``."""
    lists: dict[str, list[str]] = {}
    for image, name in zip(dataset.images, _names(dataset.images)):
        _link(image.file_name, os.path.join(folder, "JPEGImages", name))
        write_voc_file(image, name, os.path.join(folder, "Annotations"))
        lists.setdefault(image.split or "trainval", []).append(os.path.splitext(name)[0])
    os.makedirs(os.path.join(folder, "ImageSets", "Main"))
    for split, stems in lists.items():
        path = os.path.join(folder, "ImageSets", "Main", f"{split}.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{stem}\n" for stem in stems)
    return [_LINKED]


def _names(images: Sequence[AnnotatedImage]) -> list[str]:
    """File names of images in one folder: their own, or with their folders where two are alike.

    Raises:
        UserError: two still have one stem, so that they would share their annotations.
    """
    names = [os.path.basename(image.file_name) for image in images]
    if len({os.path.splitext(name)[0] for name in names}) < len(names):
        top = os.path.commonpath([os.path.dirname(image.file_name) for image in images])
        below = [os.path.relpath(image.file_name, top) for image in images]
        names = [name.replace("/", "_") for name in below]
    stem, count = Counter(os.path.splitext(name)[0] for name in names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} images would be called {stem}: rename all but one of them")
    return names


def _link(image: str, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.symlink(os.path.realpath(image), path)
    except OSError:  # a file system that has no links
        shutil.copyfile(image, path)


_LINKED = "the images are links: keep the originals where they are, or copy with cp -rL"
_FILES: dict[str, Callable[[AnnotatedImages, str], None]] = {
    "coco": write_coco_file,
    "createml": write_createml,
    "csv": write_csv_table,
}
# Given the folder to write into, and where its content goes.
_FOLDERS: dict[str, Callable[[AnnotatedImages, str, str], list[str]]] = {
    "labelme": write_labelme,
    "voc": _write_voc,
    "yolo": _write_yolo,
}
FORMATS = sorted((*_FILES, *_FOLDERS))
FILE_FORMATS = tuple(_FILES)
_MARKS_IGNORED = ("coco", "voc")
_ENDS_AT_BORDER = ("voc", "yolo")
