"""The page of a plan: one HTML file that opens without a network."""

import io
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .html_pages import data_uri, template, write_text
from .plan import AnchorChoice, Plan

MOST_CLASSES = 30  # in sight
BINS_PER_OCTAVE = 4
BLUE, GREEN, GREY = "#0072B2", "#009E73", "#555555"


class ClassRow(NamedTuple):
    """A class in the table; shares are 0 to 1, NaN where it has no box."""

    name: str
    num_boxes: int
    share: float  # of the boxes of the largest class
    before: float  # share of its boxes that anchors reach
    after: float


def write_plan_page(path: str, plan: Plan) -> None:
    """Write the page; see :class:`retinanet_plugin.report.plan.Plan`.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, plan_page(plan))


def plan_page(plan: Plan) -> str:
    """The page as text: the same for the same plan."""
    rows = class_rows(plan)
    return template("plan_page.html").render(
        plan=plan,
        histogram=_svg(draw_box_sizes(plan)),
        sizes=list(_sizes(plan.anchors_before, plan.anchors_after)),
        levels=list(_levels(plan.anchors_before, plan.anchors_after)),
        ratios=[_numbers(x.aspect_ratios) for x in (plan.anchors_before, plan.anchors_after)],
        classes=rows[:MOST_CLASSES],
        others=rows[MOST_CLASSES:],
        sheet=None if plan.sheet is None else _jpeg(plan.sheet),
    )


def class_rows(plan: Plan) -> list[ClassRow]:
    """The classes with most boxes first."""
    most = max(plan.class_counts.values(), default=0) or 1
    return [
        ClassRow(
            name,
            count,
            count / most,
            plan.anchors_before.reached_by_class.get(name, math.nan),
            plan.anchors_after.reached_by_class.get(name, math.nan),
        )
        for name, count in sorted(plan.class_counts.items(), key=lambda item: -item[1])
    ]


def draw_box_sizes(plan: Plan) -> Figure:
    """How many boxes there are of each size, in the files and as the model sees them.

    The size of a box is the side of a square of its area; the anchors' sizes are marked by level.
    """
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.subplots()
    resized, in_files = (_sides(x.values()) for x in (plan.resized_box_sizes, plan.box_sizes))
    levels = plan.anchors_after.sizes
    values = np.concatenate([resized, in_files, *levels.values(), [16, 64]])
    low, high = math.floor(math.log2(values.min())), math.ceil(math.log2(values.max() + 1e-9))
    bins = (2.0 ** np.linspace(low, high, (high - low) * BINS_PER_OCTAVE + 1)).tolist()
    axes.hist(resized, bins, color=BLUE, label="as the model sees them")
    axes.hist(in_files, bins, histtype="step", color=GREY, linewidth=1.3, label="in the files")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("size of the box: square root of its area, pixels", fontsize=9)
    axes.set_ylabel("boxes", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.22)
    for i, (name, sizes) in enumerate(levels.items()):
        axes.axvspan(
            min(sizes) / 2**0.1, max(sizes) * 2**0.1, color=GREEN, alpha=0.18, zorder=0, lw=0
        )
        middle = math.sqrt(min(sizes) * max(sizes))
        axes.text(
            middle, 0.98 - 0.075 * (i % 2), name, transform=axes.get_xaxis_transform(),
            ha="center", va="top", fontsize=9, parse_math=False,
        )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", fontsize=9, frameon=False, ncols=2)
    return figure


def _sides(sizes: Iterable[np.ndarray]) -> np.ndarray:
    """Square roots of the areas of all boxes that have one."""
    areas = np.concatenate([[0.0], *(np.reshape(x, (-1, 2)).prod(axis=1) for x in sizes)])
    return np.sqrt(areas[np.isfinite(areas) & (areas > 0)])


def _sizes(before: AnchorChoice, after: AnchorChoice) -> Iterable[tuple[str, float, float]]:
    for name in {**before.reached_by_size, **after.reached_by_size}:
        shares = [x.reached_by_size.get(name, math.nan) for x in (before, after)]
        if not all(map(math.isnan, shares)):  # there are boxes of this size
            yield name, shares[0], shares[1]
    yield "all boxes", before.reached, after.reached


def _levels(before: AnchorChoice, after: AnchorChoice) -> Iterable[tuple[str, str, str]]:
    for level in {**before.sizes, **after.sizes}:
        yield level, _numbers(before.sizes.get(level, [])), _numbers(after.sizes.get(level, []))


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values) or "-"


def _svg(figure: Figure) -> str:
    # Without a date and random ids, so that a plan has one page.
    with mpl.rc_context({"svg.hashsalt": "plan"}):
        return data_uri(_file(figure, "svg", metadata={"Date": None}), "svg+xml")


def _jpeg(figure: Figure) -> str:
    options = {"quality": 88, "subsampling": 0}
    return data_uri(_file(figure, "jpeg", pil_kwargs=options), "jpeg")


def _file(figure: Figure, file_type: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_type, **options)
    return buffer.getvalue()
