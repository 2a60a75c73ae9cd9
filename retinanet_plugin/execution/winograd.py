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

from .tiles import PATCH, TILE, Chunks

# Where the algorithm evaluates its polynomials, beside infinity. These keep rounding within about
# twice that of PyTorch's convolution; the paper's 0, 1, -1, 2, -2 make it three times (for the
# choice of points: Barabasz et al., arXiv 1803.10986).
POINTS = [Fraction(point) for point in ("0", "1", "-1", "2", "-1/2")]
# Of the 36 products, that at the point (1, 1): every output of the tile takes it with weight 1.
ONES = POINTS.index(1) * PATCH + POINTS.index(1)
# With fewer channels or tiles than these, the transforms cost more than the products save.
MIN_CHANNELS, MIN_TILES = 96, 100


def suits(x, weight, stride, padding):
    """Whether the functions below compute the convolution of x (N, C, H, W) by ``weight`` faster
    than PyTorch does."""
    if (*weight.shape[2:], *stride, *padding) != (3, 3, 1, 1, 1, 1):
        return False
    n, _, height, width = x.shape
    tiles = n * -(-height // TILE) * -(-width // TILE)
    return min(weight.shape[:2]) >= MIN_CHANNELS and tiles >= MIN_TILES


def convolve(x, weight, bias, stride):
    """``conv2d(x, weight, bias, padding=1)``; the result is channels last in memory."""
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


def input_gradient(grad_output, x, weight, stride):
    """The gradient by x of the convolution whose output has the gradient ``grad_output``.

    It is channels last in memory, unless x is contiguous.
    """
    grad = convolve(grad_output, weight.flip(2, 3).transpose(0, 1), None, stride)
    # Later operations on operands of two layouts would cost more than this copy.
    return grad.contiguous() if x.is_contiguous() else grad


def weight_gradient(grad_output, x, weight, stride):
    """The gradient by the weight (D, C, 3, 3)."""
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


def _channels_last(x, *shape):
    # No view, since autograd forbids to change a view that a function returns (F.relu_).
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _to_whole_tiles(x):
    """x (N, H, W, D) with zeros added so that whole tiles cover it."""
    below, right = -x.shape[1] % TILE, -x.shape[2] % TILE
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


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
