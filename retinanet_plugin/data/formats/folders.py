"""Files and folders below a folder, without hidden ones."""

import contextlib
import os
from collections.abc import Iterable, Iterator

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm")
_DEEPEST = 16  # levels of folders: more are no data set
# Files that folders have which new, train_net.py, predict and report write, and no data set.
_OWN = (
    {"config.yaml", "plan.html"},
    {"config.yaml", "log.txt"},
    {"annotations.json", "predictions.json"},
    {"report.html", "report.json"},
)


def is_image(path: str) -> bool:
    """Whether a name ends as those of image files do."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def images_below(folder: str) -> list[str]:
    """The image files in a folder and the folders in it, sorted."""
    return sorted(filter(is_image, files_below(folder)))


def files_below(folder: str, depth: int = _DEEPEST) -> Iterator[str]:
    """The files in a folder and, ``depth`` levels down, the folders in it, without hidden ones.

    Links are followed, but into each folder only once. Folders below it that this package wrote a
    plan, a training, detections or a report into are left out: they may lie beside their data.
    """
    seen: set[str] = set()
    top = folder.rstrip(os.sep).count(os.sep)
    for parent, folders, names in os.walk(folder, followlinks=True):
        if parent != folder and any(own <= set(names) for own in _OWN):
            folders.clear()
            continue
        real = os.path.realpath(parent)
        is_deep = parent.rstrip(os.sep).count(os.sep) - top >= depth
        descend = real not in seen and not is_deep
        folders[:] = sorted(x for x in folders if not x.startswith(".")) if descend else []
        if real not in seen:
            seen.add(real)
            yield from (os.path.join(parent, x) for x in sorted(names) if not x.startswith("."))


def files_in(folders: Iterable[str]) -> list[str]:
    """The files in some folders, those of the highest one first, without hidden ones."""
    found = []
    for folder in sorted(folders, key=lambda folder: (folder.count(os.sep), folder)):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            found += sorted(x.path for x in entries if x.name[0] != "." and x.is_file())
    return found


def subfolders(folder: str) -> list[str]:
    """The names of a folder's folders, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(x.name for x in entries if not x.name.startswith(".") and x.is_dir())
    except OSError:
        return []
