"""The report as files: a page that opens without a network, its figures, and its numbers."""

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...whole_files import write_whole_file
from ..html_pages import template, write_text
from .bootstrap import RESAMPLES
from .boxes import Truth
from .errors import KINDS
from .evaluation import Evaluation, difference, to_json
from .figures import FIGURES, draw_figures
from .shown_images import other_images, show_images, worst_images

MOST_CLASSES = 30  # in sight
MOST_CONFUSIONS = 10  # in words
# All that a report writes.
FILES = (
    "report.html", "report.json",
    *(f"{name}{end}.png" for name in (*FIGURES, "worst_images", "images") for end in ("", "_2")),
)  # fmt: skip


def write_report(
    folder: str, truth: Truth, evaluations: Sequence[Evaluation], truth_name: str
) -> list[str]:
    """Write ``report.html``, ``report.json`` and the figures.

    Args:
        folder: is made if it is not there.
        truth: of the detections.
        evaluations: one or two, of other detectors on the same truth.
        truth_name: what the page calls the truth.

    Returns:
        list[str]: what is to say of pictures that could not be read.

    Raises:
        UserError: the folder cannot be written.
    """
    numbers = [to_json(x, truth) for x in evaluations]
    content: dict[str, Any] = {
        "truth": truth_name,
        "num_images": len(truth.images),
        "num_boxes": int(truth.counts.sum()),
        **numbers[0],
    }
    if len(evaluations) == 2:
        content["compared_with"] = numbers[1]
        content["difference"] = difference(*evaluations)
    shown, problems = [], []
    for number, evaluation in enumerate(evaluations, 1):
        drawn = {name: _png(figure) for name, figure in draw_figures(evaluation, truth).items()}
        worst = worst_images(evaluation, truth)
        chosen = {"worst_images": worst, "images": other_images(truth, worst)}
        of_page: dict[str, Any] = {"figures": dict(drawn), "problem": ""}
        for name, indices in chosen.items():
            of_page[name], sheet, problem = show_images(evaluation, truth, indices)
            of_page["problem"] = of_page["problem"] or problem
            if sheet is not None:
                drawn[name] = _png(sheet)
        shown.append(of_page)
        problems += [of_page["problem"]] if of_page["problem"] else []
        end = "" if number == 1 else f"_{number}"
        for name, png in drawn.items():
            path = os.path.join(folder, f"{name}{end}.png")
            write_whole_file(path, lambda file, png=png: file.write(png))  # type: ignore[misc]
    write_text(os.path.join(folder, "report.json"), json.dumps(content))
    # The page comes last: where it is, all is there.
    write_text(os.path.join(folder, "report.html"), render(truth, numbers, content, shown))
    return problems


def render(
    truth: Truth,
    numbers: Sequence[dict[str, Any]],
    content: dict[str, Any],
    shown: Sequence[dict[str, Any]],
) -> str:
    """The page as text. Names may be any text: the page escapes them.

    Args:
        truth: that ``numbers`` are about.
        numbers: of each detector, of :func:`to_json`.
        content: of ``report.json``.
        shown: of each detector ``worst_images`` and ``images``, what is to say of others as
            ``problem``, and ``figures`` as PNGs by name.
    """
    return template("detection_page.html").render(
        truth=content,
        detectors=numbers,
        shown=shown,
        difference=content.get("difference"),
        kinds=KINDS,
        confusions=[_confusions(x["confusion_matrix"]) for x in numbers],
        order=np.argsort(-truth.counts, kind="stable").tolist(),
        most_classes=MOST_CLASSES,
        counts=_slider(truth, numbers),
        resamples=RESAMPLES,
    )


def _slider(truth: Truth, numbers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the page's script counts with: of each class and detector, above 0, 0.01, ... 1."""
    return {
        "boxes": truth.counts.tolist(),
        "hits": [list(x["curves"]["hits"].values()) for x in numbers],
        "falseAlarms": [list(x["curves"]["false_alarms"].values()) for x in numbers],
    }


def _confusions(confusion: dict[str, Any]) -> list[tuple[str, str, int]]:
    """The most frequent ones: (truth, detected as, count)."""
    matrix, names = np.array(confusion["matrix"]), confusion["classes"]
    wrong = matrix[:-1, :-1] * ~np.eye(len(names), dtype=bool)
    pairs = np.argsort(-wrong.ravel(), kind="stable")[:MOST_CONFUSIONS]
    rows, columns = np.unravel_index(pairs, wrong.shape)
    return [(names[r], names[c], int(wrong[r, c])) for r, c in zip(rows, columns) if wrong[r, c]]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return buffer.getvalue()
