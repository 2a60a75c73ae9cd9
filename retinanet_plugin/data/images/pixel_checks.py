"""What is wrong in pixels, of the first images of a data set whose headers make it possible."""

import itertools
from typing import Any

import numpy as np
from PIL import Image

from ..dataset_facts import DatasetFacts
from ..findings import Findings, image_named

_MOST_LOOKED_AT = 20
# Greys of 16 bits that stay below this are of 14 bits or fewer: dark once 65535 is white.
_DARK = 2**14


def check_pixels(dataset: DatasetFacts, source: str, findings: Findings) -> None:
    """Find images that are transparent in places, or dark because their bits are not used.

    Args:
        dataset: with good images and others.
        source: what its images are called in ``findings``.
        findings: is added to.
    """
    _check_alpha(findings, source, _with("is_transparent", dataset))
    _check_deep_greys(findings, source, _with("has_deep_greys", dataset))


def _with(attribute: str, dataset: DatasetFacts) -> list[dict[str, Any]]:
    """The first images whose headers have an attribute."""
    pairs = zip(dataset.images, dataset.headers)
    found = (image for image, header in pairs if getattr(header, attribute, False))
    return list(itertools.islice(found, _MOST_LOOKED_AT))


def _check_alpha(findings: Findings, source: str, images: list[dict[str, Any]]) -> None:
    for image in images:
        if _is_see_through(image["file_name"]):
            findings.warn(
                "transparent",
                source,
                f"{image_named(image)} is transparent in places, which are read in the colour "
                "beneath",
                "draw it on a background",
            )


def _check_deep_greys(findings: Findings, source: str, images: list[dict[str, Any]]) -> None:
    largest = max((_largest_grey(image["file_name"]) for image in images), default=_DARK)
    if largest < _DARK:
        findings.warn(
            "dark",
            source,
            f"{image_named(images[0])} has greys of 16 bits, of which 65,535 is read as white, but "
            f"no grey of the first {len(images)} such images is above {largest:,}, read as "
            f"{largest / 257:.0f} of 255",
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
