"""Pictures of detections beside ground truth: hits, false alarms, found and missed boxes."""

from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, BoxMode
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ..data.images.read_image import read_image
from .label_places import place_labels
from .matches import in_regions, match_detections


class Style(NamedTuple):
    """How a kind of box is drawn, over a wider black line."""

    colour: str
    line: Any
    width: float = 2
    hatch: str | None = None


# The colours are of Okabe and Ito's set for colour-blind people, and grey; each has a line of its
# own as well, over a black one, so that one of both shows on any picture.
STYLES = {
    "truth, found": Style("#FFFFFF", "solid"),
    "truth, missed": Style("#F0E442", (0, (1, 1.2))),  # yellow, dotted
    "hit": Style("#56B4E9", "solid"),  # sky blue
    "false alarm": Style("#E69F00", (0, (4, 1.5))),  # orange, dashed
    "region to ignore": Style("#BBBBBB", (0, (6, 3)), width=1, hatch="//"),
    "ignored": Style("#BBBBBB", (0, (4, 1.5, 1, 1.5))),  # dashed and dotted
}
# What the legend has only where a picture has a region to ignore.
IGNORED = ("region to ignore", "ignored")
COLUMNS = 2  # most pairs of pictures in a row
PICTURE_WIDTH = 3.3  # inches
FONT_SIZE = 10  # points


def draw_pairs(
    images: list[dict[str, Any]],
    detections: list[list[dict[str, Any]]],
    classes: list[str],
    score_thresh: float,
) -> tuple[Figure, int]:
    """Pairs of pictures, truth and detections, in a grid under a legend.

    Args:
        images: in Detectron2's format of data sets.
        detections: of each image, in COCO's format of results, with contiguous class ids.
        classes: the names of the classes.
        score_thresh: detections of a lower score are left out.

    Returns:
        (Figure, int): the grid, and how many boxes have no label, for lack of room.
    """
    pictures = [read_image(image, "RGB") for image in images]
    has_regions = any(a.get("iscrowd", 0) for image in images for a in image["annotations"])
    kinds = [kind for kind in STYLES if has_regions or kind not in IGNORED]
    legend_rows = 2 if has_regions else 1
    figure, panels = _grid([picture.shape[:2] for picture in pictures], legend_rows)
    figure.legend(
        handles=[tuple(Line2D([], [], **stroke) for stroke in _strokes(kind)) for kind in kinds],
        labels=kinds,
        handler_map={tuple: HandlerTuple(ndivide=1)},
        loc="upper center",
        ncols=len(kinds) // legend_rows,
        frameon=False,
        fontsize=FONT_SIZE,
        handlelength=4,
        title=f"left: truth      right: detections of score {score_thresh} and more",
    )
    unlabelled = 0
    for image, found, picture, (left, right) in zip(images, detections, pictures, panels):
        left.imshow(picture)
        right.imshow(picture)
        truth = [a for a in image["annotations"] if not a.get("iscrowd", 0)]
        regions = [a for a in image["annotations"] if a.get("iscrowd", 0)]
        found = sorted((d for d in found if d["score"] >= score_thresh), key=lambda d: -d["score"])
        truth_boxes, found_boxes = _boxes(truth, "bbox_mode"), _boxes(found)
        region_boxes = _boxes(regions, "bbox_mode")
        matches = match_detections(found, found_boxes, truth, truth_boxes)
        ignored = in_regions(found, found_boxes, regions, region_boxes)
        unlabelled += _draw_boxes(
            left,
            Boxes.cat([truth_boxes, region_boxes]),
            ["truth, found" if i in matches else "truth, missed" for i in range(len(truth))]
            + ["region to ignore"] * len(regions),
            [classes[a["category_id"]] for a in truth + regions],
        )
        unlabelled += _draw_boxes(
            right,
            found_boxes,
            [
                "hit" if match is not None else "ignored" if is_ignored else "false alarm"
                for match, is_ignored in zip(matches, ignored)
            ],
            [f"{classes[d['category_id']]} {d['score']:.2f}" for d in found],
        )
    return figure, unlabelled


def _grid(sizes: list[tuple[int, int]], legend_rows: int) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """A figure, and the left and the right axes for each picture of the sizes (height, width)."""
    columns = min(COLUMNS, len(sizes))
    rows = [sizes[i : i + columns] for i in range(0, len(sizes), columns)]
    heights = [PICTURE_WIDTH * max(h / w for h, w in row) for row in rows]
    gap, legend = 0.06, 0.35 + 0.25 * legend_rows  # inches
    pair = 2 * PICTURE_WIDTH + 4 * gap
    width = columns * pair
    height = sum(heights) + 2 * gap * len(rows) + legend
    figure = Figure(figsize=(width, height))
    panels, bottom = [], height - legend
    for row, row_height in zip(rows, heights):
        bottom -= row_height
        for column in range(len(row)):
            left = column * pair + gap
            right = left + PICTURE_WIDTH + gap
            panels.append(
                (_axes(figure, left, bottom, row_height), _axes(figure, right, bottom, row_height))
            )
        bottom -= 2 * gap
    return figure, panels


def _axes(figure: Figure, left: float, bottom: float, height: float) -> Axes:
    """Axes for one picture, at a place in inches."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, bottom / h, PICTURE_WIDTH / w, height / h))
    axes.set_anchor("N")
    axes.set_axis_off()
    return axes


def _strokes(kind: str) -> list[dict[str, Any]]:
    """How the line of a box is drawn: black, and its own colour over the black of all boxes.

    Where a hit and a false alarm coincide, the one shows between the dashes of the other.
    """
    style = STYLES[kind]
    return [
        {"color": "black", "linestyle": "solid", "linewidth": 2 * style.width, "zorder": 1},
        {
            "color": style.colour,
            "linestyle": style.line,
            "linewidth": style.width,
            "zorder": 2 + list(STYLES).index(kind),
        },
    ]


def _hatching(kind: str) -> dict[str, Any]:
    """How a region is filled: under all boxes."""
    style = STYLES[kind]
    return {"hatch": style.hatch, "edgecolor": style.colour, "linewidth": 0, "zorder": 0.9}


def _draw_boxes(axes: Axes, boxes: Boxes, kinds: list[str], labels: list[str]) -> int:
    """Draw boxes and the labels that there is room for, the first boxes' before the others'.

    Args:
        axes: with a picture in it.
        boxes: (M, 4), in pixels of the picture.
        kinds: of each box, a key of ``STYLES``.
        labels: of each box.

    Returns:
        int: how many boxes have no label.
    """
    height, width = axes.images[0].get_size()
    boxes.clip((height, width))
    corners = boxes.tensor.tolist()
    for (x1, y1, x2, y2), kind in zip(corners, kinds):
        at = (x1, y1), x2 - x1, y2 - y1
        for stroke in _strokes(kind):
            axes.add_patch(Rectangle(*at, fill=False, clip_on=False, **stroke))
        if STYLES[kind].hatch:
            axes.add_patch(Rectangle(*at, fill=False, **_hatching(kind)))
    sizes = [_label_size(axes, label) for label in labels]
    places = place_labels(corners, sizes, (width, height))
    for place, kind, label in zip(places, kinds, labels):
        if place is not None:
            _draw_label(axes, place, STYLES[kind].colour, label)
    return places.count(None)


def _label_size(axes: Axes, label: str) -> tuple[float, float]:
    """Width and height of a label, its margin included, in pixels of the picture in ``axes``."""
    axes.apply_aspect()  # settles the scale, pixels of the picture for one of the figure
    scale = axes.images[0].get_size()[1] / axes.get_window_extent().width
    text = axes.text(0, 0, label, fontsize=FONT_SIZE)
    extent = text.get_window_extent()
    text.remove()
    return scale * (extent.width + 6), scale * (extent.height + 4)


def _draw_label(axes: Axes, place: tuple[float, ...], colour: str, label: str) -> None:
    x1, y1, x2, y2 = place
    patch = Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=colour, edgecolor="black", zorder=10)
    axes.add_patch(patch)
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    axes.text(*middle, label, fontsize=FONT_SIZE, ha="center", va="center", zorder=11)


def _boxes(annotations: list[dict[str, Any]], mode_key: str = "") -> Boxes:
    """Boxes (x1, y1, x2, y2) in absolute pixels of the image file.

    Args:
        annotations: with ``bbox``, and its BoxMode under ``mode_key``; without, as COCO has them.
        mode_key: ``bbox_mode`` for annotations of Detectron2's data sets.
    """
    boxes = [
        BoxMode.convert(a["bbox"], a.get(mode_key, BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for a in annotations
    ]
    return Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
