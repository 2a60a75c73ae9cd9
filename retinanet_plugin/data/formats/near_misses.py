"""Files that are nearly of a format: a sentence on what they lack."""

import codecs
import os
from collections.abc import Sequence

from ..findings import shown
from .csv_columns import first_cells
from .csv_table import COLUMNS
from .recognize import Contents
from .yolo import label_file

_BEGINNING = 200
_TABLES, _OTHERS = (".csv", ".tsv"), (".json", ".xml", ".yaml", ".yml")


def near_miss(contents: Contents) -> str:
    """What is wrong with the first file that is meant as annotations; "" if there is none.

    Args:
        contents: of a folder without annotations.
    """
    tables, others = (
        [path for suffix in suffixes for path in contents.others.get(suffix, [])]
        for suffixes in (_TABLES, _OTHERS)
    )
    labels = list(filter(None, map(label_file, contents.images)))
    for path in [*labels, *tables, *others]:
        if _is_utf16(path):
            return f"{path} is in UTF-16, as Excel and Windows write texts: save it as UTF-8"
    # Labels are of their images; a table may be of anything.
    if label := next(filter(_first_line, labels), None):
        return (
            f"line 1 of {label} is {shown(_first_line(label))}: write the number of the class, x "
            "and y of the centre, width and height, with spaces between, as YOLO has them"
        )
    if table := next(iter(tables), None):
        columns = ", ".join(first_cells(table))
        found = f"begins with {shown(columns)}, which are" if columns else "has"
        return (
            f"{table} {found} no known columns of boxes: write {','.join(COLUMNS)} into its first "
            "line, corners in pixels below"
        )
    return ""


def broken_files(paths: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of ``others``, files of no format, that are meant as one of ``paths``.

    That is, in their folders: any .xml, since each of Pascal VOC is of an image, and other files
    without content.
    """
    folders = {os.path.dirname(path) for path in paths}
    return [
        path
        for path in others
        if os.path.dirname(path) in folders
        and (path.lower().endswith(".xml") or not _first_line(path))
    ]


def _is_utf16(path: str) -> bool:
    return _beginning(path).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _first_line(path: str) -> str:
    return _beginning(path).decode("utf-8-sig", "replace").strip().partition("\n")[0]


def _beginning(path: str) -> bytes:
    """Nothing of a file that may not be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_BEGINNING)
    except OSError:
        return b""
