"""What the header of an image file says: its size as it is read, or why it cannot be."""

import os
import stat
import struct
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from ...errors import UserError
from .read_image import has_16_bits, read_image

MISSING = "missing"  # the kind of a bad image
_EXIF_ORIENTATION = 0x0112
_FORMATS_OF_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP"}
# Of other formats some are turned when they are decoded, by some versions of Pillow.
_NEVER_TURNED_BY_PILLOW = ("JPEG", "MPO", "PNG", "WEBP")
_GIT_LFS = b"version https://git-lfs"
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_MOST_BEHIND_END = 2**16
# Keywords of a PNG's texts in which Pillow looks for an orientation.
_PNG_EXIF_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")


class ImageHeader(NamedTuple):
    """An image that can be opened."""

    width: int  # in pixels, after Detectron2 has turned the image as EXIF says
    height: int
    mode: str  # Pillow's: "RGB", "L", "I;16", ...
    orientation: int  # EXIF's, 1 to 8; 1 is unturned
    has_deep_greys: bool  # one channel of 16 bits
    is_transparent: bool  # has an alpha channel, or a transparent colour
    is_animated: bool  # has more than one frame, of which the first is read


class BadImage(NamedTuple):
    """An image file that cannot be opened."""

    kind: str  # what makes two of them the same
    reason: str  # a clause about the file: "is empty (0 bytes)"
    remedy: str  # what to do, without a capital letter and a full stop


def read_header(path: str) -> ImageHeader | BadImage:
    """What ``read_image`` will make of a file, found without decoding it.

    Args:
        path: of a file of this machine.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return BadImage("not a file", "is not a file", "correct its file_name")
        if status.st_size == 0:
            return BadImage("empty", "is empty (0 bytes)", "copy it again")
        with open(path, "rb") as f:
            return _read(path, f, status.st_size)
    except (FileNotFoundError, NotADirectoryError):
        return _missing(path)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        return BadImage("unreadable", reason, "mend its permissions or copy it again")
    except ValueError as error:  # a path that no system has
        return BadImage(MISSING, f"cannot exist ({error})", "correct its file_name")


def _missing(path: str) -> BadImage:
    reason = "does not exist"
    if not os.path.isabs(path):
        reason += f" (it is looked for as {os.path.abspath(path)})"
    remedy = "correct the image folder or its file_name, or remove it"
    return BadImage(MISSING, reason, remedy)


def _read(path: str, f: BinaryIO, num_bytes: int) -> ImageHeader | BadImage:
    try:
        image = Image.open(f)
    except Image.DecompressionBombError as error:
        return BadImage(
            "huge",
            f"is too large for Pillow ({error})",
            "cut it into tiles or make it smaller",
        )
    except Exception:  # whatever Pillow's plugins, and those of others, stumble over
        return _no_image(f, num_bytes)
    width, height = image.size
    orientation = _orientation(image, f)
    if orientation >= 5:  # turned by 90 degrees
        width, height = height, width
    is_turned_by_pillow = orientation >= 5 and image.format not in _NEVER_TURNED_BY_PILLOW
    has_any_range = image.mode in ("I", "F") and not has_16_bits(image.mode, image.format)
    if is_turned_by_pillow or has_any_range or _lacks_end(image, f):
        # Only decoding tells: such images are rare enough.
        try:
            height, width = read_image({"file_name": path}, "RGB").shape[:2]
        except UserError as error:
            reason = str(error).partition(" cannot be read ")[2].rpartition(": ")[0]
            kind, remedy = (
                ("range", "convert it") if has_any_range else ("cut off", "copy it again")
            )
            return BadImage(kind, f"cannot be decoded {reason}", remedy)
    return ImageHeader(
        width,
        height,
        image.mode,
        orientation,
        has_16_bits(image.mode, image.format),
        image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info,
        _is_animated(image),
    )


def _no_image(f: BinaryIO, num_bytes: int) -> BadImage:
    f.seek(0)
    start = f.read(40)
    if start.startswith(_GIT_LFS):
        return BadImage("git lfs", "is a pointer of Git LFS, not an image", "run git lfs pull")
    for signature, name in _FORMATS_OF_SIGNATURES.items():
        if start.startswith(signature):
            return BadImage(
                "cut off",
                f"begins as a {name} but is damaged or cut off after {num_bytes:,} bytes",
                "copy it again",
            )
    return BadImage(
        "no image",
        f"is not an image that Pillow can read (it begins with {start[:16]!r})",
        "convert it to JPEG or PNG, or remove it",
    )


def _orientation(image: Image.Image, f: BinaryIO) -> int:
    """EXIF's orientation where Detectron2 acts on it, else 1."""
    try:
        if image.format == "PNG" and "exif" not in image.info and not _has_late_exif(f):
            # Pillow would decode a PNG to look behind its pixels.
            exif = Image.Image.getexif(image)
        else:
            exif = image.getexif()
    except Exception:  # as Detectron2, which then leaves the image as it is
        return 1
    orientation: Any = exif.get(_EXIF_ORIENTATION)
    return orientation if orientation in range(2, 9) else 1


def _has_late_exif(f: BinaryIO) -> bool:
    """Whether a PNG may have an orientation behind its pixels; ``f`` stays in place."""
    place = f.tell()
    try:
        f.seek(8)
        is_behind = False
        while len(head := f.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            end = f.tell() + length + 4
            if name == b"IDAT":
                is_behind = True
            elif is_behind and (name == b"eXIf" or f.read(80).startswith(_PNG_EXIF_KEYWORDS)):
                return True
            f.seek(end)
        return False
    finally:
        f.seek(place)


def _lacks_end(image: Image.Image, f: BinaryIO) -> bool:
    """Whether a file may be cut off: the end of its format is not where it belongs."""
    end = _ENDS.get(image.format or "")
    if end is None:
        return False
    place = f.tell()
    try:
        f.seek(-len(end), os.SEEK_END)
        if f.read() == end:
            return False
        # Some programs write something behind it.
        f.seek(max(0, f.tell() - _MOST_BEHIND_END))
        return end not in f.read()
    finally:
        f.seek(place)


def _is_animated(image: Image.Image) -> bool:
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # frames that are damaged; the first one is all that is read
        return False
