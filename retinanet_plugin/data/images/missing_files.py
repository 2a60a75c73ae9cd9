"""Image files that are not there, and those that were probably meant."""

import ntpath
import os
from collections.abc import Iterator

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".JPG", ".JPEG", ".PNG")


def meant_instead(path: str) -> str | None:
    """A file that exists and whose path differs from a missing one's as paths often do by mistake.

    None: there is none.
    """
    return next((other for other in _alike(path) if os.path.isfile(other)), None)


def _alike(path: str) -> Iterator[str]:
    folder, name = os.path.split(path)
    yield os.path.join(
        os.path.dirname(folder), name
    )  # the folder is in both the image folder and file_name
    yield path.replace("\\", "/")
    yield os.path.join(folder, ntpath.basename(name))  # C:\data\a.jpg
    stem, suffix = os.path.splitext(path)
    for other in _SUFFIXES:
        if other != suffix:
            yield stem + other
        yield path + other
