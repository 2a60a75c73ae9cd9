"""What is wrong, or probably not meant, in the boxes of one data set."""

import numpy as np
from detectron2.structures import BoxMode

from .annotations.coco_entries import is_area_of
from .dataset_facts import DatasetFacts
from .findings import Findings

# Boxes may leave their image by as much: from rounding, or numbers of pixels counted from 1.
_TOLERANCE = 0.5
_MANY_CROWDS = 0.1  # a share that is rarely meant; of COCO's objects, 1 % are crowds
_MOST = 0.5  # a share of boxes, beyond which a mistake is certain


def check_boxes(facts: DatasetFacts, findings: Findings) -> None:
    """Find boxes that Detectron2 would drop or clip, or that are in another form than meant.

    Args:
        facts: of a data set.
        findings: is added to.
    """
    if not len(facts.annotations):
        return
    if _are_fractions(facts):
        findings.error(
            "fractions",
            facts.source,
            f"no number of any box is larger than 1, such as {facts.describe(0)}",
            "the boxes seem to be fractions of the image: write them in pixels",
            len(facts.annotations),
        )
        return
    _check_sizes(facts, findings)
    _check_areas(facts, findings)
    _check_places(facts, findings)
    _check_repetitions(facts, findings)
    _check_crowds(facts, findings)


def _check_sizes(facts: DatasetFacts, findings: Findings) -> None:
    _warn(
        facts,
        findings,
        ~facts.has_area,
        "zero area",
        ", which has no area",
        "training drops it, and evaluation counts it as missed: remove it or draw it again",
    )
    _warn(
        facts,
        findings,
        facts.has_area & (facts.box_sizes < 1).any(axis=1),
        "tiny",
        ", which is less than a pixel wide or high",
        "write it in pixels if it is a fraction of the image, or remove it",
    )


def _check_areas(facts: DatasetFacts, findings: Findings) -> None:
    """Areas that the data give, by which evaluation sorts objects into small to large."""
    too_large = [
        not is_area_of(annotation.get("area") or 0, *size)
        for annotation, size in zip(facts.annotations, facts.box_sizes)
    ]
    if any(too_large):
        first = too_large.index(True)
        findings.warn(
            "area",
            facts.source,
            f"{facts.describe(first)} but area {facts.annotations[first]['area']:g}, more than it "
            "can hold",
            "evaluation takes the area of the box: correct area or leave it out",
            sum(too_large),
        )


def _check_places(facts: DatasetFacts, findings: Findings) -> None:
    """Boxes against the sizes of their images, where the data say these."""
    size = facts.sizes[facts.image_of]
    low, high = facts.boxes[:, :2], facts.boxes[:, 2:]
    # Comparisons with NaN are false. A box without area may lie on the border.
    is_outside = ((low >= size) & (high > size) | (high <= 0) & (low < 0)).any(axis=1)
    leaves = ((low < -_TOLERANCE) | (high > size + _TOLERANCE)).any(axis=1) & ~is_outside
    corners = is_outside | leaves
    if corners.any() and _are_corners(facts):
        first = int(corners.argmax())
        tell = findings.error if corners.mean() > _MOST else findings.warn
        tell(
            "corners",
            facts.source,
            f"{corners.sum():,} of {len(corners):,} boxes leave their image as [x, y, width, "
            f"height], such as {facts.describe(first)}{_in_image(facts, first)}, but none as "
            "corners [x1, y1, x2, y2]",
            "the boxes seem to be corners: write width and height instead of x2 and y2",
        )
    if is_outside.any():
        first = int(is_outside.argmax())
        findings.error(
            "outside",
            facts.source,
            f"{facts.describe(first)}, which lies outside its image{_in_image(facts, first)}",
            "correct the box or the image's size, or remove it",
            int(is_outside.sum()),
        )
    if leaves.any():
        first = int(leaves.argmax())
        findings.warn(
            "leaves",
            facts.source,
            f"{facts.describe(first)}, a box that leaves its image{_in_image(facts, first)}",
            "training clips it to the image: correct the box or the image's size",
            int(leaves.sum()),
        )


def _in_image(facts: DatasetFacts, index: int) -> str:
    """The image's size."""
    width, height = facts.sizes[facts.image_of[index]]
    return f" of {width:g} x {height:g} pixels"


def _are_fractions(facts: DatasetFacts) -> bool:
    return bool((np.abs(facts.boxes[:, :2]) <= 1).all() and (_given(facts) <= 1).all())


def _are_corners(facts: DatasetFacts) -> bool:
    """Whether all that was given as (x, y, width, height) could be (x1, y1, x2, y2)."""
    given = _given(facts)
    if not all(a["bbox_mode"] == BoxMode.XYWH_ABS for a in facts.annotations):
        return False
    size = facts.sizes[facts.image_of]
    fits = (given[:, 2:] <= size + 1).all(axis=1)
    return bool(fits.all() and (given[:, 2:] > given[:, :2]).all())


def _given(facts: DatasetFacts) -> np.ndarray:
    return np.array([a["bbox"] for a in facts.annotations], np.float64)


def _check_repetitions(facts: DatasetFacts, findings: Findings) -> None:
    """Boxes that are there twice, with the same class in the same image."""
    rows = np.column_stack([facts.image_of, facts.classes, facts.boxes])
    order = np.lexsort(rows.T[::-1])  # stable, so that the first of equal ones stays first
    is_same = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
    repeated = np.zeros(len(rows), bool)
    repeated[order[1:][is_same]] = True
    _warn(
        facts,
        findings,
        repeated,
        "same box",
        ", as another annotation of the same class and image has",
        "it counts as an object of its own: remove one of them",
    )


def _check_crowds(facts: DatasetFacts, findings: Findings) -> None:
    if facts.num_crowds < max(1, _MANY_CROWDS * len(facts.annotations)):
        return
    findings.warn(
        "crowds",
        facts.source,
        f"{facts.num_crowds:,} of {len(facts.annotations):,} boxes have iscrowd (or ignore) 1, the "
        f"first is {facts.describe(int(facts.is_crowd.argmax()))}",
        "crowds are ignored in training and evaluation: set iscrowd 0 for single objects",
    )


def _warn(
    facts: DatasetFacts,
    findings: Findings,
    which: np.ndarray,
    kind: str,
    what: str,
    remedy: str,
) -> None:
    if which.any():
        example = facts.describe(int(which.argmax())) + what
        findings.warn(kind, facts.source, example, remedy, int(which.sum()))
