"""Images that show the same: copies, other sizes and qualities, frames that hardly differ."""

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .images.many_files import each_of

_SIDE = 16
# Of the 256 bits. In three data sets of photographs, smaller copies of quality 60 differ in up to
# 16, brighter ones that are cut by 2 % in up to 50 and 95 % of them in up to 43, and different
# pictures in 76 or more.
_MOST_BITS = 45
# Of grey values beside their mean. Bits of even surfaces are noise, or all 0: there they tell
# nothing, and this is low.
_LEAST_CORRELATION = 0.85
_ROWS_AT_ONCE = 1024
# Roboflow's names of the copies that it makes of an image: NAME_jpg.rf.HASH.jpg.
_ROBOFLOW = re.compile(r"(.+)\.rf\.[0-9A-Za-z]{16,}\.\w+")


def near_duplicates(files: Sequence[str]) -> list[list[int]]:
    """Groups of images of which each looks like another one of its group.

    Two look alike if their difference hashes (is a pixel brighter than its left neighbour, at 17 x
    16 pixels) differ in few bits, and their grey values correlate. Turned, mirrored or cropped
    copies are found only if they are Roboflow's, by their names.

    Args:
        files: of images; one that cannot be read looks like none.

    Returns:
        indices, each in one group; groups and their members in the order of ``files``.
    """
    thumbnails = list(each_of(_thumbnail, files, "comparing images"))
    readable = [i for i, thumbnail in enumerate(thumbnails) if thumbnail is not None]
    group_of = list(range(len(files)))

    def root(i: int) -> int:
        while group_of[i] != i:
            group_of[i] = group_of[group_of[i]]
            i = group_of[i]
        return i

    pairs = _of_one_name(files)
    if readable:
        pixels = np.stack([x for x in thumbnails if x is not None])
        pairs += [(readable[first], readable[second]) for first, second in _alike(pixels)]
    for first, second in pairs:
        a, b = sorted((root(first), root(second)))
        group_of[b] = a
    groups: dict[int, list[int]] = {}
    for i in range(len(files)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _of_one_name(files: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of indices of copies that Roboflow made of one image."""
    first: dict[str, int] = {}
    matches = [(i, _ROBOFLOW.fullmatch(path)) for i, path in enumerate(files)]
    return [(first.setdefault(match[1], i), i) for i, match in matches if match]


def _thumbnail(path: str) -> np.ndarray | None:
    """Grey values, (16, 17); None for a file that cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("L", (4 * _SIDE, 4 * _SIDE))  # a JPEG is decoded at a fraction of its size
            small = image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.LANCZOS)
    except Exception:  # decoders raise anything for a damaged file
        return None
    return np.asarray(small, dtype=np.float32)


def _alike(pixels: np.ndarray) -> np.ndarray:
    """Pairs of indices (P, 2) of thumbnails (N, 16, 17)."""
    signs = np.where(pixels[:, :, 1:] > pixels[:, :, :-1], 1, -1).reshape(len(pixels), -1)
    signs = signs.astype(np.float32)
    grey = pixels.reshape(len(pixels), -1)
    grey = grey - grey.mean(axis=1, keepdims=True)
    # Images of one grey value all over have no correlation but look alike: one more, equal value.
    grey = np.concatenate([grey, np.ones((len(grey), 1), np.float32)], axis=1)
    grey /= np.linalg.norm(grey, axis=1, keepdims=True)
    pairs = []
    for start in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        differing = (signs.shape[1] - signs[rows] @ signs.T) / 2
        alike = (differing <= _MOST_BITS) & (grey[rows] @ grey.T >= _LEAST_CORRELATION)
        found = np.argwhere(alike)
        found[:, 0] += start
        pairs.append(found[found[:, 0] < found[:, 1]])
    return np.concatenate(pairs)
