"""Whether training looks at windows around objects instead of whole images."""

import numpy as np

from ..dataset_facts import DatasetFacts
from .choice import Choice

# Windows are worth it where boxes cover less of an image than this.
_SPARSE = 0.15
# Pixels of the shorter edge of a window, and how many times the larger objects it is at least.
_WINDOW, _SIDES = 160, 2.5  # images are padded to multiples of 32
# A window of nearly all the image saves nothing.
_LARGEST_SHARE = 0.75


def choose_crop(facts: DatasetFacts, short_edge: int) -> list[Choice]:
    """Windows around objects, if these are few and small; else nothing.

    Args:
        facts: of the training set.
        short_edge: of its images after resizing, pixels.
    """
    share = window_share(facts, short_edge)
    if share == 1:
        return []
    reason = (
        f"boxes cover {_covered(facts):.1%} of the images: windows around them, of this share of "
        "width and height, show more objects in the same time"
    )
    return [Choice("INPUT.BOX_CROP", round(share, 4), reason)]


def window_share(facts: DatasetFacts, short_edge: int) -> float:
    """The share of width and height that a window has; 1: whole images are better."""
    sides = (
        np.sqrt(facts.box_sizes.clip(min=0).prod(axis=1)) / facts.sizes.min(axis=1)[facts.image_of]
    )
    large = float(np.quantile(sides[facts.has_area & ~facts.is_crowd], 0.8))
    share = max(_WINDOW / short_edge, _SIDES * large)
    return share if share <= _LARGEST_SHARE and _covered(facts) < _SPARSE else 1.0


def _covered(facts: DatasetFacts) -> float:
    """The share of the images that boxes cover, as if no two overlapped."""
    areas = facts.box_sizes.clip(min=0).prod(axis=1) * ~facts.is_crowd
    return float((areas / facts.sizes.prod(axis=1)[facts.image_of]).sum()) / facts.num_images
