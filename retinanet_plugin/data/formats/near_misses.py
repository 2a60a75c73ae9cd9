"""Files that are nearly of a format: a sentence on what they lack."""

import codecs
import os
from collections.abc import Sequence
from itertools import chain

from ..findings import shown
from .csv_table import COLUMNS, first_cells
from .recognize import Contents
from .yolo import label_file

_BEGINNING = 200
_SUFFIXES = (".csv", ".tsv", ".json", ".xml", ".yaml", ".yml")


def near_miss(contents: Contents) -> str:
    """What is wrong with the first file that is meant as annotations; "" if there is none.

    Args:
        contents: of a folder without annotations.
    """
    for path in chain(*(contents.others.get(suffix, []) for suffix in _SUFFIXES)):
        if _is_utf16(path):
            return f"{path} is in UTF-16, as Excel and Windows write texts: save it as UTF-8"
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


def _is_utf16(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _first_line(path: str) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.read(_BEGINNING).strip().partition("\n")[0]
