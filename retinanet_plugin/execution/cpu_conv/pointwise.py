"""1x1 convolutions as matrix products, without the reordering of memory around them.

PyTorch's kernels on CPUs have memory layouts of their own. Converting to and from them costs as
much as the convolution itself where a 1x1 kernel has few channels or a stride.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def is_faster(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> bool:
    """Whether the functions below compute the convolution of x (N, C, H, W) by ``weight``."""
    return weight.shape[2:] == (1, 1) and padding == (0, 0)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """``conv2d(x, weight, bias, stride)``."""
    if not x.is_contiguous():  # channels last: PyTorch reorders nothing
        return F.conv2d(x, weight, bias, stride)
    x = _strided(x, stride)
    out = x.new_empty(len(x), len(weight), *x.shape[2:])
    for image, product in zip(x.flatten(2), out.flatten(2)):
        torch.mm(weight.flatten(1), image, out=product)
    return out if bias is None else out.add_(bias[:, None, None])


def gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    needs_input: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by x and by the weight (D, C, 1, 1) of the convolution whose output has the
    gradient ``grad_output``; None for one that is not needed. The first is channels last in memory
    if x is.
    """
    grad_output, weight = grad_output.flatten(2), weight.flatten(1)
    return (
        _input_gradient(grad_output, x, weight, stride) if needs_input else None,
        _weight_gradient(grad_output, x, weight, stride) if needs_weight else None,
    )


def _input_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int]
) -> Tensor:
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    inside = _strided(x, stride)
    grad = torch.empty_like(inside, memory_format=layout)
    for image, out in zip(grad_output, grad.view(*grad.shape[:2], -1)):
        torch.mm(weight.t(), image, out=out)
    if grad.shape == x.shape:
        return grad
    whole = torch.zeros_like(x, memory_format=layout)
    _strided(whole, stride).copy_(grad)
    return whole


def _weight_gradient(
    grad_output: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int]
) -> Tensor:
    grad = torch.zeros_like(weight)
    for image, grad_image in zip(_strided(x, stride).flatten(2), grad_output):
        grad.addmm_(grad_image, image.t())
    return grad[:, :, None, None]


def _strided(x: Tensor, stride: tuple[int, int]) -> Tensor:
    return x[:, :, :: stride[0], :: stride[1]]
