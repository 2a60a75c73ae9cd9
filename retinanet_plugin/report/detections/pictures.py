"""Pictures of detections beside ground truth: hits, false alarms, found and missed boxes."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...data.images.read_image import read_image
from ..drawing import (
    GREY,
    ORANGE,
    REGION,
    SKY_BLUE,
    WHITE,
    YELLOW,
    add_axes,
    draw_boxes,
    draw_legend,
    new_figure,
    show_picture,
)
from ..names import shortened
from .shown_boxes import ShownBox

STYLES = {
    "truth, found": WHITE,
    "truth, missed": YELLOW,
    "hit": SKY_BLUE,
    "false alarm": ORANGE,
    "region to ignore": REGION,
    "ignored": GREY,
}
_KINDS = {
    "region": "region to ignore", "hit": "hit", "false": "false alarm", "ignored": "ignored",
}  # fmt: skip
# What the legend has only where a picture has a region to ignore.
IGNORED = ("region to ignore", "ignored")
COLUMNS = 2  # most pairs of pictures in a row
PICTURE_WIDTH = 3.3  # inches
MOST_HEIGHT = 1.6 * PICTURE_WIDTH  # of a row: taller pictures become narrower


def draw_pairs(
    images: Sequence[dict[str, Any]], boxes: Sequence[Sequence[ShownBox]], score_thresh: float
) -> tuple[Figure, int]:
    """Pairs of pictures, truth and detections, in a grid under a legend.

    Args:
        images: in Detectron2's format of data sets.
        boxes: of each image, the best detections first.
        score_thresh: detections of a lower score are left out.

    Returns:
        (Figure, int): the grid, and how many boxes have no label, for lack of room.
    """
    pictures = [read_image(image, "RGB") for image in images]
    has_regions = any(box.kind == "region" for of_image in boxes for box in of_image)
    kinds = [kind for kind in STYLES if has_regions or kind not in IGNORED]
    legend_rows = 2 if has_regions else 1
    figure, panels = _grid([picture.shape[:2] for picture in pictures], legend_rows)
    title = f"left: truth      right: detections of score {score_thresh} and more"
    draw_legend(figure, kinds, STYLES, legend_rows, title)
    unlabelled = 0
    for of_image, picture, (left, right) in zip(boxes, pictures, panels):
        truth = [box for box in of_image if box.is_truth]
        found = [box for box in of_image if not box.is_truth and box.score >= score_thresh]
        for axes, shown in ((left, truth), (right, found)):
            show_picture(axes, picture)
            unlabelled += _draw_boxes(axes, shown, score_thresh)
    return figure, unlabelled


def _draw_boxes(axes: Axes, boxes: Sequence[ShownBox], score_thresh: float) -> int:
    corners = [(x, y, x + width, y + height) for x, y, width, height in (b.box for b in boxes)]
    kinds = [_kind(box, score_thresh) for box in boxes]
    return draw_boxes(axes, corners, kinds, [shortened(box.label) for box in boxes], STYLES)


def _kind(box: ShownBox, score_thresh: float) -> str:
    """A key of ``STYLES``."""
    if box.kind == "truth":
        return "truth, found" if box.is_found(score_thresh) else "truth, missed"
    return _KINDS[box.kind]


def _grid(sizes: list[tuple[int, int]], legend_rows: int) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A figure, and the left and the right axes for each picture of the sizes (height, width)."""
    columns = min(COLUMNS, len(sizes))
    rows = [sizes[i : i + columns] for i in range(0, len(sizes), columns)]
    heights = [min(MOST_HEIGHT, PICTURE_WIDTH * max(h / w for h, w in row)) for row in rows]
    gap, legend = 0.06, 0.35 + 0.25 * legend_rows  # inches
    pair = 2 * PICTURE_WIDTH + 4 * gap
    width = columns * pair
    height = sum(heights) + 2 * gap * len(rows) + legend
    figure = new_figure(width, height)
    panels, bottom = [], height - legend
    for row, row_height in zip(rows, heights):
        bottom -= row_height
        for column in range(len(row)):
            left = column * pair + gap
            right = left + PICTURE_WIDTH + gap
            panels.append(
                (
                    add_axes(figure, left, bottom, PICTURE_WIDTH, row_height),
                    add_axes(figure, right, bottom, PICTURE_WIDTH, row_height),
                )
            )
        bottom -= 2 * gap
    return figure, panels
