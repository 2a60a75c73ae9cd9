"""Pictures of detections beside ground truth: hits, false alarms, found and missed boxes."""

from typing import Any

import torch
from detectron2.structures import Boxes, BoxMode
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data.images.read_image import read_image
from .drawing import (
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
    shortened,
    show_picture,
)
from .matches import in_regions, match_detections

STYLES = {
    "truth, found": WHITE,
    "truth, missed": YELLOW,
    "hit": SKY_BLUE,
    "false alarm": ORANGE,
    "region to ignore": REGION,
    "ignored": GREY,
}
# What the legend has only where a picture has a region to ignore.
IGNORED = ("region to ignore", "ignored")
SCORE_THRESH = 0.5  # lowest score that is drawn, usually
COLUMNS = 2  # most pairs of pictures in a row
PICTURE_WIDTH = 3.3  # inches
MOST_HEIGHT = 1.6 * PICTURE_WIDTH  # of a row: taller pictures become narrower


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
    names = [shortened(name) for name in classes]
    pictures = [read_image(image, "RGB") for image in images]
    annotations = [image.get("annotations", []) for image in images]
    has_regions = any(a.get("iscrowd", 0) for of_image in annotations for a in of_image)
    kinds = [kind for kind in STYLES if has_regions or kind not in IGNORED]
    legend_rows = 2 if has_regions else 1
    figure, panels = _grid([picture.shape[:2] for picture in pictures], legend_rows)
    title = f"left: truth      right: detections of score {score_thresh} and more"
    draw_legend(figure, kinds, STYLES, legend_rows, title)
    unlabelled = 0
    for truth, found, picture, (left, right) in zip(annotations, detections, pictures, panels):
        show_picture(left, picture)
        show_picture(right, picture)
        found = sorted((d for d in found if d["score"] >= score_thresh), key=lambda d: -d["score"])
        unlabelled += _draw_pair(left, right, truth, found, names)
    return figure, unlabelled


def _draw_pair(
    left: Axes,
    right: Axes,
    annotations: list[dict[str, Any]],
    found: list[dict[str, Any]],
    names: list[str],
) -> int:
    """Draw the boxes of an image, and its detections, best first; see :func:`draw_pairs`."""
    truth = [a for a in annotations if not a.get("iscrowd", 0)]
    regions = [a for a in annotations if a.get("iscrowd", 0)]
    truth_boxes, found_boxes = _boxes(truth, "bbox_mode"), _boxes(found)
    region_boxes = _boxes(regions, "bbox_mode")
    matches = match_detections(found, found_boxes, truth, truth_boxes)
    ignored = in_regions(found, found_boxes, regions, region_boxes)
    unlabelled = draw_boxes(
        left,
        Boxes.cat([truth_boxes, region_boxes]).tensor.tolist(),
        ["truth, found" if i in matches else "truth, missed" for i in range(len(truth))]
        + ["region to ignore"] * len(regions),
        [names[a["category_id"]] for a in truth + regions],
        STYLES,
    )
    return unlabelled + draw_boxes(
        right,
        found_boxes.tensor.tolist(),
        [
            "hit" if match is not None else "ignored" if is_ignored else "false alarm"
            for match, is_ignored in zip(matches, ignored)
        ],
        [f"{names[d['category_id']]} {d['score']:.2f}" for d in found],
        STYLES,
    )


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
