"""Whether training looks at windows around objects instead of whole images."""

import numpy as np

from ..dataset_facts import DatasetFacts
from .choice import Choice
from .image_size import ImageSize

# Windows are worth it where boxes cover less of an image than this.
_SPARSE = 0.15
# Pixels of the shorter edge of a window, and how many times the larger objects it is at least.
_WINDOW, _SIDES = 160, 2.5  # images are padded to multiples of 32
# A window of nearly all the image saves nothing.
_LARGEST_SHARE = 0.75


def choose_crop(facts: DatasetFacts, size: ImageSize) -> list[Choice]:
    """Windows around objects, if these are few and small; else nothing.

    Args:
        facts: of the training set.
        size: of its images.
    """
    is_counted = facts.has_area & ~facts.is_crowd
    areas = facts.box_sizes.clip(min=0).prod(axis=1)[is_counted]
    index = facts.image_of[is_counted]
    covered = float((areas / facts.sizes[index].prod(axis=1)).sum()) / facts.num_images
    large = float(np.quantile(np.sqrt(areas) / facts.sizes[index].min(axis=1), 0.8))
    share = max(_WINDOW / size.short_edge, _SIDES * large)
    if covered >= _SPARSE or share > _LARGEST_SHARE:
        return []
    reason = (
        f"boxes cover {covered:.1%} of the images: windows around them, of this share of width and "
        "height, show more objects in the same time"
    )
    return [Choice("INPUT.BOX_CROP", round(share, 4), reason)]
