"""Whole image files decoded as training will, to find those that only fail in the middle."""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

from ...errors import UserError
from ..dataset_facts import DatasetFacts
from ..findings import Findings, one_line
from .image_files import ImageFacts, left_out_remedy
from .many_files import each_of
from .read_image import read_image

# What of a record names an image and its size: annotations need not go to another process.
_KEYS = ("file_name", "image_id", "width", "height")
# Decoding takes long enough for processes of its own.
_MIN_IMAGES = 64


class Decoded(NamedTuple):
    """How a file was decoded."""

    error: str = ""  # the sentence; "" if there was none
    warning: str = ""  # the first one of the decoder


def decode_images(
    dataset: DatasetFacts, facts: ImageFacts, cfg: CfgNode, findings: Findings
) -> int:
    """Decode every image of a data set whose header is good.

    Args:
        dataset: of :func:`retinanet_plugin.data.checks.inspect_datasets`.
        facts: of its headers; images that cannot be decoded are added to ``bad``.
        cfg: with ``INPUT.FORMAT``.
        findings: is added to, image after image, so that it can be read after Ctrl-C.

    Returns:
        how many were decoded or found bad.
    """
    indices = [i for i in range(dataset.num_images) if i not in facts.bad]
    records = [{k: v for k, v in dataset.images[i].items() if k in _KEYS} for i in indices]
    function = partial(_decode, image_format=cfg.INPUT.FORMAT)
    source = dataset.image_source
    results = each_of(function, records, f"decoding images of {dataset.name}", _MIN_IMAGES, 8)
    for index, record, decoded in zip(indices, records, results):
        if decoded.error:
            what, _, remedy = decoded.error.rpartition(": ")
            facts.bad[index] = what
            if cfg.DATASETS.SKIP_BAD_IMAGES:
                findings.warn(_kind(what), source, what, left_out_remedy(dataset.name, cfg))
            else:
                findings.error(_kind(what), source, what, remedy)
        elif decoded.warning:
            what = f"the image {record['file_name']} is read with a warning ({decoded.warning})"
            findings.warn(
                _kind(decoded.warning),
                source,
                what,
                "look at it, and copy it again if it is damaged",
            )
    return len(records)


def _decode(record: dict[str, Any], image_format: str) -> Decoded:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            read_image(record, image_format)
        except UserError as error:
            return Decoded(error=str(error))
    if caught:
        return Decoded(warning=one_line(str(caught[0].message)))
    return Decoded(warning=_libjpeg_warning(record["file_name"]))


def _libjpeg_warning(path: str) -> str:
    """What libjpeg says of pixels that it made up; Pillow, which uses it too, keeps that quiet.

    Nothing where OpenCV is not installed, which prints it.
    """
    try:
        import cv2
    except ImportError:
        return ""
    content = np.fromfile(path, np.uint8)
    if content[:3].tobytes() != b"\xff\xd8\xff":
        return ""
    with _printed_by_c() as printed:
        cv2.imdecode(content, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    return printed[0] if printed else ""


@contextlib.contextmanager
def _printed_by_c() -> Iterator[list[str]]:
    """The lines that libraries print on stderr, past Python, until the context ends."""
    printed: list[str] = []
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with tempfile.TemporaryFile() as f:
            os.dup2(f.fileno(), 2)
            try:
                yield printed
            finally:
                os.dup2(stderr, 2)
                f.seek(0)
                printed += f.read().decode(errors="replace").splitlines()
    finally:
        os.close(stderr)


def _kind(text: str) -> str:
    """What makes two messages the same: not the names and numbers in them."""
    reason = re.search(r"\((?!id )(.*)\)$", text)
    return re.sub(r"\d+", "N", reason.group(1) if reason else text.partition(" is ")[2])
