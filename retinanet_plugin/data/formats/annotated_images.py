"""Images with their boxes, whatever format they came in."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..findings import counted


class Box(NamedTuple):
    """An object: corners in absolute pixels, (0, 0) the upper left corner of the first pixel.

    ``ignored`` marks what is neither object nor background: COCO's crowds and ``ignore``, Pascal
    VOC's ``difficult``, groups of Open Images.
    """

    label: str  # a class name
    x1: float
    y1: float
    x2: float
    y2: float
    ignored: bool = False


@dataclass
class AnnotatedImage:
    """An image file and its objects; size in pixels as Detectron2 reads it (turned by EXIF)."""

    file_name: str  # absolute
    boxes: list[Box] = field(default_factory=list)
    width: int = 0  # 0 until it is known
    height: int = 0
    split: str = ""  # "train", "val" or "test" where the source says so


@dataclass
class AnnotatedImages:
    """A data set. No image is in it twice, no class name either."""

    format: str  # "COCO", "YOLO", ...
    class_names: list[str]  # in the order of the source's class ids, or of the alphabet
    images: list[AnnotatedImage]
    notes: list[str] = field(default_factory=list)  # sentences about what was read, to be printed

    @property
    def image_folder(self) -> str:
        """The deepest folder that all images are in."""
        return os.path.commonpath([os.path.dirname(image.file_name) for image in self.images])

    @property
    def num_boxes(self) -> int:
        """Of all images, ignored ones included."""
        return sum(len(image.boxes) for image in self.images)

    def boxes_per_class(self) -> dict[str, int]:
        """The number of boxes of every class, ignored ones included."""
        count = Counter(box.label for image in self.images for box in image.boxes)
        return {name: count[name] for name in self.class_names}

    def with_images(self, images: list[AnnotatedImage]) -> "AnnotatedImages":
        """The same classes, with some of the images."""
        return replace(self, images=images)

    def to_coco(self, first_image_id: int = 1) -> dict[str, Any]:
        """COCO's format: other ids from 1, ``file_name`` relative to :attr:`image_folder`."""
        folder = self.image_folder if self.images else ""
        id_of = {name: i for i, name in enumerate(self.class_names, 1)}
        annotations: list[dict[str, Any]] = []
        for image_id, image in enumerate(self.images, first_image_id):
            for box in image.boxes:
                width, height = box.x2 - box.x1, box.y2 - box.y1
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": id_of[box.label],
                        "bbox": [plain(x) for x in (box.x1, box.y1, width, height)],
                        "area": plain(width * height),
                        "iscrowd": int(box.ignored),
                    }
                )
        return {
            "images": [
                {
                    "id": image_id,
                    "file_name": os.path.relpath(image.file_name, folder),
                    "width": image.width,
                    "height": image.height,
                }
                for image_id, image in enumerate(self.images, first_image_id)
            ],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for name, i in id_of.items()],
        }


def plain(number: float) -> float:
    """An integer where it is one, so that files do not fill with ``.0``."""
    return int(number) if number == int(number) else number


def without_area(number: int) -> list[str]:
    """A note on shapes that were left out, if there were any."""
    were = counted(number, "shape that is a point or line was", "points or lines were")
    return [f"{were} left out: they have no area"] if number else []


def class_names_of(images: Iterable[AnnotatedImage]) -> list[str]:
    """The names that boxes have, in the order of the alphabet: for formats that list no classes."""
    return sorted({box.label for image in images for box in image.boxes})
