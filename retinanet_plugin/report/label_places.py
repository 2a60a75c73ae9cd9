"""Where the labels of boxes go: inside the picture, none over another."""

Box = tuple[float, float, float, float]


def place_labels(
    boxes: list[Box], sizes: list[tuple[float, float]], frame: tuple[float, float]
) -> list[Box | None]:
    """Places for labels at their boxes, inside the frame, that do not overlap each other.

    Labels are placed in order, so the first have the choice. Of the free places at its box, outside
    or inside, a label takes the one that hides least of all boxes.

    Args:
        boxes: (x1, y1, x2, y2) of each, in any unit.
        sizes: (width, height) of each box's label, in the same unit.
        frame: (width, height) of the picture, in the same unit.

    Returns:
        list: (x1, y1, x2, y2) of each label; None where no place at the box is free.
    """
    places: list[Box | None] = []
    for box, size in zip(boxes, sizes):
        taken = [place for place in places if place is not None]
        free = [
            place
            for place in _candidates(box, size, frame)
            if not any(_overlap(place, other) for other in taken)
        ]
        places.append(
            min(free, key=lambda place: sum(_overlap(place, b) for b in boxes), default=None)
        )
    return places


def _candidates(box: Box, size: tuple[float, float], frame: tuple[float, float]) -> list[Box]:
    """Places around a box and along its edges inside, the usual first, pushed into the frame."""
    (x1, y1, x2, y2), (w, h) = box, size
    if w > frame[0] or h > frame[1]:
        return []
    columns = (x1, x2 - w, (x1 + x2 - w) / 2)
    rows = (y1, y2 - h, (y1 + y2 - h) / 2)
    corners = [(x, y) for y in (y1 - h, y2) for x in columns]  # above, below
    corners += [(x, y) for x in (x2, x1 - w) for y in rows]  # right, left
    corners += [(x, y) for y in rows for x in columns]  # inside
    inside = [(min(max(x, 0), frame[0] - w), min(max(y, 0), frame[1] - h)) for x, y in corners]
    return [(x, y, x + w, y + h) for x, y in inside]


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)
