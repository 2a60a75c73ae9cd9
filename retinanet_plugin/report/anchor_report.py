"""How well anchors reach the boxes of a data set, and what others would change, as text."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..data.anchor_fit import AnchorFit, Anchors
from ..data.findings import counted
from .dataset_report import AREA_BORDERS, AREA_NAMES
from .tables import table

_MOST_CLASSES = 40
_NAME_WIDTH = 20


def describe_anchors(anchors: Anchors) -> str:
    """Their number at a location, sizes and ratios."""
    sizes, ratios = (
        "; ".join(dict.fromkeys(" ".join(f"{x:.4g}" for x in level) for level in levels))
        for levels in (anchors.sizes, anchors.aspect_ratios)
    )
    number = counted(anchors.num_anchors, "anchor", "anchors")
    return f"{number} at a location: SIZES {sizes}, RATIOS {ratios}"


def reach_table(
    fit: AnchorFit, boxes: np.ndarray, classes: np.ndarray, class_names: Sequence[str]
) -> list[str]:
    """Lines of a table: all boxes, those of each size, those of each class.

    Args:
        fit: of the boxes.
        boxes: (M, 4), (x1, y1, x2, y2) in pixels of the resized images.
        classes: (M,), 0 to K - 1.
        class_names: K of them.
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    rows = [("all", np.ones(len(boxes), bool))]
    rows += [(name, np.digitize(areas, AREA_BORDERS) == i) for i, name in enumerate(AREA_NAMES)]
    rows += _octaves(np.sqrt(areas))
    counts = np.bincount(classes, minlength=len(class_names))
    for k in np.argsort(-counts, kind="stable")[:_MOST_CLASSES]:
        rows.append((str(class_names[k])[:_NAME_WIDTH], classes == k))
    rows = [(name, chosen) for name, chosen in rows if chosen.any()]
    names, masks = zip(*rows)

    sets = [fit.before] + [fit.after] * (fit.after is not fit.before)
    titles = ("now", "proposed")
    reached = [[100 * float(x.are_reached[mask].mean()) for mask in masks] for x in sets]
    groups: list[tuple[str, list[tuple[str, ...]]]] = [
        ("", [("boxes", *(f"{mask.sum():,}" for mask in masks))]),
        (
            f"reached, % (IoU>={fit.before.threshold:g})",
            [(title, *(f"{x:.1f}" for x in column)) for title, column in zip(titles, reached)],
        ),
        (
            "mean IoU",
            [
                (title, *(f"{x.ious[mask].mean():.2f}" for mask in masks))
                for title, x in zip(titles, sets)
            ],
        ),
    ]
    if len(sets) > 1:
        gains = [f"{after - before:+.1f}" for before, after in zip(*reached)]
        groups[1][1].append(("gain", *gains))
    return table(["boxes of", *names], groups)


def _octaves(sizes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Boxes of each octave of sizes: square roots of areas, in pixels."""
    octaves = np.floor(np.log2(sizes)).astype(int)
    for octave in range(octaves.min(), octaves.max() + 1):
        yield f"{2.0**octave:g} to {2.0 ** (octave + 1):g} px", octaves == octave


def out_of_reach(fit: AnchorFit, boxes: np.ndarray, stride: float) -> str:
    """A sentence about boxes that no anchor of any shape reaches, or "".

    Args:
        fit, boxes: see :func:`reach_table`.
        stride: of the finest level.
    """
    are_out = fit.ious_at_most < fit.before.threshold
    if not are_out.any():
        return ""
    sides = (boxes[are_out, 2:] - boxes[are_out, :2]).min(axis=1)
    return (
        f"{100 * are_out.mean():.1f}% of the boxes ({are_out.sum():,}) would be reached by no "
        f"anchor of any size and ratio: anchors stand {stride:g} pixels apart, and the shorter "
        f"side of these boxes has {np.median(sides):.0f} pixels (median); train on larger images "
        "(INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN) or on tiles of them"
    )


def describe_measure(matcher: str, threshold: float) -> str:
    """What it means that a box is reached, for a matcher by its name."""
    if matcher == "IoUMatcher":
        return (
            f"a box is reached if an anchor has an IoU of {threshold:g} with it and so is "
            "foreground; of others only the best anchor is (a low-quality match)"
        )
    if matcher == "ATSSMatcher":
        return (
            "ATSSMatcher sets a threshold for each box, by the IoUs of the anchors next to it: the "
            f"IoU of {threshold:g} taken here says how well shapes fit, not what is learned"
        )
    return (
        f"a box is reached if an anchor has an IoU of {threshold:g} with it "
        f"(MODEL.RETINANET.IOU_THRESHOLDS); what {matcher} makes of it is its own"
    )
