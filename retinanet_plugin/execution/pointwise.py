"""1x1 convolutions as matrix products, without the reordering of memory around them.

PyTorch's kernels on CPUs have memory layouts of their own. Converting to and from them costs as
much as the convolution itself where a 1x1 kernel has few channels or a stride.
"""
import torch
import torch.nn.functional as F


def suits(x, weight, stride, padding):
    """Whether the functions below compute the convolution of x (N, C, H, W) by ``weight``."""
    return weight.shape[2:] == (1, 1) and padding == (0, 0)


def convolve(x, weight, bias, stride):
    """``conv2d(x, weight, bias, stride)``."""
    if not x.is_contiguous():  # channels last: PyTorch reorders nothing
        return F.conv2d(x, weight, bias, stride)
    x = _strided(x, stride)
    out = x.new_empty(len(x), len(weight), *x.shape[2:])
    for image, product in zip(x.flatten(2), out.flatten(2)):
        torch.mm(weight.flatten(1), image, out=product)
    return out if bias is None else out.add_(bias[:, None, None])


def input_gradient(grad_output, x, weight, stride):
    """The gradient by x of the convolution whose output has the gradient ``grad_output``.

    It is channels last in memory if x is.
    """
    n, channels = x.shape[:2]
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    shape = n, channels, *grad_output.shape[2:]
    grad = torch.empty(shape, dtype=x.dtype, memory_format=layout)
    for image, out in zip(grad_output.flatten(2), grad.view(n, channels, -1)):
        torch.mm(weight.flatten(1).t(), image, out=out)
    if stride == (1, 1):
        return grad
    whole = torch.zeros_like(x, memory_format=layout)
    _strided(whole, stride).copy_(grad)
    return whole


def weight_gradient(grad_output, x, weight, stride):
    """The gradient by the weight (D, C, 1, 1)."""
    grad = torch.zeros_like(weight.flatten(1))
    for image, grad_image in zip(_strided(x, stride).flatten(2), grad_output.flatten(2)):
        grad.addmm_(grad_image, image.t())
    return grad.view_as(weight)


def _strided(x, stride):
    return x[:, :, :: stride[0], :: stride[1]]
