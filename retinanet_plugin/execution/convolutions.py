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
    if _is_plain_float32(input, dilation, groups):
        for algorithm in (pointwise, winograd):
            if algorithm.suits(input, weight, _pair(stride), _pair(padding)):
                return conv2d(input, weight, bias, _pair(stride), _pair(padding), algorithm)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _is_plain_float32(input, dilation, groups):
    return (
        input.dtype == torch.float32
        and input.device.type == "cpu"
        and input.dim() == 4
        and _pair(dilation) == (1, 1)
        and groups == 1
        and not _is_autocast()
        and not torch.jit.is_tracing()  # an exported model has plain convolutions
    )


def _is_autocast():
    if hasattr(torch, "get_autocast_dtype"):  # since 2.4
        return torch.is_autocast_enabled("cpu")
    return torch.is_autocast_cpu_enabled()


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def conv2d(input, weight, bias, stride, padding, algorithm):
    """``torch.nn.functional.conv2d`` by ``algorithm``, differentiable once.

    Where gradients are recorded, the output is PyTorch's and the gradients are the algorithm's.

    Args:
        input (Tensor): (N, C, H, W), any memory layout.
        weight (Tensor): (D, C, kernel height, kernel width).
        bias (Tensor or None): (D,).
        stride, padding (tuple[int, int]): of height and width.
        algorithm (module): has ``convolve`` and ``gradients``.

    Returns:
        Tensor: (N, D, output height, output width).
    """
    if not torch.is_grad_enabled():
        return algorithm.convolve(input, weight, bias, stride)
    return _Convolution.apply(input, weight, bias, stride, padding, algorithm)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, stride, padding, algorithm):
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.algorithm = stride, algorithm
        return F.conv2d(input, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_input, grad_weight = ctx.algorithm.gradients(
            grad_output, *ctx.saved_tensors, ctx.stride, needs_input, needs_weight
        )
        grad_bias = grad_output.sum((0, 2, 3)) if needs_bias else None
        return grad_input, grad_weight, grad_bias, None, None, None
