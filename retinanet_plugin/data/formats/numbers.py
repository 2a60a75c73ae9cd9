"""Numbers of files, read strictly."""

import math
from typing import Any

from ...errors import UserError
from ..annotations.coco_entries import MOST_PIXELS
from ..findings import shown


def to_number(value: Any, where: str) -> float:
    """A finite number, of a text or of JSON.

    Args:
        where: a clause that ends in what the number is: "line 3 of a.csv has xmin".

    Raises:
        UserError: it is none.
    """
    try:
        number = float(value) if isinstance(value, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not abs(number) < MOST_PIXELS:
        raise UserError(f"{where} {shown(value)}: write a number")
    return number


def to_corners(
    values: tuple[Any, Any, Any, Any], names: tuple[str, str, str, str], where: str
) -> tuple[float, float, float, float]:
    """Corners (x1, y1, x2, y2).

    Args:
        values: as the file has them.
        names: of the four in the file.
        where: "line 3 of a.csv".

    Raises:
        UserError: one of them is no number, or the second corner is left of or above the first.
    """
    x1, y1, x2, y2 = (to_number(v, f"{where} has {name}") for v, name in zip(values, names))
    for low, high, first, second in ((x1, x2, names[0], names[2]), (y1, y2, names[1], names[3])):
        if high < low:
            raise UserError(
                f"{where} has {second} {high:g}, which is less than its {first} {low:g}: write the "
                "left upper corner first, then the right lower one"
            )
    return x1, y1, x2, y2


def to_size(value: Any, where: str) -> int:
    """Pixels of an image's edge; 0 where there are none, since its file has them.

    Raises:
        UserError: it is no positive whole number.
    """
    if value is None:
        return 0
    size = to_number(value, where)
    if size <= 0 or size != int(size):
        raise UserError(f"{where} {shown(value)}: write the pixels of the image, or leave it out")
    return int(size)


def to_label(value: Any, where: str) -> str:
    """A class name, without spaces around it.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UserError(f"{where} {shown(value)}: write the name of a class")
    return value.strip()
