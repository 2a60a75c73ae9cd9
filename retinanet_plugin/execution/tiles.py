"""Tiles of outputs and patches of inputs of a 3x3 convolution, a chunk of them at a time."""

import math
import threading

import torch

TILE, PATCH = 4, 6  # outputs and inputs a side
# Values of the patches and products of a chunk, which should stay in the cache.
CHUNK_SIZE = 1 << 22


class Chunks:
    """The tiles of x (N, C, H, W), some images or some rows of an image at a time.

    Attributes: ``n`` images, ``rows`` and ``columns`` of tiles in an image; ``weight`` and
    ``total`` (36, C, D), memory for what belongs to no chunk.
    """

    def __init__(self, x, out_channels):
        self.n, self.channels, height, width = x.shape
        self.out_channels = out_channels
        self.rows, self.columns = -(-height // TILE), -(-width // TILE)
        tiles = CHUNK_SIZE // (PATCH**2 * (self.channels + out_channels))
        self.images_a_chunk = min(self.n, max(1, tiles // (self.rows * self.columns)))
        self.rows_a_chunk = min(self.rows, max(1, tiles // self.columns))
        tiles = self.images_a_chunk * self.rows_a_chunk * self.columns
        padded_pixels = (self.rows_a_chunk * TILE + 2) * (self.columns * TILE + 2)
        weight_shape = PATCH**2, self.channels, out_channels
        sizes = [
            math.prod(weight_shape),
            math.prod(weight_shape),
            self.images_a_chunk * padded_pixels * self.channels,
            tiles * max(PATCH**2 * self.channels, TILE**2 * out_channels),
            tiles * PATCH**2 * self.channels,
            tiles * PATCH**2 * out_channels,
        ]
        weight, total, *self.memory = _workspace(x.dtype, sum(sizes)).split(sizes)
        self.weight, self.total = weight.view(weight_shape), total.view(weight_shape)

    def __iter__(self):
        for image in range(0, self.n, self.images_a_chunk):
            images = slice(image, min(image + self.images_a_chunk, self.n))
            for row in range(0, self.rows, self.rows_a_chunk):
                yield _Chunk(self, images, slice(row, min(row + self.rows_a_chunk, self.rows)))


class _Chunk:
    """Tiles of some images or rows, and the memory to work on them.

    Attributes: ``transformed`` (36, tiles * C), ``product`` (36, tiles, D) and ``tiles``
    (16, tiles * D), which shares its memory with the patches: use one after the other.
    """

    def __init__(self, chunks, images, rows):
        self.images, self.rows = images, rows
        self.shape = images.stop - images.start, rows.stop - rows.start, chunks.columns
        tiles, out_channels = math.prod(self.shape), chunks.out_channels
        self.padded, self.first, second, third = chunks.memory
        self.transformed = _start(second, PATCH**2, tiles * chunks.channels)
        self.product = _start(third, PATCH**2, tiles, out_channels)
        self.tiles = _start(self.first, TILE**2, tiles * out_channels)

    def tiles_of(self, x):
        """View (4, 4, images, rows, columns, D) of x (N, 4 * rows, 4 * columns, D)."""
        part = x[self.images, self.rows.start * TILE : self.rows.stop * TILE]
        n, rows, columns = self.shape
        return part.view(n, rows, TILE, columns, TILE, -1).permute(2, 4, 0, 1, 3, 5)

    def patches(self, x):
        """Patches (36, images * rows * columns * C) of x (N, C, H, W), which overlap by two."""
        n, rows, columns = self.shape
        padded = self._padded(x)
        image, row, column, channel = padded.stride()
        shape = PATCH, PATCH, n, rows, columns, x.shape[1]
        strides = row, column, image, TILE * row, TILE * column, channel
        view = padded.as_strided(shape, strides, padded.storage_offset())
        return _start(self.first, *shape).copy_(view).view(PATCH**2, -1)

    def _padded(self, x):
        """The chunk's part of x with what is around it, or zeros: (images, y, x, C)."""
        _, channels, height, width = x.shape
        n, rows, columns = self.shape
        padded = _start(self.padded, n, rows * TILE + 2, columns * TILE + 2, channels)
        top, bottom = self.rows.start * TILE - 1, self.rows.stop * TILE + 1
        first, last = max(top, 0), min(bottom, height)
        padded[:, : first - top] = 0
        padded[:, last - top :] = 0
        padded[:, :, 0] = 0
        padded[:, :, width + 1 :] = 0
        inside = padded[:, first - top : last - top, 1 : width + 1]
        inside.copy_(x[self.images, :, first:last].permute(0, 2, 3, 1))
        return padded


def _start(memory, *shape):
    """The start of ``memory``, one-dimensional, as a tensor of ``shape``."""
    return memory[: math.prod(shape)].view(shape)


_memory = threading.local()


def _workspace(dtype, size):
    """Memory that this thread keeps: the pages of new memory can cost more than the arithmetic."""
    workspace = getattr(_memory, "workspace", None)
    if workspace is None or workspace.dtype != dtype or len(workspace) < size:
        workspace = _memory.workspace = torch.empty(size, dtype=dtype)
    return workspace[:size]
