"""What a data set has, as numbers: read by its checks and by reports."""

import itertools
import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from .findings import image_named
from .images.header_cache import read_headers
from .images.image_headers import BadImage, ImageHeader

_EMPTY = 1e-5  # pixels, of Detectron2's Boxes.nonempty


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Which of the boxes (M, 4), (x1, y1, x2, y2), training does not drop; (M,) bool."""
    return np.all(boxes[:, 2:] - boxes[:, :2] > _EMPTY, axis=1)


@dataclass
class DatasetFacts:
    """A data set whose annotations could be read; its arrays are over all M annotations."""

    name: str
    source: str  # what findings call it: "the annotation file train.json of my_train"
    class_names: list[str]
    images: list[dict[str, Any]]  # Detectron2's dataset dicts, not to be changed
    is_annotated: bool = True
    called: str = ""  # see register_coco_json; then source is the same

    @property
    def image_source(self) -> str:
        """What findings call its images."""
        return self.called or f"the images of {self.name}"

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def num_boxes(self) -> int:
        """Crowds and ignored boxes not counted."""
        return len(self.is_crowd) - self.num_crowds

    @property
    def num_crowds(self) -> int:
        """Boxes with ``iscrowd`` 1, which are those of ``ignore`` 1, too."""
        return int(self.is_crowd.sum())

    @property
    def class_counts(self) -> list[int]:
        """Boxes of each class, without crowds."""
        counted = self.classes[~self.is_crowd]
        return np.bincount(counted, minlength=len(self.class_names)).tolist()

    @cached_property
    def annotations(self) -> list[dict[str, Any]]:
        """All M annotations, image after image."""
        return list(itertools.chain.from_iterable(map(_annotations, self.images)))

    @cached_property
    def image_of(self) -> np.ndarray:
        """Of each annotation, the index of its image; (M,) int."""
        counts = [len(_annotations(image)) for image in self.images]
        return np.repeat(np.arange(len(self.images)), counts)

    @cached_property
    def boxes(self) -> np.ndarray:
        """(M, 4) float64, (x1, y1, x2, y2) in pixels of the image file."""
        boxes = np.array([a["bbox"] for a in self.annotations], np.float64).reshape(-1, 4)
        xywh = BoxMode.XYWH_ABS
        has_sizes = [a["bbox_mode"] is xywh for a in self.annotations]
        boxes[has_sizes, 2:] += boxes[has_sizes, :2]
        return boxes

    @cached_property
    def box_sizes(self) -> np.ndarray:
        """(M, 2) float64, width and height in pixels."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    @cached_property
    def has_area(self) -> np.ndarray:
        """(M,) bool; training drops the other boxes."""
        return has_area(self.boxes)

    @cached_property
    def classes(self) -> np.ndarray:
        """(M,) int, 0 to K - 1."""
        return np.array([a["category_id"] for a in self.annotations], np.int64)

    @cached_property
    def is_crowd(self) -> np.ndarray:
        """(M,) bool, also of ignored boxes."""
        return np.array([a.get("iscrowd", 0) for a in self.annotations], bool)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(N, 2) float64, width and height of the N images as they are read.

        Where the data do not say them, those of the files; NaN where these do not, either.
        """
        sizes = [(image.get("width", np.nan), image.get("height", np.nan)) for image in self.images]
        array = np.array(sizes, np.float64).reshape(-1, 2)
        for i in np.flatnonzero(np.isnan(array).any(axis=1)):
            header = self.headers[i]
            if isinstance(header, ImageHeader):
                array[i] = header.width, header.height
        return array

    @cached_property
    def headers(self) -> list[ImageHeader | BadImage | None]:
        """Of the N image files, read once; see :func:`read_headers`."""
        return read_headers([os.fspath(image["file_name"]) for image in self.images])

    @cached_property
    def boxes_per_image(self) -> np.ndarray:
        """(N,) int, without crowds."""
        return np.bincount(self.image_of[~self.is_crowd], minlength=len(self.images))

    def describe(self, index: int) -> str:
        """An annotation as findings name it: ``annotation 106 (a.jpg) has bbox [1, 2, 3, 4]``."""
        annotation, image = self.annotations[index], self.images[self.image_of[index]]
        file_name = os.path.basename(image["file_name"])
        bbox = [round(float(x), 2) for x in annotation["bbox"]]
        if "id" in annotation and not self.called:
            return f"annotation {annotation['id']} ({file_name}) has bbox {bbox}"
        number = index - int(np.searchsorted(self.image_of, self.image_of[index]))
        return f"box {number + 1} of {file_name} has bbox {bbox}"

    def describe_image(self, index: int) -> str:
        """An image as findings name it: ``image 7 (a.jpg)``."""
        image = self.images[index]
        return f"image {image['file_name']}" if self.called else image_named(image)

    def files(self) -> Counter[str]:
        """How often each file is an image of this data set, by its absolute path."""
        return Counter(os.path.abspath(image["file_name"]) for image in self.images)


def _annotations(image: dict[str, Any]) -> list[dict[str, Any]]:
    return image.get("annotations", [])
