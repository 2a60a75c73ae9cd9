"""Tiles of outputs and patches of inputs of a 3x3 convolution, a chunk of them at a time."""

import math
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...subnormal import flush_tiny_

TILE, PATCH = 4, 6  # outputs and inputs a side
# Values of the patches and products of a chunk, which should stay in the cache.
CHUNK_SIZE = 1 << 22
# Bytes; matrix products take a tenth longer from memory that does not begin at such a border.
CACHE_LINE = 64


class Tiling:
    """The tiles of x (N, C, H, W), some images or some rows of an image at a time.

    Attributes: ``rows`` and ``columns`` of tiles in an image; ``weight`` and ``grad_weight``
    (36, C, D), memory for what belongs to no chunk.
    """

    def __init__(self, x: Tensor, out_channels: int) -> None:
        self.num_images, self.channels, height, width = x.shape
        self.out_channels = out_channels
        self.rows, self.columns = -(-height // TILE), -(-width // TILE)
        tiles_that_fit = CHUNK_SIZE // (PATCH**2 * (self.channels + out_channels))
        self.images_a_chunk = min(
            self.num_images, max(1, tiles_that_fit // (self.rows * self.columns))
        )
        self.rows_a_chunk = min(self.rows, max(1, tiles_that_fit // self.columns))
        tiles_a_chunk = self.images_a_chunk * self.rows_a_chunk * self.columns
        padded_pixels = (self.rows_a_chunk * TILE + 2) * (self.columns * TILE + 2)
        weight_shape = PATCH**2, self.channels, out_channels
        weight, grad_weight, self.padded, self.values, self.transformed, self.product = _workspace(
            math.prod(weight_shape),
            math.prod(weight_shape),
            self.images_a_chunk * padded_pixels * self.channels,
            tiles_a_chunk * max(PATCH**2 * self.channels, TILE**2 * out_channels),
            tiles_a_chunk * PATCH**2 * self.channels,
            tiles_a_chunk * PATCH**2 * out_channels,
            dtype=x.dtype,
        )
        self.weight, self.grad_weight = weight.view(weight_shape), grad_weight.view(weight_shape)

    def __iter__(self) -> Iterator["Chunk"]:
        for image in range(0, self.num_images, self.images_a_chunk):
            images = slice(image, min(image + self.images_a_chunk, self.num_images))
            for row in range(0, self.rows, self.rows_a_chunk):
                yield Chunk(self, images, slice(row, min(row + self.rows_a_chunk, self.rows)))


class Chunk:
    """Tiles of some images or rows, and the memory to work on them.

    Attributes: ``transformed`` (36, tiles * C), ``product`` (36, tiles, D) and ``tiles``
    (16, tiles * D), which shares its memory with the patches: use one after the other.
    """

    def __init__(self, tiling: Tiling, images: slice, rows: slice) -> None:
        self.tiling, self.images, self.rows = tiling, images, rows
        self.shape = images.stop - images.start, rows.stop - rows.start, tiling.columns
        tiles = math.prod(self.shape)
        self.transformed = _start(tiling.transformed, PATCH**2, tiles * tiling.channels)
        self.product = _start(tiling.product, PATCH**2, tiles, tiling.out_channels)
        self.tiles = _start(tiling.values, TILE**2, tiles * tiling.out_channels)

    def tiles_of(self, x: Tensor) -> Tensor:
        """View (4, 4, images, rows, columns, D) of x (N, 4 * rows, 4 * columns, D)."""
        part = x[self.images, self.rows.start * TILE : self.rows.stop * TILE]
        n, rows, columns = self.shape
        return part.view(n, rows, TILE, columns, TILE, -1).permute(2, 4, 0, 1, 3, 5)

    def patches(self, x: Tensor, is_gradient: bool = False) -> Tensor:
        """Patches (36, images * rows * columns * C) of x (N, C, H, W), which overlap by two.

        What is tiny in a gradient is taken for zero.
        """
        n, rows, columns = self.shape
        padded = self._padded(x, is_gradient)
        image, row, column, channel = padded.stride()
        shape = PATCH, PATCH, n, rows, columns, x.shape[1]
        strides = row, column, image, TILE * row, TILE * column, channel
        view = padded.as_strided(shape, strides, padded.storage_offset())
        return _start(self.tiling.values, *shape).copy_(view).view(PATCH**2, -1)

    def _padded(self, x: Tensor, is_gradient: bool) -> Tensor:
        """The chunk's part of x with what is around it, or zeros: (images, y, x, C)."""
        _, channels, height, width = x.shape
        n, rows, columns = self.shape
        padded = _start(self.tiling.padded, n, rows * TILE + 2, columns * TILE + 2, channels)
        top, bottom = self.rows.start * TILE - 1, self.rows.stop * TILE + 1
        first, last = max(top, 0), min(bottom, height)
        padded[:, : first - top] = 0
        padded[:, last - top :] = 0
        padded[:, :, 0] = 0
        padded[:, :, width + 1 :] = 0
        inside = padded[:, first - top : last - top, 1 : width + 1]
        inside.copy_(x[self.images, :, first:last].permute(0, 2, 3, 1))
        if is_gradient:
            flush_tiny_(padded)
        return padded


def _start(memory: Tensor, *shape: int) -> Tensor:
    """The start of ``memory``, one-dimensional, as a tensor of ``shape``."""
    return memory[: math.prod(shape)].view(shape)


_kept = threading.local()


def _workspace(*sizes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tensors of memory that this thread keeps: the pages of new memory can cost more than the
    arithmetic. Bytes are kept and no tensors, which would belong to the mode that made them
    (``inference_mode``)."""
    num_bytes = sum(sizes) * dtype.itemsize
    if len(getattr(_kept, "memory", b"")) < num_bytes + CACHE_LINE:
        _kept.memory = np.empty(num_bytes + CACHE_LINE, dtype=np.uint8)
    start = -_kept.memory.ctypes.data % CACHE_LINE
    memory = torch.from_numpy(_kept.memory[start : start + num_bytes])
    return memory.view(dtype).split(sizes)
