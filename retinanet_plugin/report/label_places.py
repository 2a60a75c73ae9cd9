"""Where the labels of boxes go: inside the picture, none over another."""

from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]


def place_labels(
    boxes: np.ndarray | Sequence[Box],
    sizes: Sequence[tuple[float, float]],
    frame: tuple[float, float],
    room: float = 1.0,
) -> list[Box | None]:
    """Places for labels at their boxes, inside the frame, that do not overlap each other.

    Labels are placed in order, so the first have the choice. Of the free places at its box, outside
    or inside, a label takes the one that hides least of all boxes.

    Args:
        boxes: (M, 4), (x1, y1, x2, y2) of each, in any unit.
        sizes: (width, height) of each box's label, in the same unit.
        frame: (width, height) of the picture, in the same unit.
        room: the share of the frame that the labels may take together; one label may take more.

    Returns:
        list: (x1, y1, x2, y2) of each label; None where no place at the box is free, and after the
        labels have taken their room.
    """
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    places: list[Box | None] = []
    taken = np.empty((0, 4))
    area, most = 0.0, room * frame[0] * frame[1]
    for box, size in zip(boxes, sizes):
        if len(taken) and area + size[0] * size[1] > most:
            places.append(None)
            continue
        candidates = _candidates(box, size, frame)
        candidates = candidates[_overlap(candidates, taken).max(axis=1, initial=0) <= 0]
        if not len(candidates):
            places.append(None)
            continue
        best = candidates[_overlap(candidates, boxes).sum(axis=1).argmin()]
        taken = np.vstack([taken, best])
        area += size[0] * size[1]
        places.append(tuple(best.tolist()))
    return places


def _candidates(
    box: np.ndarray, size: tuple[float, float], frame: tuple[float, float]
) -> np.ndarray:
    """Places (C, 4) around a box and along its edges inside, the usual first, all in the frame."""
    (x1, y1, x2, y2), (w, h) = box, size
    if w > frame[0] or h > frame[1]:
        return np.empty((0, 4))
    columns = (x1, x2 - w, (x1 + x2 - w) / 2)
    rows = (y1, y2 - h, (y1 + y2 - h) / 2)
    corners = [(x, y) for y in (y1 - h, y2) for x in columns]  # above, below
    corners += [(x, y) for x in (x2, x1 - w) for y in rows]  # right, left
    corners += [(x, y) for y in rows for x in columns]  # inside
    inside = np.array(corners).clip(0, np.subtract(frame, size))
    return np.hstack([inside, inside + size])


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The areas (A, B) that boxes (A, 4) and (B, 4) share."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)
