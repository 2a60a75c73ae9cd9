"""The image files of data sets: what is wrong with them, found from their headers."""

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from ..dataset_facts import DatasetFacts
from ..findings import Findings, image_named, shown
from .header_cache import read_headers
from .image_headers import MISSING, BadImage, ImageHeader
from .missing_files import meant_instead
from .pixel_checks import check_pixels

logger = logging.getLogger("detectron2.image_files")

_SKIP = "or set DATASETS.SKIP_BAD_IMAGES True to leave such images out"
# What Detectron2's reading makes of a mode where that is not what a viewer shows.
_CHANGED_MODES = {
    "CMYK": "has the colours of print (CMYK), which become other colours than in a viewer",
}


@dataclass
class ImageFacts:
    """What the headers of a data set's images say."""

    num_images: int = 0
    bad: dict[int, str] = field(default_factory=dict)  # why, by the image's index
    num_remote: int = 0  # not files of this machine: not looked at
    modes: Counter[str] = field(default_factory=Counter)  # of Pillow
    num_turned: int = 0  # by EXIF
    num_transparent: int = 0
    num_animated: int = 0


def check_image_files(datasets: dict[str, DatasetFacts], cfg: CfgNode) -> None:
    """Refuse image files that cannot be read or are not of their annotations' size; warn of others.

    Args:
        datasets: of :func:`retinanet_plugin.data.checks.check_datasets`.
        cfg: of the training or evaluation.

    Raises:
        UserError: the first error, with the number of others.
    """
    findings, _ = inspect_image_files(datasets, cfg)
    findings.tell(logger)


def inspect_image_files(
    datasets: dict[str, DatasetFacts], cfg: CfgNode
) -> tuple[Findings, dict[str, ImageFacts]]:
    """Read the headers of all images of data sets.

    Args:
        datasets: by their names.
        cfg: with ``DATASETS.SKIP_BAD_IMAGES``, bad images are warnings instead of errors.

    Returns:
        what Detectron2 would choke on, or read as something else than meant; and of each data set
        what its images are.
    """
    findings = Findings()
    facts = {name: _inspect(dataset, cfg, findings) for name, dataset in datasets.items()}
    return findings, facts


def _inspect(dataset: DatasetFacts, cfg: CfgNode, findings: Findings) -> ImageFacts:
    facts = ImageFacts(dataset.num_images)
    source = dataset.image_source
    skips = cfg.DATASETS.SKIP_BAD_IMAGES
    left_out = left_out_remedy(dataset.name, cfg)
    any_missing = False
    for index, (image, header) in enumerate(zip(dataset.images, dataset.headers)):
        if header is None:
            facts.num_remote += 1
            continue
        bad = bad_image(image, header)
        if bad is not None:
            if bad.kind == MISSING and not any_missing:
                any_missing, bad = True, _explained(image["file_name"], bad)
            facts.bad[index] = bad.reason
            example = f"{dataset.describe_image(index)} {bad.reason}"
            if skips:
                findings.warn(bad.kind, source, example, left_out)
            else:
                findings.error(bad.kind, source, example, f"{bad.remedy}, {_SKIP}")
        if isinstance(header, ImageHeader):
            _note(facts, header)
            _warn_of_changes(findings, source, dataset.describe_image(index), header)
    check_pixels(dataset, findings)
    if skips and facts.bad:
        what = ""
        if len(facts.bad) == facts.num_images:
            what = "none of them can be used"
        elif dataset.name in cfg.DATASETS.TRAIN and not count_trained(dataset, facts, cfg):
            what = "none that has an object can be used"
        if what:
            findings.error("all bad", source, what, "see the warnings")
    return facts


def left_out_remedy(name: str, cfg: CfgNode) -> str:
    """What is said of an image that DATASETS.SKIP_BAD_IMAGES leaves out of a data set."""
    if name in cfg.DATASETS.TEST:
        return "it is left out, and evaluation counts its objects as not found"
    return "it is left out"


def bad_image(image: dict[str, Any], header: ImageHeader | BadImage) -> BadImage | None:
    """What makes an image useless: its file, or a size that its annotations are not of.

    Args:
        image: a record of a data set.
        header: of its file.
    """
    if isinstance(header, BadImage):
        return header
    width, height = image.get("width", header.width), image.get("height", header.height)
    if (width, height) == (header.width, header.height):
        return None
    its_size = f"{header.width} x {header.height} pixels"
    said = f"width {shown(width)} and height {shown(height)}"
    if header.orientation >= 5 and (height, width) == (header.width, header.height):
        return BadImage(
            "turned",
            f"has {said} in its annotations, but its EXIF orientation {header.orientation} turns "
            f"it to {its_size} when it is read",
            f"write width {header.width} and height {header.height} and turn its boxes, or save "
            "the image without EXIF",
        )
    return BadImage(
        "size",
        f"has {its_size}, but {said} in its annotations",
        f"write width {header.width} and height {header.height} if its boxes are of this image, "
        "or put the right file there",
    )


def _warn_of_changes(findings: Findings, source: str, image: str, header: ImageHeader) -> None:
    changed = _CHANGED_MODES.get(header.mode)
    if changed:
        findings.warn(header.mode, source, f"{image} {changed}", "convert it to RGB")
    if header.is_animated:
        findings.warn(
            "animated",
            source,
            f"{image} has several frames or pages, of which only the first is read",
            "save the one that its boxes are of as an image of its own",
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit and header.width * header.height > limit:
        findings.warn(
            "huge",
            source,
            f"{image} is huge, {header.width} x {header.height} pixels, of which "
            f"Pillow warns, and which it refuses from {2 * limit:,} pixels",
            "cut it into tiles or make it smaller",
        )


def _explained(path: str, missing: BadImage) -> BadImage:
    """What is said of a missing file, with the one that was probably meant."""
    other = meant_instead(path)
    if other:
        return missing._replace(reason=f"{missing.reason}, but {other} does")
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        return missing._replace(reason=f"{missing.reason}, nor does its folder")
    return missing


def _note(facts: ImageFacts, header: ImageHeader) -> None:
    facts.modes[header.mode] += 1
    facts.num_turned += header.orientation > 1
    facts.num_transparent += header.is_transparent
    facts.num_animated += header.is_animated


def count_trained(dataset: DatasetFacts, images: ImageFacts | None, cfg: CfgNode) -> int:
    """How many images of a data set a training takes.

    Args:
        dataset: of ``DATASETS.TRAIN``.
        images: its files; None: they are taken to be good.
        cfg: of the training.
    """
    is_trained = np.ones(dataset.num_images, bool)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        is_trained = dataset.boxes_per_image > 0
    if cfg.DATASETS.SKIP_BAD_IMAGES and images is not None:
        is_trained[list(images.bad)] = False
    return int(is_trained.sum())


def without_bad_images(images: list[dict[str, Any]], cfg: CfgNode) -> list[dict[str, Any]]:
    """Records of data sets that a loader can use.

    Args:
        images: the records; ``width`` and ``height`` are added where they are missing.
        cfg: with ``DATASETS.SKIP_BAD_IMAGES``, images that are bad by their headers are left out,
            counted and named in a warning.

    Returns:
        ``images``, or those that are left.
    """
    skip_bad = cfg.DATASETS.SKIP_BAD_IMAGES
    if not skip_bad and all("width" in x and "height" in x for x in images):
        return images
    good, bad = [], []
    for image, header in zip(images, read_headers([os.fspath(x["file_name"]) for x in images])):
        problem = None if header is None else bad_image(image, header)
        if isinstance(header, ImageHeader):
            image.setdefault("width", header.width)
            image.setdefault("height", header.height)
        if problem is None or not skip_bad:
            good.append(image)
        else:
            bad.append(f"{image_named(image)} {problem.reason}")
    if bad:
        logger.warning(
            f"{len(bad):,} of {len(images):,} images are left out, as DATASETS.SKIP_BAD_IMAGES "
            f"asks; the first: {bad[0]}"
        )
    return good
