"""A sheet of images as a model sees them: boxes, regions to ignore, foreground anchors."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from ..data.findings import counted
from .drawing import (
    DPI,
    REGION,
    SKY_BLUE,
    WHITE,
    YELLOW,
    add_axes,
    draw_boxes,
    draw_legend,
    new_figure,
    outline,
    show_picture,
)
from .names import FONT_SIZE, can_be_drawn, name_without_font, shortened, text_options
from .seen_images import SeenImage

STYLES = {
    "foreground anchor": SKY_BLUE._replace(width=0.8, has_shadow=False),
    "region to ignore": REGION,
    "box": WHITE,
    "box without foreground anchor": YELLOW,
}
COLUMNS = 3  # most pictures in a row
WIDTH, MOST_HEIGHT, GAP = 4.4, 6.0, 0.1  # of a picture, inches
CAPTION, LEGEND = 0.62, 0.6  # heights
# More than these would hide the image: the best of each box are drawn.
MANY_ANCHORS, BEST_ANCHORS = 40, 2


def draw_contact_sheet(images: Sequence[SeenImage], class_names: Sequence[str]) -> Figure:
    """Each image with what a model learns from it; see :class:`SeenImage`.

    Args:
        images: one or more.
        class_names: K, of any length and characters.
    """
    names = [
        shortened(name if can_be_drawn(name) else name_without_font(i))
        for i, name in enumerate(class_names)
    ]
    columns = min(COLUMNS, len(images))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    heights = [min(MOST_HEIGHT, max(WIDTH * _height_by_width(x) for x in row)) for row in rows]
    pitch = WIDTH + GAP
    width = max(2, columns) * pitch + GAP  # the legend needs the width of two
    bottom = LEGEND + sum(heights) + (CAPTION + GAP) * len(rows)
    figure = new_figure(width, bottom)
    draw_legend(figure, _kinds(images), STYLES, rows=1 if columns > 2 else 2)
    bottom -= LEGEND
    for row, height in zip(rows, heights):
        bottom -= height
        for column, image in enumerate(row):
            left = GAP + column * pitch
            axes = add_axes(figure, left, bottom, WIDTH, height)
            axes.set_anchor("SW")  # beside its caption
            show_picture(axes, image.picture)
            _draw(axes, image, names)
            _write_caption(figure, image, left, bottom - 0.05)
        bottom -= CAPTION + GAP
    return figure


def _kinds(images: Sequence[SeenImage]) -> list[str]:
    """The kinds of boxes that there are in some of the images."""
    has = {
        "foreground anchor": any(x.anchors is not None and len(x.anchors) for x in images),
        "region to ignore": any(len(x.regions) for x in images),
        "box": True,
        "box without foreground anchor": any(not x.has_anchor.all() for x in images),
    }
    return [kind for kind in STYLES if has[kind]]


def _height_by_width(image: SeenImage) -> float:
    height, width = image.picture.shape[:2]
    return height / width


def _draw(axes: Axes, image: SeenImage, names: list[str]) -> None:
    if image.anchors is not None and len(image.anchors):
        anchors = PolyCollection(
            [outline(anchor) for anchor in _drawn_anchors(image)],
            facecolor="none",
            edgecolor=STYLES["foreground anchor"].colour,
            linewidth=STYLES["foreground anchor"].width,
            alpha=0.9,
            zorder=0.95,  # under all boxes
        )
        axes.add_artist(anchors)
    kinds = [
        "box" if has_anchor else "box without foreground anchor" for has_anchor in image.has_anchor
    ]
    draw_boxes(
        axes,
        [*image.boxes, *image.regions],
        kinds + ["region to ignore"] * len(image.regions),
        [names[i] for i in image.classes],
        STYLES,
    )


def _drawn_anchors(image: SeenImage) -> np.ndarray:
    """All foreground anchors or, of many, those with the largest IoUs with each box; (F', 4)."""
    assert image.anchors is not None
    if len(image.anchors) <= MANY_ANCHORS:
        return image.anchors
    anchors, boxes = (Boxes(torch.as_tensor(x)) for x in (image.anchors, image.boxes))
    best = pairwise_iou(boxes, anchors).topk(BEST_ANCHORS, dim=1).indices
    return image.anchors[best.unique().numpy()]


def _write_caption(figure: Figure, image: SeenImage, left: float, top: float) -> None:
    """At a place in inches; the file's name is shortened until it is as narrow as the picture."""
    width, height = figure.get_size_inches()
    options = {"va": "top", **text_options(FONT_SIZE - 1)}
    text = figure.text(left / width, top / height, "", **options)
    for most in range(48, 0, -4):
        text.set_text(_caption(image, most))
        if text.get_window_extent().width <= DPI * WIDTH:
            break


def _caption(image: SeenImage, most: int) -> str:
    """Three lines: the file, in ``most`` characters; size and boxes; anchors."""
    height, width = image.picture.shape[:2]
    parts = [f"{width} x {height} px", counted(len(image.boxes), "box", "boxes")]
    if len(image.regions):
        parts.append(counted(len(image.regions), "region to ignore", "regions to ignore"))
    name = shortened(os.path.basename(image.file_name), most)
    return "\n".join([name, ", ".join(parts), _anchors(image)])


def _anchors(image: SeenImage) -> str:
    if image.anchors is None:
        return "foreground anchors depend on what the model predicts"
    said = counted(len(image.anchors), "foreground anchor", "foreground anchors")
    said += " at first" if image.at_first else ""
    if len(image.anchors) > MANY_ANCHORS:
        said += f" ({BEST_ANCHORS} a box drawn)"
    without = int((~image.has_anchor).sum())
    return said + (f"; {counted(without, 'box has', 'boxes have')} none" if without else "")
