"""Which boxes anchors reach, by width and height: a heat map."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from ..data.anchor_fit import Anchors
from ..data.anchor_reach import anchor_shapes
from ..data.findings import counted

_CELLS_PER_OCTAVE = 4
_PANEL = 5.0  # inches


def draw_reach(boxes: np.ndarray, sets: Sequence[tuple[str, Anchors]]) -> Figure:
    """A panel for each set of anchors: the share of boxes that are reached, and the anchors.

    Args:
        boxes: (M, 4), (x1, y1, x2, y2) in pixels of the resized images.
        sets: names, and anchors with the IoUs of these boxes.
    """
    figure = Figure(figsize=(_PANEL * len(sets) + 1, _PANEL + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    sides = boxes[:, 2:] - boxes[:, :2]
    for axis, (name, anchors) in zip(axes, sets):
        mesh = _draw_panel(axis, sides, anchors)
        axis.set_title(
            f"{name}: {100 * anchors.coverage:.1f}% reached, "
            f"{counted(anchors.num_anchors, 'anchor', 'anchors')} at a location",
            fontsize=11,
        )
    axes[0].set_ylabel("height in pixels, after resizing")
    axes[0].legend(loc="upper left", framealpha=1)
    figure.colorbar(
        mesh, ax=list(axes), label=f"% of the boxes with an IoU of {anchors.threshold:g} or more"
    )
    return figure


def _draw_panel(axis: Axes, sides: np.ndarray, anchors: Anchors) -> QuadMesh:
    low = np.floor(np.log2(sides.min())) - 0.5
    high = np.ceil(np.log2(sides.max())) + 0.5
    edges = 2.0 ** np.arange(low, high + 0.01, 1 / _CELLS_PER_OCTAVE)
    counts, reached = (
        np.histogram2d(chosen[:, 0], chosen[:, 1], bins=[edges, edges])[0]
        for chosen in (sides, sides[anchors.are_reached])
    )
    with np.errstate(invalid="ignore"):
        shares = np.ma.masked_invalid(100 * reached / counts)  # white: there are no boxes
    mesh = axis.pcolormesh(edges, edges, shares.T, cmap="cividis", vmin=0, vmax=100)
    shapes = np.concatenate(anchor_shapes(anchors.sizes, anchors.aspect_ratios))
    axis.plot(*shapes.T, "o", color="white", markeredgecolor="black", markersize=6, label="anchor")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set(xlim=(edges[0], edges[-1]), ylim=(edges[0], edges[-1]))
    axis.set_xlabel("width in pixels, after resizing")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_formatter("{x:g}")
    axis.grid(color="0.85", linewidth=0.5, zorder=0)
    axis.set_axisbelow(True)
    return mesh
