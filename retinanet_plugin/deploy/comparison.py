"""Whether an exported model detects what the model of PyTorch does."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances

from ..errors import UserError
from .average_precision import average_precision
from .pictures import Source
from .predictor import Predictor
from .torch_network import TorchNetwork

_MOST_SCORE, _MOST_PIXELS = 1e-4, 0.1
# Of the pictures that are made up where none are given.
_SIZES = ((240, 320), (320, 240), (200, 400))


class Comparison(NamedTuple):
    """Differences over all images, and the seconds that an image takes."""

    num_images: int
    num_detections: int  # of PyTorch
    num_found: int  # of the exported model
    unlike: int  # images in which it detects another number, or other classes
    broken: int  # images with NaN in what either detects
    score: float  # the largest difference in the other images
    pixels: float
    seconds: tuple[float, float]  # of PyTorch, and of the exported model: medians
    precisions: tuple[float, float] | None  # AP in percent, of both; None: there was no truth

    def refuse_unless_equal(self, path: str) -> None:
        """
        Raises:
            UserError: the model detects something else.
        """
        is_equal = self.score <= _MOST_SCORE and self.pixels <= _MOST_PIXELS
        if self.unlike or self.broken or not is_equal:
            raise UserError(
                f"{path} would not detect the same ({self}), and is not kept: report it with your "
                "config"
            )

    def __str__(self) -> str:
        before, after = self.seconds
        found = f"{self.num_found:,} detections in {self.num_images} images, "
        if self.unlike or self.broken:
            found += f"PyTorch {self.num_detections:,}"
            if self.unlike:
                found += f", others in {self.unlike} of {self.num_images} images"
            if self.broken:
                found += f", NaN in {self.broken} of {self.num_images} images"
        else:
            found += f"the same within {self.score:.1e} in score and {self.pixels:.1e} px"
        found += f"; {after:.3f} s an image, PyTorch {before:.3f} s"
        if self.precisions:
            found += f"; AP {self.precisions[1]:.1f}, PyTorch {self.precisions[0]:.1f}"
        return found


def compare(
    network: TorchNetwork, exported: Predictor, images: Sequence[Source], truth: str = ""
) -> Comparison:
    """Detect in the same images with both.

    Args:
        images: files; none: three pictures that are made up.
        truth: an annotation file in COCO's format that has these files; "": none.

    Raises:
        UserError: an image cannot be read, or ``truth`` does not go with images or model.
    """
    if not images:
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES]
    unequal: list[tuple[float, float]] = []
    both: tuple[list[Instances], list[Instances]] = [], []
    times: tuple[list[float], list[float]] = [], []
    for image in images:
        start = time.perf_counter()
        (expected,) = network.detect([network.preprocessing.prepare(image)])
        middle = time.perf_counter()
        (found,) = exported([image])
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
        both[0].append(expected)
        both[1].append(found)
        unequal.append(differences(expected, found))
    like = [of_image for of_image in unequal if math.isfinite(of_image[0])]
    score, pixels = map(max, zip((0.0, 0.0), *like))
    unlike = sum(math.isinf(of_image[0]) for of_image in unequal)
    broken = len(unequal) - len(like) - unlike
    medians = (statistics.median(times[0]), statistics.median(times[1]))
    counts = [sum(map(len, found)) for found in both]
    precisions = None
    if truth:
        files = [str(image) for image in images]
        before, after = (average_precision(truth, files, x, network.class_names) for x in both)
        precisions = before, after
    return Comparison(
        len(images), counts[0], counts[1], unlike, broken, score, pixels, medians, precisions
    )


def differences(expected: Instances, found: Instances) -> tuple[float, float]:
    """The largest in score and in pixels between detections and their counterparts.

    That is the nearest box of the class that is no other's: of scores that are equal but for
    rounding, either can come first. Both are infinite if the numbers or classes are others, and
    NaN if a box or score is.
    """
    if len(expected) != len(found):
        return math.inf, math.inf
    boxes, others = expected.pred_boxes.tensor, found.pred_boxes.tensor
    distances = (boxes[:, None] - others).abs().amax(-1)
    distances[expected.pred_classes[:, None] != found.pred_classes] = math.inf
    score = pixels = 0.0
    for i in range(len(expected)):
        nearest = int(distances[i].argmin())
        of_box = float(distances[i, nearest])
        of_score = float(abs(expected.scores[i] - found.scores[nearest]))
        if math.isnan(of_box) or math.isnan(of_score):  # max() would pass over it
            return math.nan, math.nan
        if math.isinf(of_box):
            return math.inf, math.inf
        pixels, score = max(pixels, of_box), max(score, of_score)
        distances[:, nearest] = math.inf
    return score, pixels
