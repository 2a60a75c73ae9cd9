"""What training sees of an image: windows around objects, or squares at any scale."""

import numpy as np

from ..dataset_facts import DatasetFacts
from ..loading.box_crop import BoxCrop
from .choice import Choice

# Windows are worth it where boxes cover less of an image than this.
_SPARSE = 0.15
# Pixels of the shorter edge of a window, and how many times the larger objects it is at least.
_WINDOW, _SIDES = 160, 2.5  # images are padded to multiples of 32
# A window of nearly all the image saves nothing.
_LARGEST_SHARE = 0.75
# Without windows: by how much objects are smaller and larger than in evaluation.
_SCALES = (0.6, 1.5)
# Of images, the longer edge by the shorter: of longer ones, the shorter edge gets smaller.
_MOST_ASPECT = 64.0


def choose_views(facts: DatasetFacts, short_edge: int) -> list[Choice]:
    """Windows around objects, if these are few and small; else squares of images at random scales.

    Args:
        facts: of the training set.
        short_edge: of its images after resizing, pixels.
    """
    share = window_share(facts, short_edge)
    if share:
        reason = (
            f"boxes cover {_covered(facts):.1%} of the images: windows around them, of this share "
            f"of width and height{_of_long(facts)}, show more objects in the same time"
        )
        return [
            Choice("INPUT.MIN_SIZE_TRAIN", [short_edge], "as in evaluation"),
            Choice("INPUT.BOX_CROP", round(share, 4), reason),
        ]
    aspect = median_aspect(facts)
    low, high = (round(scale * aspect, 2) for scale in _SCALES)
    reason = (
        "squares of images that are so many times as large as fits the square, and objects "
        f"{_SCALES[0]:g} to {_SCALES[1]:g} times as large as in evaluation: none is seen twice "
        "alike, so that they are not learned by heart"
    )
    return [
        Choice("INPUT.MIN_SIZE_TRAIN", [short_edge], "the edge of the squares"),
        Choice("INPUT.SCALE_JITTER", [low, high], reason),
    ]


def seen_megapixels(facts: DatasetFacts, short_edge: int, sizes: np.ndarray) -> float:
    """Of an image, that training sees.

    Args:
        facts: of the training set.
        short_edge: of its images after resizing, pixels.
        sizes: (N, 2), of its images after resizing, pixels.
    """
    share = window_share(facts, short_edge)
    if not share:
        return short_edge**2 / 1e6
    return share**2 * _windowed(facts) * float(sizes.prod(axis=1).mean()) / 1e6


def long_aspect(facts: DatasetFacts) -> float:
    """The longer edge by the shorter that nearly all images stay under, and all in evaluation."""
    return min(float(np.quantile(_aspects(facts), 0.95)), _MOST_ASPECT)


def median_aspect(facts: DatasetFacts) -> float:
    """The longer edge of images by the shorter, in evaluation."""
    return min(float(np.median(_aspects(facts))), _MOST_ASPECT)


def _aspects(facts: DatasetFacts) -> np.ndarray:
    return facts.sizes.max(axis=1) / facts.sizes.min(axis=1)


def window_share(facts: DatasetFacts, short_edge: int) -> float:
    """The share of width and height that a window has; 0: whole images are better."""
    sides = (
        np.sqrt(facts.box_sizes.clip(min=0).prod(axis=1)) / facts.sizes.min(axis=1)[facts.image_of]
    )
    large = float(np.quantile(sides[facts.has_area & ~facts.is_crowd], 0.8))
    share = min(1.0, max(_WINDOW / short_edge, _SIDES * large))
    is_smaller = share**2 * _windowed(facts) <= _LARGEST_SHARE**2
    return share if is_smaller and _covered(facts) < _SPARSE else 0.0


def _windowed(facts: DatasetFacts) -> float:
    """The share of images that windows of the share 1 have: these are not long."""
    return min(1.0, BoxCrop.MOST_ASPECT / median_aspect(facts))


def _of_long(facts: DatasetFacts) -> str:
    return f", at most {BoxCrop.MOST_ASPECT:g}:1" if _windowed(facts) < 1 else ""


def _covered(facts: DatasetFacts) -> float:
    """The share of the images that boxes cover, as if no two overlapped."""
    areas = facts.box_sizes.clip(min=0).prod(axis=1) * ~facts.is_crowd
    return float((areas / facts.sizes.prod(axis=1)[facts.image_of]).sum()) / facts.num_images
