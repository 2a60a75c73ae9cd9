"""CSV: a row for each box, with or without a line of column names."""

import csv
import io
import os
from collections.abc import Sequence

from ...errors import UserError
from ...whole_files import write_whole_file
from .annotated_images import AnnotatedImage, AnnotatedImages, Box, class_names_of
from .csv_columns import CORNERS, SIZES, Table, read_table
from .image_places import place_images, split_of_file
from .numbers import to_corners, to_label, to_number, to_size
from .sizes import take_sizes

# What is written.
COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")


def read_csv_table(path: str, image_folder: str | None) -> AnnotatedImages:
    """Read a table of boxes; classes are in the order of the alphabet.

    Numbers are corners in absolute pixels, or the first corner and the size of makesense.ai; in the
    files of Open Images (``ImageID``, ``LabelName``) they are shares of the image's size, and
    groups are ignored boxes. A row with nothing, or four zeros, for a box names an image without
    objects. Where the table has the sizes of images, they are those of the files.

    Raises:
        UserError: a row is not as meant, or the images are not found.
    """
    table = read_table(path)
    boxes_of: dict[str, list[Box]] = {}
    for number, row in table.rows:
        where = f"line {number} of {path}"
        name = row[table.columns["image"]].strip()
        if not name:
            raise UserError(f"{where} names no image: write its file in the column of the images")
        boxes = boxes_of.setdefault(name, [])
        cells = tuple(row[table.columns[key]].strip() for key in CORNERS)
        if any(cells) and not all(cell.strip("0.") == "" and cell for cell in cells):
            x1, y1, x2, y2 = _corners(cells, table.names, where)
            label = to_label(row[table.columns["label"]], f"{where} has the class")
            is_group = "isgroupof" in table.columns and row[table.columns["isgroupof"]] == "1"
            boxes.append(Box(label, x1, y1, x2, y2, is_group))
    names = [(name,) for name in boxes_of]
    split, sizes = split_of_file(path), _image_sizes(table, path)
    images = [
        AnnotatedImage("", boxes, *sizes.get(name, (0, 0)), split)
        for name, boxes in boxes_of.items()
    ]
    notes = place_images(images, names, path, image_folder)
    notes += take_sizes(images)
    if _is_open_images(table.columns):
        _to_pixels(images, path)
    return AnnotatedImages("CSV", class_names_of(images), images, notes)


def write_csv_table(dataset: AnnotatedImages, path: str) -> None:
    """Write a table whose paths are relative to its own folder.

    An image without objects has a row of its path alone, as keras-retinanet has it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for image in dataset.images:
        name = os.path.relpath(image.file_name, os.path.dirname(os.path.abspath(path)))
        for box in image.boxes:
            corners = [f"{x:.15g}" for x in (box.x1, box.y1, box.x2, box.y2)]
            writer.writerow([name, *corners, box.label])
        if not image.boxes:
            writer.writerow([name, *[""] * 5])
    content = text.getvalue().encode()
    write_whole_file(path, lambda file: file.write(content))


def _is_open_images(columns: dict[str, int]) -> bool:
    return "imageid" in columns


def _corners(
    cells: Sequence[str], names: tuple[str, str, str, str], where: str
) -> tuple[float, float, float, float]:
    """Of numbers in the order of ``CORNERS``, the last two of which may be sizes."""
    x1, y1, x2, y2 = (to_number(x, f"{where} has {name}") for x, name in zip(cells, names))
    first_x, first_y, x_name, y_name = names
    if x_name.lower() in SIZES:
        x2, x_name = x1 + x2, f"{first_x} + {x_name}"
    if y_name.lower() in SIZES:
        y2, y_name = y1 + y2, f"{first_y} + {y_name}"
    return to_corners((x1, y1, x2, y2), (first_x, first_y, x_name, y_name), where)


def _image_sizes(table: Table, path: str) -> dict[str, tuple[int, int]]:
    """Of each image, by its name in the table; empty if the table has no sizes."""
    sizes: dict[str, tuple[int, int]] = {}
    for number, row in table.rows if table.image_size else ():
        where = f"line {number} of {path}"
        width, height = (
            to_size(_known(row[table.columns[key]]), f"{where} has {key}")
            for key in table.image_size
        )
        name = row[table.columns["image"]].strip()
        before = sizes.setdefault(name, (width, height))
        if before != (width, height):
            raise UserError(
                f"{where} says that {name} has {width} x {height} pixels, but a line before says "
                f"{before[0]} x {before[1]}: correct one of them"
            )
    return sizes


def _known(cell: str) -> str | None:
    """A size; some tools write 0 where they do not know it."""
    text = cell.strip()
    return None if text.lower() in ("", "0", "0.0", "nan") else text


def _to_pixels(images: Sequence[AnnotatedImage], path: str) -> None:
    for image in images:
        for i, box in enumerate(image.boxes):
            if not 0 <= min(box.x1, box.y1) <= max(box.x2, box.y2) <= 1:
                raise UserError(
                    f"{path}: {image.file_name} has a box {box[1:5]}, but in the files of Open "
                    "Images numbers are shares, 0 to 1: name the column of images otherwise"
                )
            image.boxes[i] = box._replace(
                x1=box.x1 * image.width,
                y1=box.y1 * image.height,
                x2=box.x2 * image.width,
                y2=box.y2 * image.height,
            )
