"""CSV: a row for each box, with or without a line of column names."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...errors import UserError
from ...whole_files import write_whole_file
from ..findings import counted
from .annotated_images import AnnotatedImage, AnnotatedImages, Box, class_names_of
from .image_places import place_images, split_of_file
from .numbers import to_corners, to_label, to_number
from .sizes import take_sizes

_CORNERS = ("x1", "y1", "x2", "y2")
_NAMES = {
    "image": "image_path filename file_name image image_name path file img imageid",
    "x1": "xmin x1 x_min left bbox_x",
    "y1": "ymin y1 y_min top bbox_y",
    "x2": "xmax x2 x_max right bbox_width",
    "y2": "ymax y2 y_max bottom bbox_height",
    "label": "label class class_name classname labelname label_name category name",
}
_SIZES = ("bbox_width", "bbox_height")  # in place of the second corner
# The columns of tools that write no line of names: keras-retinanet, and makesense.ai, whose last
# two are the image's size.
_KERAS_RETINANET = ("image", *_CORNERS, "label")
_MAKESENSE = ("label", "bbox_x", "bbox_y", *_SIZES, "image", "image_width", "image_height")
# What is written.
COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
_DELIMITERS = ",;\t"
_BEGINNING = 65536


class _Table(NamedTuple):
    columns: dict[str, int]  # where each of _NAMES is, and others by their own names
    num_columns: int
    names: tuple[str, str, str, str]  # of the four numbers, for messages
    rows: list[tuple[int, list[str]]]  # with their line numbers


def first_cells(path: str) -> list[str]:
    """What is in the first line of a file."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(_BEGINNING)
    return next(csv.reader([line.strip("\r\n")], delimiter=_delimiter(line)), [])


def is_csv_table(path: str) -> bool:
    """Whether a file has boxes, by its first line."""
    cells = first_cells(path)
    columns = _columns(cells)
    has_box = any(key in columns for key in _CORNERS)
    return ("image" in columns and has_box) or bool(_unnamed(cells))


def read_csv_table(path: str, image_folder: str | None) -> AnnotatedImages:
    """Read a table of boxes; classes are in the order of the alphabet.

    Numbers are corners in absolute pixels, or the first corner and the size of makesense.ai; in the
    files of Open Images (``ImageID``, ``LabelName``) they are shares of the image's size, and
    groups are ignored boxes. A row with nothing, or four zeros, for a box names an image without
    objects.

    Raises:
        UserError: a row is not as meant, or the images are not found.
    """
    table = _read_table(path)
    boxes_of: dict[str, list[Box]] = {}
    for number, row in table.rows:
        where = f"line {number} of {path}"
        name = row[table.columns["image"]].strip()
        if not name:
            raise UserError(f"{where} names no image: write its file in the column of the images")
        boxes = boxes_of.setdefault(name, [])
        cells = tuple(row[table.columns[key]].strip() for key in _CORNERS)
        if any(cells) and not all(cell.strip("0.") == "" and cell for cell in cells):
            x1, y1, x2, y2 = _corners(cells, table.names, where)
            label = to_label(row[table.columns["label"]], f"{where} has the class")
            is_group = "isgroupof" in table.columns and row[table.columns["isgroupof"]] == "1"
            boxes.append(Box(label, x1, y1, x2, y2, is_group))
    names = [(name,) for name in boxes_of]
    split = split_of_file(path)
    images = [AnnotatedImage("", boxes, split=split) for boxes in boxes_of.values()]
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


def read_rows(path: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, each with the number of its last line.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): save it as CSV in UTF-8") from error


def _read_table(path: str) -> _Table:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        delimiter = _delimiter(file.readline())
    rows = list(read_rows(path, delimiter))
    if not rows:
        raise UserError(f"{path} is empty: export it again")
    cells = rows[0][1]
    columns = _columns(cells)
    if unnamed := _unnamed(cells):
        cells = list(unnamed)
        columns = _columns(cells)
    else:
        rows = rows[1:]
    for key, names in _NAMES.items():
        if key not in columns:
            known = ", ".join(names.split())
            raise UserError(
                f"{path} has no column for {key} in its first line ({', '.join(cells)}): name it "
                f"one of {known}"
            )
    for number, row in rows:
        if len(row) != len(cells):
            has = counted(len(row), "column", "columns")
            raise UserError(
                f"line {number} of {path} has {has}, but the first line has {len(cells)}: write "
                f"{delimiter.join(cells)}"
            )
    if not rows:
        raise UserError(f"{path} has no row below the names of its columns: export it again")
    x1, y1, x2, y2 = (cells[columns[key]].strip() for key in _CORNERS)
    return _Table(columns, len(cells), (x1, y1, x2, y2), rows)


def _delimiter(line: str) -> str:
    return max(_DELIMITERS, key=line.count)


def _columns(cells: Sequence[str]) -> dict[str, int]:
    columns: dict[str, int] = {}
    for i, cell in enumerate(cells):
        name = cell.strip().lower().replace(" ", "_")
        known = (key for key, names in _NAMES.items() if name in names.split())
        columns.setdefault(next(known, name), i)
        if name == "imageid":
            columns[name] = i
    return columns


def _is_open_images(columns: dict[str, int]) -> bool:
    return "imageid" in columns


def _unnamed(cells: Sequence[str]) -> tuple[str, ...]:
    """The columns of a first line that is not their names, but a row of a known tool; or ()."""
    numbers = sum(map(_is_number, cells[1:5]))
    if len(cells) == len(_MAKESENSE) and numbers == 4 and all(map(_is_number, cells[6:])):
        return _MAKESENSE
    if len(cells) == len(_KERAS_RETINANET) and cells[0].strip():
        is_empty = not any(x.strip() for x in cells[1:])
        return _KERAS_RETINANET if is_empty or numbers == 4 else ()
    return ()


def _corners(
    cells: Sequence[str], names: tuple[str, str, str, str], where: str
) -> tuple[float, float, float, float]:
    """Of numbers in the order of ``_CORNERS``, the last two of which may be sizes."""
    x1, y1, x2, y2 = (to_number(x, f"{where} has {name}") for x, name in zip(cells, names))
    first_x, first_y, x_name, y_name = names
    if x_name.lower() in _SIZES:
        x2, x_name = x1 + x2, f"{first_x} + {x_name}"
    if y_name.lower() in _SIZES:
        y2, y_name = y1 + y2, f"{first_y} + {y_name}"
    return to_corners((x1, y1, x2, y2), (first_x, first_y, x_name, y_name), where)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
