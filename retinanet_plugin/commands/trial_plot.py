"""What trainings of several seeds scored, beside each other: text of a table, and a plot."""

import os
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure


def mean_and_range(values: Sequence[float]) -> str:
    """Such as ``27.2 (26.8 to 27.6)``, or one value as it is."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def plot_scores(panels: dict[str, dict[str, Sequence[float]]], path: str) -> None:
    """A panel for each data set: of each row every seed a dot, the mean a tick.

    Args:
        panels: by title, the scores of its rows by name, the same names in all.
        path: of a picture.
    """
    names = list(next(iter(panels.values())))
    figure = Figure(figsize=(3.2 + 4.2 * len(panels), 0.36 * len(names) + 1.2))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, rows) in zip(axes, panels.items()):
        for y, scores in enumerate(rows.values()):
            if not scores:
                continue
            axis.plot([min(scores), max(scores)], [y, y], color="0.7", linewidth=3, zorder=1)
            axis.scatter(scores, [y] * len(scores), color="tab:blue", zorder=2)
            mean = statistics.mean(scores)
            axis.scatter([mean], [y], color="black", marker="|", s=250, zorder=3)
        first = next(iter(rows.values()))
        if first:
            axis.axvline(statistics.mean(first), color="0.5", linestyle=":", zorder=0)
        axis.set(title=title, xlabel="AP on the val set (dots: seeds, tick: mean)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)  # the first one above
    figure.tight_layout()
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=120)
