"""Boxes with labels on pictures, regions to ignore, legends; figures as files."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

from ..errors import UserError
from ..whole_files import write_whole_file
from .label_places import place_labels
from .names import FONT_SIZE, text_options

DPI = 100
# More boxes than this in a picture have thinner lines, and labels of all take this share of it.
MANY_BOXES = 40
ROOM_FOR_LABELS = 0.25


class Style(NamedTuple):
    """How a kind of box is drawn, most of them over a wider black line.

    Colours are of Okabe and Ito's set for colour-blind people, and grey; each kind in a picture has
    a line of its own as well, over a black one, so that one of both shows on any picture.
    """

    colour: str
    line: Any = "solid"
    width: float = 2
    hatch: str | None = None
    has_shadow: bool = True


WHITE = Style("#FFFFFF")
YELLOW = Style("#F0E442", (0, (1, 1.2)))  # dotted
SKY_BLUE = Style("#56B4E9")
ORANGE = Style("#E69F00", (0, (4, 1.5)))  # dashed
REGION = Style("#BBBBBB", (0, (6, 3)), width=1, hatch="//")
GREY = Style("#BBBBBB", (0, (4, 1.5, 1, 1.5)))  # dashed and dotted


def evenly_spread(num_images: int, number: int) -> list[int]:
    """The indices of ``number`` of ``num_images``, or of all, the first and the last among them."""
    return np.unique(np.linspace(0, num_images - 1, number).astype(int)).tolist()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, in which the size of a text can be had fast."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes for one picture, at a place in inches; the picture is at their top."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, bottom / h, width / w, height / h))
    axes.set_anchor("N")
    axes.set_axis_off()
    return axes


def show_picture(axes: Axes, picture: np.ndarray) -> None:
    """Put a picture into axes, whose unit is its pixels: pixel i reaches from i to i + 1.

    Args:
        picture: (H, W, 3) uint8, RGB. One that is much larger than its axes is made smaller first.
    """
    height, width = picture.shape[:2]
    room = axes.get_window_extent()
    shrink = int(min(width / room.width, height / room.height) / 2)
    if shrink > 1:
        picture = np.asarray(Image.fromarray(picture).reduce(shrink))
    axes.imshow(picture, extent=(0, width, height, 0))


def draw_boxes(
    axes: Axes,
    boxes: Sequence[Sequence[float]],
    kinds: Sequence[str],
    labels: Sequence[str],
    styles: Mapping[str, Style],
) -> int:
    """Draw boxes and the labels that there is room for, the first boxes' before the others'.

    Args:
        axes: of :func:`show_picture`.
        boxes: M of (x1, y1, x2, y2), in pixels of the picture; what leaves it is not drawn.
        kinds: of each box, a key of ``styles``.
        labels: of each box, or of the first ones.
        styles: later ones are drawn over earlier ones.

    Returns:
        int: how many boxes have no label.
    """
    _, width, height, _ = axes.images[0].get_extent()
    corners = np.reshape(np.asarray(boxes, float), (-1, 4)).clip(0, (width, height) * 2)
    thickness = 1 if len(corners) <= MANY_BOXES else 0.5
    for kind, style in styles.items():
        of_kind = [outline(box) for box, kind_of_box in zip(corners, kinds) if kind_of_box == kind]
        for stroke in _strokes(kind, styles, thickness) if of_kind else []:
            stroke["edgecolor"] = stroke.pop("color")
            lines = PolyCollection(
                of_kind, facecolor="none", joinstyle="miter", clip_on=False, **stroke
            )
            axes.add_artist(lines)
        for region in of_kind if style.hatch else []:
            axes.add_artist(Polygon(region, fill=False, **_hatching(style)))
    sizes = {label: _label_size(axes, label) for label in set(labels)}
    places = place_labels(
        corners, [sizes[label] for label in labels], (width, height), ROOM_FOR_LABELS
    )
    for place, kind, label in zip(places, kinds, labels):
        if place is not None:
            _draw_label(axes, place, styles[kind].colour, label)
    return places.count(None)


def outline(box: np.ndarray) -> list[tuple[float, float]]:
    """The four corners of a box (x1, y1, x2, y2), in turn."""
    x1, y1, x2, y2 = box.tolist()
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def draw_legend(
    figure: Figure, kinds: Sequence[str], styles: Mapping[str, Style], rows: int, title: str = ""
) -> None:
    """A legend of some kinds of boxes, at the top of the figure."""
    figure.legend(
        handles=[
            tuple(Line2D([], [], **stroke) for stroke in _strokes(kind, styles)) for kind in kinds
        ],
        labels=kinds,
        handler_map={tuple: HandlerTuple(ndivide=1)},
        loc="upper center",
        ncols=-(-len(kinds) // rows),
        frameon=False,
        fontsize=FONT_SIZE,
        handlelength=4,
        title=title,
    )


def pixels_of(figure: Figure) -> np.ndarray:
    """What a figure of :func:`new_figure` looks like: (H, W, 3) uint8, RGB."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure in the format that the file's name ends in, such as ``.png``.

    Raises:
        UserError: there is no such format, or the file cannot be written.
    """
    file_type = os.path.splitext(path)[1][1:].lower()
    known = figure.canvas.get_supported_filetypes()
    if file_type not in known:
        raise UserError(
            f"--output {path} does not end in a type of picture: name a file such as "
            f"{os.path.splitext(path)[0]}.png"
        )
    write_whole_file(path, lambda file: figure.savefig(file, dpi=DPI, format=file_type))


def _strokes(kind: str, styles: Mapping[str, Style], thickness: float = 1) -> list[dict[str, Any]]:
    """How the line of a box is drawn: black, and its own colour over the black of all boxes.

    Where a hit and a false alarm coincide, the one shows between the dashes of the other.
    """
    style, width = styles[kind], thickness * styles[kind].width
    shadow = {"color": "black", "linestyle": "solid", "linewidth": 2 * width, "zorder": 1}
    line = {
        "color": style.colour,
        "linestyle": style.line,
        "linewidth": width,
        "zorder": 2 + list(styles).index(kind),
    }
    return [shadow, line] if style.has_shadow else [line]


def _hatching(style: Style) -> dict[str, Any]:
    """How a region is filled: under all boxes."""
    return {"hatch": style.hatch, "edgecolor": style.colour, "linewidth": 0, "zorder": 0.9}


def _label_size(axes: Axes, label: str) -> tuple[float, float]:
    """Width and height of a label, its margin included, in pixels of the picture in ``axes``."""
    axes.apply_aspect()  # settles the scale, pixels of the picture for one of the figure
    scale = axes.images[0].get_extent()[1] / axes.get_window_extent().width
    text = axes.text(0, 0, label, **text_options())
    extent = text.get_window_extent()
    text.remove()
    return scale * (extent.width + 6), scale * (extent.height + 4)


def _draw_label(axes: Axes, place: tuple[float, ...], colour: str, label: str) -> None:
    x1, y1, x2, y2 = place
    patch = Rectangle((x1, y1), x2 - x1, y2 - y1, fc=colour, ec="black", zorder=10, clip_on=False)
    axes.add_artist(patch)
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    axes.text(*middle, label, ha="center", va="center", zorder=11, **text_options())
