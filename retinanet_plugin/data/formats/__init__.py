"""Annotated images in the formats that annotation tools write: read, told apart, written.

:func:`read_dataset` is where to start; docs/formats.md has the conventions of each format.
"""

from .annotated_images import AnnotatedImage, AnnotatedImages, Box
from .read_dataset import read_dataset
from .write_dataset import FORMATS, write_dataset

__all__ = [
    "FORMATS",
    "AnnotatedImage",
    "AnnotatedImages",
    "Box",
    "read_dataset",
    "write_dataset",
]
