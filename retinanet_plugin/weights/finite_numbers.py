"""Whether numbers of weights and checkpoints are finite: a training cannot go on from others."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


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


def is_finite(x: torch.Tensor) -> bool:
    """Whether a tensor holds neither a NaN nor an infinite number."""
    return not x.is_floating_point() or bool(x.isfinite().all())


def parameters_not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters that :func:`is_finite` is not true of."""
    return [name for name, x in model.named_parameters() if not is_finite(x)]


def _places(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, torch.Tensor):
        if not is_finite(value):
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
