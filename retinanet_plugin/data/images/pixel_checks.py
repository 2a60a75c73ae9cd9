"""What is wrong in pixels, of the first images of a data set whose headers make it possible."""

import itertools

import numpy as np
from PIL import Image

from ..dataset_facts import DatasetFacts
from ..findings import Findings

_MOST_LOOKED_AT = 20
# Greys of 16 bits that stay below this are of 14 bits or fewer: dark once 65535 is white.
_DARK = 2**14


def check_pixels(dataset: DatasetFacts, findings: Findings) -> None:
    """Find images that are transparent in places, or dark because their bits are not used.

    Args:
        dataset: with good images and others.
        findings: is added to.
    """
    _check_alpha(dataset, _with("is_transparent", dataset), findings)
    _check_deep_greys(dataset, _with("has_deep_greys", dataset), findings)


def _with(attribute: str, dataset: DatasetFacts) -> list[int]:
    """The first images whose headers have an attribute, by their indices."""
    headers = enumerate(dataset.headers)
    found = (index for index, header in headers if getattr(header, attribute, False))
    return list(itertools.islice(found, _MOST_LOOKED_AT))


def _check_alpha(dataset: DatasetFacts, images: list[int], findings: Findings) -> None:
    for index in images:
        if _is_see_through(dataset.images[index]["file_name"]):
            findings.warn(
                "transparent",
                dataset.image_source,
                f"{dataset.describe_image(index)} is transparent in places, which are read in the "
                "colour beneath",
                "draw it on a background",
            )


def _check_deep_greys(dataset: DatasetFacts, images: list[int], findings: Findings) -> None:
    files = (dataset.images[index]["file_name"] for index in images)
    largest = max(map(_largest_grey, files), default=_DARK)
    if largest < _DARK:
        findings.warn(
            "dark",
            dataset.image_source,
            f"{dataset.describe_image(images[0])} has greys of 16 bits, of which 65,535 is read as "
            f"white, but no grey of the first {len(images)} such images is above {largest:,}, read "
            f"as {largest / 257:.0f} of 255",
            f"multiply the values by {2 ** (16 - largest.bit_length())}, so that they fill the "
            "16 bits",
        )


def _is_see_through(path: str) -> bool:
    """Whether an image that can be transparent is so anywhere."""
    try:
        with Image.open(path) as image:
            lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    except Exception:  # whatever a damaged file makes of it: reading it says so
        return False
    return bool(lowest < 255)


def _largest_grey(path: str) -> int:
    """The largest value of an image whose greys have 16 bits, 0 to 65535."""
    try:
        with Image.open(path) as image:
            return int(np.asarray(image).max())
    except Exception:  # whatever a damaged file makes of it: reading it says so
        return 65535
