"""Whether the numbers of a checkpoint are finite: a training cannot go on from others."""

from collections.abc import Iterator
from typing import Any

import torch


def not_finite(checkpoint: dict[str, Any]) -> str:
    """The first tensor of a checkpoint that holds a NaN or an infinite number, or "".

    Of the state of an optimizer, ``momentum_buffer of head.cls_score.weight``.
    """
    for place in _places(checkpoint):
        if place[0] == "model":
            return ".".join(place[1:])
        if "state" in place[:-2]:
            index, kind = place[-2:]
            return f"{kind} of {_parameter(checkpoint, index)}"
        return ".".join(place)
    return ""


def _places(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            yield place
    elif isinstance(value, dict):
        for key, x in value.items():
            yield from _places(x, (*place, str(key)))


def _parameter(checkpoint: dict[str, Any], index: str) -> str:
    """The name of a parameter by its number in the optimizer, if the checkpoint says it."""
    try:
        return str(checkpoint["trainer"]["run"]["parameters"][int(index)])
    except (LookupError, TypeError, ValueError):
        return f"parameter {index}"
