"""Pairs of ground-truth boxes and anchors, in any number, that belong to each other."""

from collections.abc import Iterator

import torch
from detectron2.structures import Boxes
from torch import Tensor

# How far inside of its box a foreground anchor's centre is, in pixels, as in the code of ATSS.
MIN_INSIDE = 0.01
# Centres closer than this, in pixels, are one location: anchors of a cell differ by rounding.
SAME_CENTER = 0.01
# Bytes that a pair of a box and a location, and of a box and an anchor, take while in work.
_LOCATION_BYTES, _PAIR_BYTES = 24, 200


def locations_of(anchors: Boxes) -> tuple[Tensor, int]:
    """Centres (Hi * Wi, 2) of a level's locations, from those of its anchors, and A.

    Anchors of a location follow each other. Those that do not share a centre regularly are a
    location each.
    """
    centers = anchors.get_centers()
    at_first = ((centers - centers[:1]).abs() < SAME_CENTER).all(1)
    num_anchors = int(at_first.cumprod(0).sum())
    if num_anchors > 1 and len(centers) % num_anchors == 0:
        grouped = centers.view(-1, num_anchors, 2)
        if bool(((grouped - grouped[:, :1]).abs() < SAME_CENTER).all()):
            return grouped[:, 0], num_anchors
    return centers, 1


def is_inside(centers: Tensor, boxes: Tensor) -> Tensor:
    """Whether centres (..., 2) are inside boxes (..., 4), by at least 0.01 px on every side."""
    distances = torch.cat([centers - boxes[..., :2], boxes[..., 2:] - centers], dim=-1)
    return distances.amin(-1) > MIN_INSIDE


def pairs_inside(
    anchors: list[Boxes], boxes: Tensor, memory_mb: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Boxes and the anchors whose centres are inside of them.

    Args:
        anchors: of each level, Hi*Wi*A boxes, absolute pixels.
        boxes: (M, 4), absolute pixels.
        memory_mb: about the MiB to work in; a box of very many anchors may take more.

    Yields:
        indices (P,) of boxes and (P,) of anchors among all R, in the order of both; all pairs of a
        box come together.
    """
    levels = [locations_of(level) for level in anchors]
    centers = torch.cat([centers for centers, _ in levels])
    repeats = torch.cat([centers.new_full((len(centers),), num).long() for centers, num in levels])
    first_anchor = repeats.cumsum(0) - repeats
    budget = int(memory_mb * 2**20)
    rows = torch.arange(len(boxes), device=boxes.device)
    for box in rows.split(max(1, budget // (_LOCATION_BYTES * len(centers)))):
        inside = is_inside(centers, boxes[box][:, None])
        counts = (inside * repeats).sum(1).cumsum(0).tolist()
        for start, stop in _groups(counts, max(1, budget // _PAIR_BYTES)):
            row, location = inside[start:stop].nonzero(as_tuple=True)
            number = repeats[location]
            pair = torch.arange(int(number.sum()), device=boxes.device)
            offset = pair - (number.cumsum(0) - number).repeat_interleave(number)
            yield (
                box[start + row].repeat_interleave(number),
                first_anchor[location].repeat_interleave(number) + offset,
            )


def _groups(totals: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Split rows into runs [start, stop) of at most ``most`` in all, or of one row; ``totals`` are
    those of the rows so far."""
    start = before = 0
    for stop, total in enumerate(totals):
        if total - before > most and stop > start:
            yield start, stop
            start, before = stop, totals[stop - 1]
    yield start, len(totals)


def highest_of_each(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` highest values above 0 of each group; the first of equal ones.

    Args:
        values: (P,).
        group: (P,), integers.
    """
    above = (values > 0).nonzero().squeeze(1)
    order = above[values[above].argsort(descending=True, stable=True)]
    order = order[group[order].argsort(stable=True)]
    groups = group[order]
    place = torch.arange(len(order), device=order.device)
    first = torch.searchsorted(groups, groups)
    return order[place - first < count]
