"""To which sizes images are resized: as large as the objects need, as small as time allows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..anchor_reach import resized
from ..dataset_facts import DatasetFacts
from .choice import Choice, Machine
from .crops import long_aspect, seen_megapixels
from .durations import in_words
from .schedule import MOST_EPOCHS_OF_FEW

# Pixels that all but the smallest objects should have: three cells of P3, which has a stride of 8.
WANTED_SIDE = 24
# Of the shorter edge, even if objects are large: what tells classes apart may be small.
WANTED_EDGE = 320
# With fewer, next to nothing is learned of an object: see docs/new.md.
LEAST_SIDE = 8
_SMALL = 0.2  # the share of the boxes that are "the smallest"
_STEP = 32  # of short edges, the stride of P5
_LEAST_EDGE, _MOST_EDGE = 128, 800
_MOST_UPSCALED = 2.0
# Of an image in evaluation, where it is whole: twice the square of the largest edge.
_MOST_PIXELS = 2 * _MOST_EDGE**2
# How often each image should be seen, and how many images at least and at most, before more pixels
# are worth more than more steps.
_EPOCHS, _LEAST_SEEN, _MOST_SEEN = 10, 2400, 4800
_LONGER = "a longer --budget has larger ones"


@dataclass(frozen=True)
class ImageSize:
    """Sizes for evaluation, those of training at most, and what becomes of the boxes."""

    short_edge: int
    max_size: int
    reason: str
    small_side: float  # after resizing, of the smallest fifth of the boxes the largest, in pixels
    remedy: str  # for objects that are too small

    @property
    def warnings(self) -> list[str]:
        """A sentence if objects stay too small to be learned."""
        if self.small_side >= LEAST_SIDE:
            return []
        return [
            f"a fifth of the objects have {self.small_side:.0f} pixels or less where the shorter "
            f"edge of images has {self.short_edge}, which is too small to learn: {self.remedy}"
        ]

    def choices(self) -> list[Choice]:
        return [
            Choice("INPUT.MIN_SIZE_TEST", self.short_edge, self.reason),
            Choice("INPUT.MAX_SIZE_TEST", self.max_size, "of the longer edge"),
            Choice("INPUT.MAX_SIZE_TRAIN", self.max_size, "as in evaluation"),
        ]


def choose_image_size(facts: DatasetFacts, machine: Machine, seconds: float) -> ImageSize:
    """The shorter edge at which the smaller objects have :data:`WANTED_SIDE` pixels, if it can be.

    It is at most twice that of the files, and so small that the time is enough to see every image
    ten times.

    Args:
        facts: of the training set; sizes of images and boxes with an area are known.
        machine: that trains.
        seconds: for training.
    """
    native, aspect = _median_edge(facts), long_aspect(facts)
    small = small_share(facts)

    def megapixels(edge: int) -> float:  # that training sees of an image
        sizes = resized(facts.sizes, edge, _max_size(edge, aspect))
        return seen_megapixels(facts, edge, sizes)

    limits = {
        **_wanted(small),
        "that of the files, doubled": _MOST_UPSCALED * native,
        "as large as the networks of COCO's models see them": _most_edge(aspect),
        **_affordable(facts.num_images, machine, seconds, megapixels),
    }
    reason = min(limits, key=lambda key: limits[key])
    edge = _rounded(limits[reason])
    if limits[reason] < _LEAST_EDGE:
        reason = _reason_for_least(reason)
    remedy = _remedy(edge, native, aspect)
    return ImageSize(edge, _max_size(edge, aspect), reason, round(small * edge, 3), remedy)


def _wanted(small: float) -> dict[str, float]:
    """The edge that the objects need, by the reason for it."""
    edge = WANTED_SIDE / small
    if edge > WANTED_EDGE:
        return {f"the smaller objects then have {WANTED_SIDE} pixels": edge}
    reason = "objects are seen well with less, but what tells them apart is smaller"
    return {reason: float(WANTED_EDGE)}


def _affordable(
    num_images: int, machine: Machine, seconds: float, megapixels: Callable[[int], float]
) -> dict[str, float]:
    """The largest edge that there is time for, by the reason for it.

    Where loading takes most of the time, pixels that cost no more than it are worth theirs.
    """
    wanted = min(max(_EPOCHS * num_images, _LEAST_SEEN), _MOST_SEEN)
    seen = min(wanted, MOST_EPOCHS_OF_FEW * num_images)
    left = seconds / seen - machine.loading_seconds
    reason = (
        f"the largest with which {in_words(seconds)} of training see {seen:,} images; {_LONGER}"
    )
    if left < machine.loading_seconds:
        left = machine.loading_seconds
        reason = (
            "the largest with which the network takes no more time than reading the files; "
            f"{_LONGER}"
        )
    return {reason: _edge_of(left / machine.seconds_per_megapixel, megapixels)}


def _reason_for_least(reason: str) -> str:
    """Why images have the least edge, where ``reason`` wants them smaller."""
    if reason.endswith(_LONGER):
        return f"the smallest, though the time sees them less often than is good; {_LONGER}"
    return "smaller images would leave few cells to the coarser levels of features"


def _remedy(edge: int, native: float, aspect: float) -> str:
    """What makes objects larger that are too small at ``edge``."""
    if edge + _STEP > _MOST_UPSCALED * native:
        return "take images that show them with more pixels"
    tiles = "cut the images into tiles"
    is_largest = edge + _STEP > _most_edge(aspect)
    return tiles if is_largest else f"{tiles}, or give it more time with --budget"


def small_share(facts: DatasetFacts) -> float:
    """The root of the area that a fifth of the boxes stays under, every class counting alike.

    As a share of the shorter edge that images are resized to; of those that are longer than
    :func:`long_aspect` less is left.
    """
    short, long = facts.sizes.min(axis=1), facts.sizes.max(axis=1)
    scales = np.minimum(1 / short, long_aspect(facts) / long)
    sides = np.sqrt(facts.box_sizes.clip(min=0).prod(axis=1)) * scales[facts.image_of]
    is_counted = facts.has_area & ~facts.is_crowd
    sides, classes = sides[is_counted], facts.classes[is_counted]
    weights = 1 / np.bincount(classes)[classes]
    order = np.argsort(sides)
    cumulative = np.cumsum(weights[order])
    return float(sides[order][np.searchsorted(cumulative, _SMALL * cumulative[-1])])


def _median_edge(facts: DatasetFacts) -> float:
    return float(np.median(facts.sizes.min(axis=1)))


def _most_edge(aspect: float) -> float:
    return min(float(_MOST_EDGE), math.sqrt(_MOST_PIXELS / aspect))


def _max_size(edge: int, aspect: float) -> int:
    return math.ceil(edge * aspect / _STEP) * _STEP


def _rounded(edge: float) -> int:
    return max(_LEAST_EDGE, min(round(edge / _STEP) * _STEP, _MOST_EDGE))


def _edge_of(megapixels: float, megapixels_of: Callable[[int], float]) -> float:
    """The largest edge at which training sees no more pixels of an image; 0 without one."""
    edges = range(_LEAST_EDGE, _MOST_EDGE + 1, _STEP)
    return float(max((x for x in edges if megapixels_of(x) <= megapixels), default=0))
