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
_PAIRS_AT_ONCE = 2**24  # 64 MiB of numbers
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
    group_of = list(range(len(files)))

    def root(i: int) -> int:
        while group_of[i] != i:
            group_of[i] = group_of[group_of[i]]
            i = group_of[i]
        return i

    seen = _Thumbnails(files)
    for first, second in [*_of_one_name(files), *seen.alike(seen)]:
        a, b = sorted((root(first), root(second)))
        group_of[b] = a
    groups: dict[int, list[int]] = {}
    for i in range(len(files)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def near_copies(files: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Of each of ``files`` that looks like one of ``others`` the first of these, as indices.

    The rules are those of :func:`near_duplicates`.
    """
    names = _of_one_name([*others, *files])
    of_names = [(j - len(others), i) for i, j in names if i < len(others) <= j]
    copies: dict[int, int] = {}
    for i, j in sorted([*of_names, *_Thumbnails(files).alike(_Thumbnails(others))]):
        copies.setdefault(i, j)
    return copies


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


class _Thumbnails:
    """What images look like: hashes as signs, and grey values, of those that can be read."""

    def __init__(self, files: Sequence[str]) -> None:
        thumbnails = list(each_of(_thumbnail, files, "comparing images"))
        self.index = np.array([i for i, x in enumerate(thumbnails) if x is not None], np.int64)
        num = len(self.index)
        pixels = np.array([x for x in thumbnails if x is not None], np.float32)
        pixels = pixels.reshape(num, _SIDE, _SIDE + 1)
        signs = np.where(pixels[:, :, 1:] > pixels[:, :, :-1], 1, -1)
        self.signs = signs.reshape(num, _SIDE * _SIDE).astype(np.float32)
        grey = pixels.reshape(num, _SIDE * (_SIDE + 1))
        grey = grey - grey.mean(axis=1, keepdims=True)
        # Images of one grey value all over have no correlation but look alike: one more value.
        grey = np.concatenate([grey, np.ones((len(grey), 1), np.float32)], axis=1)
        self.grey = grey / np.linalg.norm(grey, axis=1, keepdims=True)

    def alike(self, others: "_Thumbnails") -> list[tuple[int, int]]:
        """Pairs of indices of these and others that look alike; of the same ones each pair once."""
        pairs: list[tuple[int, int]] = []
        num_rows = max(1, _PAIRS_AT_ONCE // max(1, len(others.index)))
        for start in range(0, len(self.index), num_rows):
            rows = slice(start, start + num_rows)
            differing = (self.signs.shape[1] - self.signs[rows] @ others.signs.T) / 2
            alike = (differing <= _MOST_BITS) & (
                self.grey[rows] @ others.grey.T >= _LEAST_CORRELATION
            )
            first, second = np.nonzero(alike)
            if others is self:
                is_once = first + start < second
                first, second = first[is_once], second[is_once]
            pairs += zip(self.index[first + start].tolist(), others.index[second].tolist())
        return pairs
