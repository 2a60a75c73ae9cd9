"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3) on a CPU.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308, section 4: a
tile of 4x4 outputs comes from a patch of 6x6 inputs by 36 products instead of 144, between linear
transforms of input, weight and output. On GPUs cuDNN chooses such algorithms by itself; what
PyTorch uses on CPUs does not.
"""

import math
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...subnormal import flush_tiny_
from .tiles import PATCH, TILE, Chunk, Tiling

# Where the algorithm evaluates its polynomials, beside infinity. These keep rounding within about
# twice that of PyTorch's convolution; the paper's 0, 1, -1, 2, -2 make it three times (for the
# choice of points: Barabasz et al., arXiv 1803.10986).
POINTS = [Fraction(point) for point in ("0", "1", "-1", "2", "-1/2")]
# Of the 36 products, that at the point (1, 1): every output of the tile takes it with weight 1.
ONES = POINTS.index(Fraction(1)) * PATCH + POINTS.index(Fraction(1))
# With fewer channels or tiles than these, the transforms cost more than the products save.
MIN_CHANNELS, MIN_TILES = 96, 100


def is_faster(x: Tensor, weight: Tensor, stride: Any, padding: Any) -> bool:
    """Whether the functions below compute the convolution of x (N, C, H, W) by ``weight`` faster
    than PyTorch does where it has no AVX-512."""
    if (weight.shape[2:], stride, padding) != ((3, 3), (1, 1), (1, 1)):
        return False
    n, _, height, width = x.shape
    tiles = n * -(-height // TILE) * -(-width // TILE)
    return min(weight.shape[:2]) >= MIN_CHANNELS and tiles >= MIN_TILES


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    """``conv2d(x, weight, bias, padding=1)``; the result is channels last in memory."""
    tiling = Tiling(x, len(weight))
    out = _empty_tiles(tiling, x.dtype)
    weight = _transform_weight(tiling, weight.permute(2, 3, 1, 0))
    for chunk in tiling:
        _multiply(chunk, _transform_patches(chunk, x), weight, bias, out)
    return _crop(out, x.shape[2:], torch.channels_last)


def gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    needs_input: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by x and by the weight (D, C, 3, 3) of the convolution whose output has the
    gradient ``grad_output``; None for one that is not needed.

    The first is a convolution of ``grad_output``. The second correlates it with x, with the same
    patches: a patch of 6x6 and a tile of 4x4 of x, in the place of a weight, give 3x3 values, which
    are summed over the tiles before they are transformed back. The gradient by x is channels last
    in memory, unless x is contiguous.
    """
    tiling = Tiling(grad_output, x.shape[1])
    grad_input = _empty_tiles(tiling, x.dtype) if needs_input else None
    flipped_weight = _transform_weight(tiling, weight.flip(2, 3).permute(2, 3, 0, 1))
    if needs_weight:
        tiling.grad_weight.zero_()
        tiles = _whole_tiles(x.permute(0, 2, 3, 1))
    for chunk in tiling:
        patches = _transform_patches(chunk, grad_output, is_gradient=True)
        if grad_input is not None:
            _multiply(chunk, patches, flipped_weight, None, grad_input, is_gradient=True)
        if needs_weight:
            _add_correlation(tiling.grad_weight, chunk, patches, tiles)
    if grad_input is not None:
        # What meets x and its gradient later would take longer over two layouts than a copy does.
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        grad_input = _crop(grad_input, x.shape[2:], layout)
    grad_weight = _transform_back(tiling.grad_weight).flip(2, 3) if needs_weight else None
    return grad_input, grad_weight


def _transform_weight(tiling: Tiling, weight: Tensor) -> Tensor:
    """(36, C, D) from (3, 3, C, D)."""
    _, from_weight, _ = _transforms(weight.dtype)
    torch.mm(from_weight, weight.reshape(9, -1), out=tiling.weight.flatten(1))
    return tiling.weight


def _transform_back(weight: Tensor) -> Tensor:
    """(C, D, 3, 3) from (36, C, D)."""
    _, from_weight, _ = _transforms(weight.dtype)
    kernels = from_weight.t() @ weight.flatten(1)
    return kernels.view(3, 3, *weight.shape[1:]).permute(2, 3, 0, 1)


def _transform_patches(chunk: Chunk, x: Tensor, is_gradient: bool = False) -> Tensor:
    """(36, tiles, C) of x (N, C, H, W)."""
    _, _, from_input = _transforms(x.dtype)
    patches = torch.mm(from_input, chunk.patches(x, is_gradient), out=chunk.transformed)
    return patches.view(PATCH**2, -1, x.shape[1])


def _multiply(
    chunk: Chunk,
    patches: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    is_gradient: bool = False,
) -> None:
    """Put the chunk's outputs into ``out`` (N, D, 4 * rows, 4 * columns)."""
    from_output, _, _ = _transforms(out.dtype)
    product = torch.bmm(patches, weight, out=chunk.product)
    if bias is not None:
        product[ONES] += bias
    tiles = torch.mm(from_output, product.flatten(1), out=chunk.tiles)
    if is_gradient:  # the algorithms behind it compute with it as fast as with zero
        flush_tiny_(tiles)
    view = chunk.tiles_of(out.permute(0, 2, 3, 1))
    view.copy_(tiles.view(view.shape))


def _add_correlation(total: Tensor, chunk: Chunk, patches: Tensor, x: Tensor) -> None:
    """Add that of the patches (36, tiles, D) and the tiles of x (N, H, W, C) to (36, D, C)."""
    from_output, _, _ = _transforms(x.dtype)
    view = chunk.tiles_of(x)
    chunk.tiles.view(view.shape).copy_(view)
    torch.mm(from_output.t(), chunk.tiles, out=chunk.product.flatten(1))
    total.baddbmm_(patches.transpose(1, 2), chunk.product)


def _empty_tiles(tiling: Tiling, dtype: torch.dtype) -> Tensor:
    shape = tiling.num_images, tiling.out_channels, tiling.rows * TILE, tiling.columns * TILE
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)


def _crop(x: Tensor, size: torch.Size, layout: torch.memory_format) -> Tensor:
    if x.shape[2:] == size and x.is_contiguous(memory_format=layout):
        return x
    # No view, since autograd forbids to change a view that a function returns (F.relu_).
    return x[:, :, : size[0], : size[1]].clone(memory_format=layout)


def _whole_tiles(x: Tensor) -> Tensor:
    """x (N, H, W, C) with zeros added so that whole tiles cover it."""
    below, right = -x.shape[1] % TILE, -x.shape[2] % TILE
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


def _transforms(dtype: torch.dtype) -> list[Tensor]:
    """A^T (16, 36), G (36, 9) and B^T (36, 36) of the paper, each for both directions at once."""
    return [torch.from_numpy(matrix).to(dtype) for matrix in _matrices()]


@cache
def _matrices() -> list[np.ndarray]:
    """The same as arrays: kept tensors would belong to the mode that made them."""
    others = [[q for q in POINTS if q != p] for p in POINTS]
    scale = [math.prod(p - q for q in rest) for p, rest in zip(POINTS, others)]
    from_output = [[p**i for p in POINTS] + [i == TILE - 1] for i in range(TILE)]
    from_weight = [[p**i / s for i in range(3)] for p, s in zip(POINTS, scale)] + [[0, 0, 1]]
    from_input = [[*_polynomial(rest), 0] for rest in others] + [_polynomial(POINTS)]
    one_way = (np.array(m, dtype=np.float64) for m in (from_output, from_weight, from_input))
    return [np.kron(matrix, matrix) for matrix in one_way]


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), the lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled)]
    return coefficients
