"""Gradients of logits between the pass that computes them with the losses, and backward."""

import torch
from torch import Tensor

from ..subnormal import flush_tiny_
from .chunks import chunks

# Gradients wait for backward in the type of the logits. Background gradients of a well-trained
# model (p^2 and less) would underflow in float16; a power of two keeps them exact. It leaves room
# for slopes up to 60; those of cross entropy and the focal losses stay below 3.
_FLOAT16_SCALE = 2.0**10


def storage_scale(grad: Tensor) -> float:
    """What a gradient is multiplied by while it waits for backward."""
    return _FLOAT16_SCALE if grad.dtype == torch.float16 else 1.0


def multiply_gradients(grads: list[Tensor], grad_loss: Tensor) -> None:
    """Multiply stored gradients, of levels, by ``grad_loss``, a scalar, in place.

    On a CPU, 0 stands for what is near the smallest normal number (2^-126 in float32) or less:
    products with weights, in the convolutions that come next, would be below it, and take many
    times as long.
    """
    for dtype in {grad.dtype for grad in grads}:
        of_dtype = [grad for grad in grads if grad.dtype == dtype]
        factor = grad_loss / storage_scale(of_dtype[0])
        if dtype == factor.dtype and not factor.is_cpu:
            torch._foreach_mul_(of_dtype, factor)  # one kernel
            continue
        for (chunk,) in (chunk for grad in of_dtype for chunk in chunks([grad])):
            # In float32: a loss scale may not fit float16, though its product with the gradient
            # does. A vector of one value, unlike a scalar, takes the product to its type.
            torch.mul(chunk, factor.view(1), out=chunk)
            if chunk.is_cpu and dtype != torch.float16:  # whose smallest numbers all count
                flush_tiny_(chunk)
