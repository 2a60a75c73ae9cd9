"""The columns of a CSV table: by their names, or as a tool that writes no names has them."""

import csv
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...errors import UserError
from ..findings import counted

CORNERS = ("x1", "y1", "x2", "y2")
_NAMES = {
    "image": "image_path filename file_name image image_name path file img imageid",
    "x1": "xmin x1 x_min left bbox_x",
    "y1": "ymin y1 y_min top bbox_y",
    "x2": "xmax x2 x_max right bbox_width",
    "y2": "ymax y2 y_max bottom bbox_height",
    "label": "label class class_name classname labelname label_name category name",
}
SIZES = ("bbox_width", "bbox_height")  # in place of the second corner
_IMAGE_SIZES = (("image_width", "image_height"), ("img_width", "img_height"), ("width", "height"))
# The columns of tools that write no line of names: keras-retinanet, and makesense.ai, whose last
# two are the image's size.
_KERAS_RETINANET = ("image", *CORNERS, "label")
_MAKESENSE = ("label", "bbox_x", "bbox_y", *SIZES, "image", "image_width", "image_height")
_DELIMITERS = ",;\t"
_BEGINNING = 65536


class Table(NamedTuple):
    columns: dict[str, int]  # where each of _NAMES is, and others by their own names
    names: tuple[str, str, str, str]  # of the four numbers, for messages
    image_size: tuple[str, ...]  # the columns of the images' width and height; () without
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
    has_box = any(key in columns for key in CORNERS)
    return ("image" in columns and has_box) or bool(_unnamed(cells))


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


def read_table(path: str) -> Table:
    """
    Raises:
        UserError: a column is missing, a row is shorter or longer than the first, or there is none.
    """
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
    x1, y1, x2, y2 = (cells[columns[key]].strip() for key in CORNERS)
    return Table(columns, (x1, y1, x2, y2), _image_size(columns, rows), rows)


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


def _unnamed(cells: Sequence[str]) -> tuple[str, ...]:
    """The columns of a first line that is not their names, but a row of a known tool; or ()."""
    numbers = sum(map(_is_number, cells[1:5]))
    if len(cells) == len(_MAKESENSE) and numbers == 4 and all(map(_is_number, cells[6:])):
        return _MAKESENSE
    if len(cells) == len(_KERAS_RETINANET) and cells[0].strip():
        is_empty = not any(x.strip() for x in cells[1:])
        return _KERAS_RETINANET if is_empty or numbers == 4 else ()
    return ()


def _image_size(columns: dict[str, int], rows: Sequence[tuple[int, list[str]]]) -> tuple[str, ...]:
    """The names of two columns; ``width`` and ``height`` may also be those of the boxes."""
    found = next((x for x in _IMAGE_SIZES if all(name in columns for name in x)), None)
    if found is None:
        return ()
    places = [columns[key] for key in (*CORNERS, *found)]
    cells = [[row[i] for i in places] for _, row in rows]
    numbers = [list(map(float, x)) for x in cells if all(map(_is_number, x))]
    of_boxes = sum(
        abs(x2 - x1 - width) <= 1 and abs(y2 - y1 - height) <= 1
        for x1, y1, x2, y2, width, height in numbers
    )
    return () if numbers and of_boxes > len(numbers) / 2 else found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
