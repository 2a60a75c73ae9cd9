"""Figures of a report: precision and recall, F1, calibration, confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..names import shortened, text_options
from .boxes import Truth
from .evaluation import Evaluation
from .scores import GRID, NUM_BINS, f1_scores

FIGURES = ("precision_recall", "f1", "calibration", "confusion_matrix")
DPI = 150
SIZE = (4.8, 4.1)  # inches
_SMALL = 9  # points
# Okabe and Ito's colours, and a line of its own for each.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_MOST_CELLS = 20  # classes, with numbers in the matrix
_MOST_NAMES = 80  # classes, with names beside the matrix


def draw_figures(evaluation: Evaluation, truth: Truth) -> dict[str, Figure]:
    """A detector's :data:`FIGURES`, which a report embeds and writes as files."""
    drawn = (
        draw_precision_recall(evaluation, truth),
        draw_f1(evaluation, truth),
        draw_calibration(evaluation),
        draw_confusion_matrix(evaluation.confusion_matrix, truth.class_names),
    )
    return dict(zip(FIGURES, drawn))


def draw_precision_recall(evaluation: Evaluation, truth: Truth) -> Figure:
    """Precision at each recall, as COCO's evaluation has it, at an IoU of 0.5."""
    precision = evaluation.coco.precision.T
    figure, axes = _axes("recall", "precision at IoU 0.5")
    mean = np.nanmean(precision[truth.counts > 0], axis=0)
    _draw_curves(figure, axes, GRID, precision, mean, truth)
    return figure


def draw_f1(evaluation: Evaluation, truth: Truth) -> Figure:
    """F1 of each class, and of all detections together, above each score."""
    curves = f1_scores(*evaluation.sweep, truth.counts[:, None])
    hits, false_alarms = (x.sum(axis=0) for x in evaluation.sweep)
    together = f1_scores(hits, false_alarms, truth.counts.sum())
    figure, axes = _axes("score threshold", "F1 at IoU 0.5")
    axes.axvline(evaluation.score_thresh, color="#555555", linewidth=0.8)
    _draw_curves(figure, axes, GRID, curves, together, truth)
    return figure


def draw_calibration(evaluation: Evaluation) -> Figure:
    """The reliability diagram: the share of hits in each bin of scores, and how many there are."""
    reliability = evaluation.calibration
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left = np.arange(NUM_BINS) / NUM_BINS
    options = {"width": 1 / NUM_BINS, "align": "edge", "edgecolor": "white"}
    axes.bar(left, np.nan_to_num(reliability.precision), color=_COLOURS[0], **options)
    axes.plot([0, 1], [0, 1], color="#555555", linestyle="--", linewidth=1)
    axes.plot(
        reliability.scores, reliability.precision, "o", color=_COLOURS[1], markersize=4,
        markeredgecolor="white", label="mean score of a bin",
    )  # fmt: skip
    axes.set_ylabel("share of hits", fontsize=_SMALL)
    axes.set_ylim(0, 1)
    axes.set_title(f"expected calibration error {reliability.error:.3f}", fontsize=_SMALL)
    axes.legend(fontsize=_SMALL, frameon=False, loc="upper left")
    below.bar(left, reliability.counts, color=_COLOURS[4], **options)
    below.set_yscale("symlog", linthresh=1)
    below.set_ylim(bottom=0)
    below.set_ylabel("detections", fontsize=_SMALL)
    below.set_xlabel("score", fontsize=_SMALL)
    below.set_xlim(0, 1)
    for each in (axes, below):
        each.tick_params(labelsize=_SMALL)
        each.spines[["top", "right"]].set_visible(False)
    return figure


def draw_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Shares of each row, in which a class of the truth or the background is spread."""
    size = len(matrix)
    has_cells = size <= _MOST_CELLS + 1
    side = 2.2 + (0.45 if has_cells else 0.13) * min(size, _MOST_NAMES + 1)
    figure = Figure(figsize=(side, side), dpi=DPI if has_cells else 100, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    font = _SMALL if has_cells else 6
    if size <= _MOST_NAMES + 1:
        names = [shortened(name, 18) for name in class_names]
        options = text_options(font)
        axes.set_xticks(range(size), [*names, "missed"], rotation=90, **options)
        axes.set_yticks(range(size), [*names, "background"], **options)
    for row, column in np.argwhere(matrix) if has_cells else ():
        colour = "white" if shares[row, column] > 0.55 else "black"
        count = f"{matrix[row, column]:,}"
        small = _SMALL - max(0, len(count) - 3)
        axes.text(column, row, count, ha="center", va="center", fontsize=small, color=colour)
    axes.set_xlabel("detected as", fontsize=_SMALL)
    axes.set_ylabel("truth", fontsize=_SMALL)
    axes.set_title("darker: a larger share of the row", fontsize=_SMALL)
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xlabel(x, fontsize=_SMALL)
    axes.set_ylabel(y, fontsize=_SMALL)
    axes.tick_params(labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_curves(
    figure: Figure, axes: Axes, x: np.ndarray, curves: np.ndarray, whole: np.ndarray, truth: Truth
) -> None:
    """Those of the classes with most boxes in colours, the others grey, the whole thick."""
    by_boxes = [k for k in np.argsort(-truth.counts, kind="stable") if truth.counts[k]]
    for k in by_boxes[len(_COLOURS) :]:
        axes.plot(x, curves[k], color="#BBBBBB", linewidth=0.6)
    for k, colour, line in zip(by_boxes, _COLOURS, _LINES):
        name = shortened(truth.class_names[k], 18)
        axes.plot(x, curves[k], color=colour, linestyle=line, linewidth=1.3, label=name)
    axes.plot(x, whole, color="black", linewidth=2.4, label="all classes")
    # Given with their labels: Matplotlib itself leaves out those that begin with _.
    handles = axes.get_lines()[-min(len(by_boxes), len(_COLOURS)) - 1 :]
    labels = [str(line.get_label()) for line in handles]
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set(**text_options(_SMALL - 1))
