"""YOLO: a text file for each image; a line is a class and the box in shares of the image's size."""

import os
from collections.abc import Sequence

from ...errors import UserError
from ..findings import counted, shown
from .annotated_images import AnnotatedImage, AnnotatedImages, Box
from .folders import files_in
from .image_places import are_few_missing
from .numbers import to_number
from .sizes import take_sizes
from .yolo_config import YoloConfig

# Shares may be that much above 1: they were rounded.
_ROUNDING = 1e-4
_NUMBERS_OF_BOX = 5
_BEGINNING = 65536


def read_yolo(config: YoloConfig) -> AnnotatedImages:
    """Read the label files of images, which are where Ultralytics looks for them.

    For ``x/images/a.jpg`` that is ``x/labels/a.txt``; else, or where there is none, ``a.txt``
    beside the image. A line of more than five numbers is a polygon: its bounding box is taken.

    Raises:
        UserError: a line is not as meant, a label file has no image, or no image has a label file.
    """
    label_of = {path: label_file(path, config.label_folders) for path in config.images}
    if not any(label_of.values()):
        example = next(iter(label_of))
        place = label_places(example, config.label_folders)[0]
        raise UserError(
            f"{config.source}: no image has a label file, such as {place} for {example}: put the "
            "labels there"
        )
    notes = config.notes + ([] if config.names_images else _leave_out_unlabelled(label_of))
    images = [AnnotatedImage(path, split=config.images[path]) for path in label_of]
    labels = [*label_of.values()]
    notes += take_sizes(images)
    notes += _notes_on_strays(labels, config)
    for image, label in zip(images, labels):
        if label is not None:
            image.boxes = _read_labels(label, image, config)
    without = [path for path, label in label_of.items() if label is None]
    if without:
        have = counted(len(without), "image has", "images have")
        notes.append(f"{have} no label file, which means: no objects; the first is {without[0]}")
    return AnnotatedImages("YOLO", config.class_names, images, notes)


def write_yolo_labels(image: AnnotatedImage, path: str, class_names: list[str]) -> None:
    """Write the label file of an image; one without objects gets an empty file."""
    lines = []
    for box in image.boxes:
        x, y = (box.x1 + box.x2) / 2 / image.width, (box.y1 + box.y2) / 2 / image.height
        width, height = (box.x2 - box.x1) / image.width, (box.y2 - box.y1) / image.height
        numbers = " ".join(f"{value:.10g}" for value in (x, y, width, height))
        lines.append(f"{class_names.index(box.label)} {numbers}\n")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)


def label_places(image_path: str, folders: tuple[str, str] | None = None) -> list[str]:
    """Where the label file of an image can be, the likeliest first.

    Args:
        folders: those of all images and of all labels, where that is known.
    """
    stem = os.path.splitext(image_path)[0]
    if folders is not None:
        return [os.path.join(folders[1], f"{os.path.relpath(stem, folders[0])}.txt")]
    before, images, after = stem.rpartition("/images/")
    beside = f"{stem}.txt"
    return [f"{before}/labels/{after}.txt", beside] if images else [beside]


def label_file(image_path: str, folders: tuple[str, str] | None = None) -> str | None:
    """The label file of an image; None if there is none."""
    places = label_places(image_path, folders)
    upper = [f"{os.path.splitext(place)[0]}.TXT" for place in places]
    return next(filter(os.path.isfile, [*places, *upper]), None)


def is_label_file(path: str) -> bool:
    """Whether the first line of a file begins with the numbers of a box."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            words = file.read(_BEGINNING).lstrip().partition("\n")[0].split()
        return len([float(word) for word in words[:_NUMBERS_OF_BOX]]) == _NUMBERS_OF_BOX
    except (OSError, ValueError):
        return False


def _leave_out_unlabelled(label_of: dict[str, str | None]) -> list[str]:
    """Remove images that lie where none has a label file; a note on these.

    They are probably no images without objects, but other pictures, or not annotated yet.
    """
    labelled = {os.path.dirname(path) for path, label in label_of.items() if label is not None}
    others = [path for path in label_of if os.path.dirname(path) not in labelled]
    for path in others:
        del label_of[path]
    are = counted(len(others), "image is", "images are")
    return (
        [f"{are} left out, in folders where none has a label file; the first is {others[0]}"]
        if others
        else []
    )


def _notes_on_strays(labels: Sequence[str | None], config: YoloConfig) -> list[str]:
    """A note on label files without an image, in the folders where others have theirs.

    Raises:
        UserError: they are not few.
    """
    known = set(labels)
    folders = {os.path.dirname(label) for label in known if label} if config.lists_folders else ()
    strays = [
        path
        for path in files_in(folders)
        if path.lower().endswith(".txt") and path not in known and is_label_file(path)
    ]
    if not strays:
        return []
    num_labels = len(strays) + sum(label is not None for label in labels)
    if not are_few_missing(len(strays), num_labels):
        raise UserError(
            f"the label file {strays[0]} has no image, like {len(strays):,} of {num_labels:,} in "
            "all: add the images to the folder of the images, or remove the label files"
        )
    are = counted(len(strays), "label file is", "label files are")
    return [f"{are} left out of {num_labels:,}, without an image; the first is {strays[0]}"]


def _read_labels(path: str, image: AnnotatedImage, config: YoloConfig) -> list[Box]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"the label file {path} cannot be read ({error}): save it anew") from error
    return [
        _read_line(line.split(), f"line {number} of {path}", image, config)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _read_line(values: list[str], where: str, image: AnnotatedImage, config: YoloConfig) -> Box:
    num_values = len(values)
    if num_values == _NUMBERS_OF_BOX + config.num_keypoint_values:
        values = values[:_NUMBERS_OF_BOX]  # a pose, whose box comes first
    elif num_values == _NUMBERS_OF_BOX + 1:
        raise UserError(
            f"{where} has 6 numbers, as detections with a score have: remove the last one of each "
            "line, or write class and a polygon of three points or more"
        )
    elif num_values != _NUMBERS_OF_BOX and (num_values < 7 or num_values % 2 == 0):
        raise UserError(
            f"{where} has {counted(num_values, 'number', 'numbers')}: write class, x and y of the "
            "centre, width, height, or class and a polygon of three points or more"
        )
    label = _class_name(values[0], where, config.class_names)
    numbers = [to_number(value, f"{where} has") for value in values[1:]]
    wrong = [value for value in numbers if not 0 <= value <= 1 + _ROUNDING]
    if wrong:
        raise UserError(
            f"{where} has the number {wrong[0]:g}, not one of 0 to 1: write shares of the image's "
            "width and height"
        )
    if len(numbers) == 4:
        x, y, width, height = numbers
        x1, y1, x2, y2 = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        xs, ys = numbers[::2], numbers[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    return Box(label, x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height)


def _class_name(text: str, where: str, class_names: list[str]) -> str:
    class_id = to_number(text, f"{where} has the class")
    if class_id != int(class_id) or not 0 <= class_id < len(class_names):
        raise UserError(
            f"{where} has the class {shown(text)}, but the names are of 0 to {len(class_names) - 1}"
            ": correct the line, or add the name"
        )
    return class_names[int(class_id)]
