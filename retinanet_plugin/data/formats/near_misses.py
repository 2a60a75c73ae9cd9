"""Files that are nearly of a format: a sentence on what they lack."""

import os
from collections.abc import Sequence

from ..findings import shown
from .csv_table import COLUMNS, first_cells
from .recognize import Contents
from .yolo import label_file

_BEGINNING = 200


def near_miss(contents: Contents) -> str:
    """What is wrong with the first table or label file that is of no format; "" if there is none.

    Args:
        contents: of a folder without annotations.
    """
    for path in [*contents.others.get(".csv", []), *contents.others.get(".tsv", [])]:
        columns = ", ".join(first_cells(path))
        return (
            f"{path} begins with {shown(columns)}, which are no known columns of boxes: write "
            f"{','.join(COLUMNS)} into its first line, corners in pixels below"
        )
    for path in filter(None, map(label_file, contents.images)):
        line = _first_line(path)
        if line:
            return (
                f"line 1 of {path} is {shown(line)}: write the number of the class, x and y of the "
                "centre, width and height, with spaces between, as YOLO has them"
            )
    return ""


def empty_files(paths: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of ``others`` that have no content, in the folders of ``paths``."""
    folders = {os.path.dirname(path) for path in paths}
    return [x for x in others if os.path.dirname(x) in folders and os.path.getsize(x) == 0]


def _first_line(path: str) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.read(_BEGINNING).strip().partition("\n")[0]
