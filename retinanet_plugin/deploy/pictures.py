"""Files, folders and arrays as the inputs of a model, prepared as evaluation prepares them."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image, ImageOps

from ..data.images.read_image import has_16_bits, read_image
from ..errors import UserError
from ..whole_files import write_whole_file

Source = str | os.PathLike[str] | np.ndarray | Image.Image
SOURCE_TYPES = (str, os.PathLike, np.ndarray, Image.Image)
ORDERS = ("BGR", "RGB")


class Preprocessing(NamedTuple):
    """From a picture to the input of a model: the fields are keys of ``INPUT`` in a config."""

    format: str
    min_size_test: int
    max_size_test: int

    @classmethod
    def of(cls, cfg: CfgNode) -> "Preprocessing":
        return cls(cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def prepare(self, source: Source, order: str = "BGR") -> dict[str, Any]:
        """What ``RetinaNetMapper`` makes of a file in evaluation, and the same of an array.

        Args:
            source: see :func:`picture_of`.
            order: of an array's channels.

        Returns:
            ``image`` (C, H, W), resized; ``height`` and ``width`` of the picture.

        Raises:
            UserError: the file cannot be read, the array is no picture, or nothing is left of it.
        """
        picture = picture_of(source, self.format, order)
        height, width = picture.shape[:2]
        resized = T.AugInput(picture)
        try:
            T.ResizeShortestEdge(self.min_size_test, self.max_size_test, "choice")(resized)
        except ValueError as error:
            name = f"the image {source}" if isinstance(source, str | os.PathLike) else "an image"
            raise UserError(
                f"{name} is {width} x {height} pixels, and none would be left of its shorter edge "
                "after resizing: cut it into pieces, or leave it out"
            ) from error
        image = torch.as_tensor(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        return {"image": image, "height": height, "width": width}


def picture_of(source: Source, image_format: str, order: str) -> np.ndarray:
    """A file, an array or an image of Pillow with the channels that a model was trained with.

    Args:
        source: the path of a file, an array as :func:`to_picture` takes it, or an image of Pillow,
            which is turned by its EXIF orientation.
        image_format: ``INPUT.FORMAT``.
        order: of an array's channels.

    Raises:
        UserError: the file cannot be read, or it is no image.
    """
    if isinstance(source, Image.Image):
        source, order = _array_of(source), "RGB"
    if isinstance(source, np.ndarray):
        return to_picture(source, image_format, order)
    if isinstance(source, str | os.PathLike):
        return read_image({"file_name": os.fspath(source)}, image_format)
    raise UserError(
        f"an image is of type {type(source).__name__}: give the path of a file or a folder, a "
        "numpy array, an image of Pillow, or a list of these; of an iterator, Predictor.stream"
    )


def _array_of(image: Image.Image) -> np.ndarray:
    """Of 16 bits, of 8 bits, or of what :func:`to_picture` refuses."""
    turned = ImageOps.exif_transpose(image)
    if has_16_bits(turned.mode, image.format):
        return np.asarray(turned).astype(np.uint16)
    return np.asarray(turned if turned.mode in ("I", "F") else turned.convert("RGB"))


def to_picture(array: np.ndarray, image_format: str, order: str) -> np.ndarray:
    """An array with the channels that a model was trained with, as if it had been read from a file.

    Args:
        array: (H, W) or (H, W, 1), grey; (H, W, 3), colours in ``order``; (H, W, 4), with alpha
            last, which is dropped. uint8, or uint16 over its full range.
        image_format: ``INPUT.FORMAT``.
        order: "BGR", as OpenCV and Detectron2 have it, or "RGB".

    Returns:
        (H, W, C), uint8; float for the format YUV-BT.601.

    Raises:
        UserError: another shape or type.
    """
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not has_shape or not array.size or array.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"an image is an array of shape {array.shape}, {array.dtype}: give (height, width), or "
            "(height, width, channels) with 1, 3 or 4 channels, of uint8 or uint16; of floats from "
            "0 to 1, (255 * array).astype(numpy.uint8)"
        )
    if array.ndim == 3:
        array = array[:, :, 0] if array.shape[2] == 1 else array[:, :, :3]
    if array.dtype == np.uint16:  # as files are read: greys are rounded, of colours Pillow cuts
        is_grey = array.ndim == 2
        array = ((array.astype(np.uint32) + 128) // 257 if is_grey else array >> 8).astype(np.uint8)
    if array.ndim == 3 and order == "BGR":
        array = array[:, :, ::-1]
    picture = Image.fromarray(np.ascontiguousarray(array))
    return np.asarray(convert_PIL_to_numpy(picture, image_format))


def write_jpeg(path: str, picture: np.ndarray) -> None:
    """Write (H, W, 3), BGR, uint8.

    Raises:
        UserError: the file cannot be written.
    """
    image = Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1]))
    write_whole_file(path, lambda file: image.save(file, "JPEG", quality=95))


def images_in(folder: str) -> list[str]:
    """The paths of a folder's images, sorted; not those of folders in it.

    Raises:
        UserError: there are none.
    """
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    known -= {".pdf", ".mpg", ".mpeg"}
    names = sorted(
        entry.name
        for entry in os.scandir(folder)
        if os.path.splitext(entry.name)[1].lower() in known
        and not entry.name.startswith(".")  # as of macOS, which puts them beside each file
        and entry.is_file()
    )
    if not names:
        raise UserError(
            f"the folder {folder} has no images (those of folders in it are not looked for): give "
            f"one that has, or files by a glob such as '{os.path.join(folder, '**', '*.jpg')}'"
        )
    return [os.path.join(folder, name) for name in names]


def sources_of(images: Source | Sequence[Source]) -> list[Source]:
    """What a predictor is called with, as a list: a folder is its images.

    Raises:
        UserError: a folder has none.
    """
    given: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    sources: list[Source] = []
    for source in given:
        if isinstance(source, str | os.PathLike) and os.path.isdir(source):
            sources += images_in(os.fspath(source))
        else:
            sources.append(source)
    return sources
