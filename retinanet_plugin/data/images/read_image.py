"""Image files read as Detectron2 reads them, but 16 bits scaled to 8, and errors as sentences."""

import struct
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ...errors import UserError

_JPEG_SHRINKS = (8, 4, 2)  # that decoders of JPEG have
_ORIENTATION, _SIDEWAYS = 274, (5, 6, 7, 8)  # of EXIF


def read_image(record: dict[str, Any], image_format: str, enough: int = 0) -> np.ndarray:
    """The picture of a record of Detectron2's data sets, in the size that its annotations have.

    8-bit colours and greys are read as ``detection_utils.read_image`` does: turned by their EXIF
    orientation, without alpha (transparent pixels have the colour that the file gives them), CMYK
    and palettes as Pillow converts them. Greys of 16 bits are scaled, 65535 to 255, where Pillow
    would make all above 255 white; of 16-bit colours Pillow itself keeps the high bytes.

    Args:
        record: with ``file_name``; ``image_id``, which images without annotations lack, names the
            image in messages. ``width`` and ``height`` are compared, and set where they are
            missing.
        image_format: ``INPUT.FORMAT``.
        enough: pixels of the longer edge that are enough. Of a JPEG file of two, four or eight
            times as many only these are decoded, which is fast; 0: all pixels.

    Returns:
        (H, W, C), uint8; float for the format YUV-BT.601.

    Raises:
        UserError: the file cannot be read, has pixels that no scale is known for, or is not of the
            annotations' size.
    """
    try:
        with PathManager.open(record["file_name"], "rb") as f:
            picture, size = _decoded(f, enough)
        image = detection_utils.convert_PIL_to_numpy(picture, image_format)
    except Exception as error:  # decoders raise anything for a damaged file
        raise UserError(
            f"{_name(record)} cannot be read ({_reason(error)}): {_remedy(record, error)}"
        ) from error
    _check_size(record, np.broadcast_to(image[:1, :1], (size[1], size[0], *image.shape[2:])))
    return image


def _name(record: dict[str, Any]) -> str:
    image_id = f" (id {record['image_id']})" if "image_id" in record else ""
    return f"the image {record['file_name']}{image_id}"


def _remedy(record: dict[str, Any], error: Exception) -> str:
    if "image_id" in record:
        return "replace the file, or remove it from the annotations"
    is_missing = isinstance(error, FileNotFoundError)
    return "correct the path" if is_missing else "replace the file, or leave it out"


def _decoded(file: Any, enough: int) -> tuple[Image.Image, tuple[int, int]]:
    """The picture in ``file``, 8 bits a channel, turned by its EXIF orientation; width and height
    that it has in whole."""
    picture = Image.open(file)
    size = picture.size
    if enough and picture.format == "JPEG":
        shrink = next((x for x in _JPEG_SHRINKS if max(size) >= x * enough), 1)
        picture.draft(picture.mode, (size[0] // shrink, size[1] // shrink))
    is_shrunk = picture.size != size
    picture.load()
    file_type = picture.format
    turned = picture
    if file_type != "TIFF":  # which Pillow turns itself
        turned = detection_utils._apply_exif_orientation(picture)
    if not is_shrunk:
        size = turned.size
    elif picture.getexif().get(_ORIENTATION) in _SIDEWAYS:
        size = size[::-1]
    return _to_8_bits(turned, file_type), size


def _to_8_bits(picture: Image.Image, file_type: str | None) -> Image.Image:
    if has_16_bits(picture.mode, file_type):
        values = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # v * 255 / 65535, rounded
    if picture.mode in ("I", "F"):
        _check_range(np.asarray(picture))
    return picture


def has_16_bits(mode: str, file_type: str | None) -> bool:
    """Whether a picture of Pillow's ``mode`` has greys of 16 bits."""
    # Older versions of Pillow have the mode I for 16-bit PNGs.
    return mode.startswith("I;16") or (mode == "I" and file_type in ("PNG", "PPM"))


def _check_range(values: np.ndarray) -> None:
    """Refuse values of signed, 32-bit or fractional pixels that are not those of 8 bits.

    They may mean anything, and a scale that depended on each picture's own values would make
    pictures of one data set unlike.
    """
    low, high = values.min(), values.max()
    is_fraction = values.dtype.kind == "f" and 0 < high <= 1
    if is_fraction or not (0 <= low and high <= 255):
        raise ValueError(
            f"its pixels have no known range and values from {low:g} to {high:g}: save it with 8 "
            "or 16 bits, without a sign"
        )


def _check_size(record: dict[str, Any], image: np.ndarray) -> None:
    try:
        detection_utils.check_image_size(record, image)
    except detection_utils.SizeMismatchError as error:
        height, width = image.shape[:2]
        expected = record["width"], record["height"]
        turned = ", by its EXIF orientation perhaps," if expected == (height, width) else ""
        raise UserError(
            f"{_name(record)} is {width} x {height} pixels{turned} but its annotations are for "
            f"{expected[0]} x {expected[1]}: correct the width and height of its entry, and the "
            "boxes with them if they are of another picture"
        ) from error


def _reason(error: Exception) -> str:
    """What a decoder or the file system says, on one line and without the object's address."""
    if isinstance(error, UnidentifiedImageError):
        return "no type of image that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, Pillow's limit"
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, struct.error):
        return "damaged"
    return " ".join(str(error).split()) or type(error).__name__
