"""Which algorithm a convolution takes on a CPU, in training and inference."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from . import pointwise, winograd


class FastConvolutions(TorchFunctionMode):
    """Within this context, ``conv2d`` takes the algorithm that is fastest for its shape.

    That is Winograd's (:mod:`retinanet_plugin.execution.winograd`) for large 3x3 convolutions and
    a matrix product (:mod:`retinanet_plugin.execution.pointwise`) for 1x1 convolutions, in float32
    on a CPU, not under autocast and not while a model is traced. All others are PyTorch's. Modules
    and their parameters stay what they are.

    Where gradients are recorded, only they take the algorithm, also after the context was left;
    outputs stay PyTorch's to the last bit. Rounding in them could turn a ReLU on or off that is
    nearly at 0, which changes gradients far more than the rounding of gradients does.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.conv2d:
            return _conv2d(*args, **kwargs)
        return function(*args, **kwargs)


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    stride, padding = _pair(stride), _pair(padding)
    algorithm = algorithm_for(input, weight, stride, padding, _pair(dilation), groups)
    if algorithm is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return conv2d(input, weight, bias, stride, padding, algorithm)


def _pair(value):
    return (value, value) if isinstance(value, int) else value


def algorithm_for(input, weight, stride, padding, dilation, groups):
    """The module that computes a convolution faster than PyTorch does, or None."""
    if input.dtype != torch.float32 or input.device.type != "cpu" or input.dim() != 4:
        return None
    if dilation != (1, 1) or groups != 1:
        return None
    if _is_autocast() or torch.jit.is_tracing():  # an exported model has plain convolutions
        return None
    for algorithm in (pointwise, winograd):
        if algorithm.suits(input, weight, stride, padding):
            return algorithm
    return None


def _is_autocast():
    if hasattr(torch, "get_autocast_dtype"):  # since 2.4
        return torch.is_autocast_enabled("cpu")
    return torch.is_autocast_cpu_enabled()


def conv2d(input, weight, bias, stride, padding, algorithm, scale=None, shift=None):
    """``torch.nn.functional.conv2d`` by ``algorithm``, differentiable once.

    Where gradients are recorded, the output is PyTorch's and the gradients are the algorithm's.

    Args:
        input (Tensor): (N, C, H, W), any memory layout.
        weight (Tensor): (D, C, kernel height, kernel width).
        bias (Tensor or None): (D,).
        stride, padding (tuple[int, int]): of height and width.
        algorithm (module): has ``convolve`` and ``gradients``.
        scale, shift (Tensor or None): (D,), what the output is multiplied by and what is added
            then, as constants.

    Returns:
        Tensor: (N, D, output height, output width).
    """
    if torch.is_grad_enabled():
        return _Convolution.apply(input, weight, bias, scale, shift, stride, padding, algorithm)
    out = algorithm.convolve(input, weight, bias, stride)
    return out if scale is None else normalise(out, scale, shift)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, scale, shift, stride, padding, algorithm):
        ctx.save_for_backward(input, weight, scale)
        ctx.stride, ctx.algorithm = stride, algorithm
        # What conv2d calls; conv2d itself would come back to FastConvolutions.
        out = torch.convolution(input, weight, bias, stride, padding, (1, 1), False, (0, 0), 1)
        return out if scale is None else normalise(out, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        input, weight, scale = ctx.saved_tensors
        if scale is not None:  # of the small weight, and not of the large grad_output
            weight = weight * scale[:, None, None, None]
        grad_input, grad_weight = ctx.algorithm.gradients(
            grad_output, input, weight, ctx.stride, needs_input, needs_weight
        )
        grad_bias = grad_output.sum((0, 2, 3)) if needs_bias else None
        if scale is not None:
            grad_weight = grad_weight * scale[:, None, None, None] if needs_weight else None
            grad_bias = grad_bias * scale if needs_bias else None
        return grad_input, grad_weight, grad_bias, None, None, None, None, None


def normalise(x, scale, shift):
    """Multiply x (N, D, H, W) by ``scale`` and add ``shift``, (D,) each, in place."""
    return x.mul_(scale.to(x.dtype)[:, None, None]).add_(shift.to(x.dtype)[:, None, None])
