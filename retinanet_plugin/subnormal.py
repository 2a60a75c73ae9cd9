"""Gradients near the smallest normal number, with which processors compute many times slower."""

import torch
from torch import Tensor

# How far above the smallest normal number (2^-126 in float32) a gradient has to be, so that its
# products with weights in the rest of the network are normal as well.
_ROOM = 2.0**26


def flush_tiny_(grad: Tensor) -> Tensor:
    """Write 0 in place of what is less than 2^-100 (in float32) in a gradient of any shape."""
    return torch.hardshrink(grad, torch.finfo(grad.dtype).tiny * _ROOM, out=grad)
