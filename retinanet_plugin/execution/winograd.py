"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3) on a CPU.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4: a
tile of 4x4 outputs comes from a patch of 6x6 inputs by 36 products instead of 144, between linear
transforms of input, weight and output. On GPUs cuDNN chooses such algorithms by itself; what
PyTorch uses on CPUs does not.
"""
import math
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from .tiles import PATCH, TILE, Chunks

# Where the algorithm evaluates its polynomials, beside infinity. These keep rounding within about
# twice that of PyTorch's convolution; the paper's 0, 1, -1, 2, -2 make it three times (for the
# choice of points: Barabasz et al., arXiv 1803.10986).
POINTS = [Fraction(point) for point in ("0", "1", "-1", "2", "-1/2")]
# Of the 36 products, that at the point (1, 1): every output of the tile takes it with weight 1.
ONES = POINTS.index(1) * PATCH + POINTS.index(1)
# With fewer channels or tiles than these, the transforms cost more than the products save.
MIN_CHANNELS, MIN_TILES = 96, 100


class WinogradConvolutions(TorchFunctionMode):
    """Within this context, ``conv2d`` takes Winograd's algorithm where that is faster.

    That is for 3x3 kernels with stride, dilation and groups of 1 and a padding of 1, in float32 on
    a CPU, not under autocast and not while a model is traced. Modules and their parameters stay
    what they are.

    Where gradients are recorded, only they take the algorithm, also after the context was left;
    outputs stay PyTorch's to the last bit. Rounding in them could turn a ReLU on or off that is
    nearly at 0, which changes gradients far more than the rounding of gradients does.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.conv2d and _is_faster(*args, **kwargs):
            if torch.is_grad_enabled():
                return conv2d_with_winograd_gradients(*_operands(*args, **kwargs))
            return winograd_conv2d(*_operands(*args, **kwargs))
        return function(*args, **kwargs)


def _operands(input, weight, bias=None, *_, **__):
    return input, weight, bias


def _is_faster(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    geometry = [_pair(stride), _pair(padding), _pair(dilation), groups, tuple(weight.shape[2:])]
    if geometry != [(1, 1), (1, 1), (1, 1), 1, (3, 3)]:
        return False
    if input.dtype != torch.float32 or input.device.type != "cpu" or input.dim() != 4:
        return False
    n, _, height, width = input.shape
    tiles = n * -(-height // TILE) * -(-width // TILE)
    return (
        min(weight.shape[:2]) >= MIN_CHANNELS
        and tiles >= MIN_TILES
        and not _is_autocast()
        and not torch.jit.is_tracing()  # an exported model has plain convolutions
    )


def _is_autocast():
    if hasattr(torch, "get_autocast_dtype"):  # since 2.4
        return torch.is_autocast_enabled("cpu")
    return torch.is_autocast_cpu_enabled()


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def winograd_conv2d(input, weight, bias=None):
    """``conv2d(input, weight, bias, padding=1)`` for 3x3 weights, differentiable once.

    Args:
        input (Tensor): (N, C, H, W), any memory layout.
        weight (Tensor): (D, C, 3, 3).
        bias (Tensor or None): (D,).

    Returns:
        Tensor: (N, D, H, W), channels last in memory.
    """
    return _Convolution.apply(input, weight, bias, _convolve)


def conv2d_with_winograd_gradients(input, weight, bias=None):
    """``conv2d(input, weight, bias, padding=1)`` to the last bit, with Winograd's gradients.

    Arguments as in :func:`winograd_conv2d`; the result is laid out as PyTorch does.
    """
    return _Convolution.apply(input, weight, bias, _direct)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, convolve):
        ctx.save_for_backward(input, weight)
        return convolve(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = _convolve(grad_output, weight.flip(2, 3).transpose(0, 1), None)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(input, grad_output)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum((0, 2, 3))
        return grad_input, grad_weight, grad_bias, None


def _direct(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def _convolve(x, weight, bias):
    (n, channels, height, width), out_channels = x.shape, len(weight)
    from_output, from_weight, from_input = _transforms(x.dtype)
    chunks = Chunks(x, out_channels)
    weight = weight.permute(2, 3, 1, 0).reshape(9, -1)
    weight = torch.mm(from_weight, weight, out=chunks.weight).view(-1, channels, out_channels)
    out = _channels_last(x, n, out_channels, chunks.rows * TILE, chunks.columns * TILE)
    for chunk in chunks:
        patches = torch.mm(from_input, chunk.patches(x), out=chunk.transformed)
        product = torch.bmm(patches.view(PATCH**2, -1, channels), weight, out=chunk.product)
        if bias is not None:
            product[ONES] += bias
        tiles = torch.mm(from_output, product.flatten(1), out=chunk.tiles)
        view = chunk.tiles_of(out.permute(0, 2, 3, 1))
        view.copy_(tiles.view(view.shape))
    if out.shape[2:] != (height, width):
        whole_tiles, out = out, _channels_last(x, n, out_channels, height, width)
        out.copy_(whole_tiles[:, :, :height, :width])
    return out


def _channels_last(x, *shape):
    # No view, since autograd forbids to change a view that a function returns (F.relu_).
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _weight_gradient(x, grad_output):
    channels, out_channels = x.shape[1], grad_output.shape[1]
    from_output, from_weight, from_input = _transforms(x.dtype)
    chunks = Chunks(x, out_channels)
    grad = _to_whole_tiles(grad_output.permute(0, 2, 3, 1))
    total = chunks.weight.zero_().view(-1, channels, out_channels)
    for chunk in chunks:
        view = chunk.tiles_of(grad)
        chunk.tiles.view(view.shape).copy_(view)
        torch.mm(from_output.t(), chunk.tiles, out=chunk.product.flatten(1))
        patches = torch.mm(from_input, chunk.patches(x), out=chunk.transformed)
        patches = patches.view(PATCH**2, -1, channels)
        total.baddbmm_(patches.transpose(1, 2), chunk.product)
    grad_weight = from_weight.t() @ total.flatten(1)
    return grad_weight.view(3, 3, channels, out_channels).permute(3, 2, 0, 1)


def _to_whole_tiles(x):
    """x (N, H, W, D), contiguous, with zeros added so that whole tiles cover it."""
    below, right = -x.shape[1] % TILE, -x.shape[2] % TILE
    if below or right:  # F.pad always copies
        x = F.pad(x, (0, 0, 0, right, 0, below))
    return x.contiguous()


@lru_cache(maxsize=None)
def _transforms(dtype):
    """A^T (16, 36), G (36, 9) and B^T (36, 36) of the paper, each for both directions at once."""
    others = [[q for q in POINTS if q != p] for p in POINTS]
    scale = [math.prod(p - q for q in rest) for p, rest in zip(POINTS, others)]
    from_output = [[p**i for p in POINTS] + [i == TILE - 1] for i in range(TILE)]
    from_weight = [[p**i / s for i in range(3)] for p, s in zip(POINTS, scale)] + [[0, 0, 1]]
    from_input = [[*_polynomial(rest), 0] for rest in others] + [_polynomial(POINTS)]
    matrices = [
        torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64)
        for matrix in (from_output, from_weight, from_input)
    ]
    return [torch.kron(matrix, matrix).to(dtype) for matrix in matrices]


def _polynomial(roots):
    """Coefficients of the product of (x - root), the lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [0, *coefficients], [*(root * c for c in coefficients), 0]
        coefficients = [a - b for a, b in zip(shifted, scaled)]
    return coefficients
