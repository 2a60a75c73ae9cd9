"""Where the images of an annotation file are: in the usual places, if all of them are there."""

import os
import re
from collections import Counter
from collections.abc import Sequence

from ...errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm")
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "data")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")

Name = tuple[str, ...]  # what an image may be called, the likeliest first


def split_of(*names: str) -> str:
    """``train``, ``val`` or ``test``: the first that one of some file or folder names says; or "".

    >>> split_of("instances_val2017.json")
    'val'
    """
    for name in names:
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def is_image(path: str) -> bool:
    """Whether a name ends as those of image files do."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def find_images(
    names: Sequence[Name], annotation_file: str, image_folder: str | None, source: str
) -> list[str]:
    """The files of an annotation file's images.

    A name is tried as it is; then with ``/`` for ``\\``; then without its folders, which may be
    those of another machine. One without an image's suffix stands for the file of that stem.

    Args:
        names: of each image what it may be called.
        annotation_file: beside which the images are looked for.
        image_folder: where they are; None: look in the usual places.
        source: what the annotations are called in messages.

    Returns:
        absolute paths, in the order of ``names``, each file once.

    Raises:
        UserError: no place has all of them, or two are as likely.
    """
    if image_folder is not None and not os.path.isdir(image_folder):
        raise UserError(f"the image folder {image_folder} is not a folder: correct its path")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{source} names the image {twice[0][0]} twice: remove one of them")
    places = _places(os.path.abspath(annotation_file), image_folder)
    found: tuple[int, str, list[str]] | None = None
    closest: tuple[str, list[str]] | None = None  # a folder, and what it lacks
    for rank, place in places:
        if found and not found[0] == rank == _UNCERTAIN:
            break
        files = _Files(place)
        paths = [files.resolve(name) for name in names]
        lacking = [name[0] for name, path in zip(names, paths) if path is None]
        complete = [path for path in paths if path is not None]
        if lacking:
            if closest is None or len(lacking) < len(closest[1]):
                closest = place, lacking
        elif found is None:
            found = rank, place, complete
        elif complete != found[2]:
            raise UserError(
                f"{source}: both {found[1]} and {place} have images of these names: name the "
                "image folder"
            )
    if found:
        return found[2]
    assert closest is not None
    folder, lacking = closest
    more = f" ({len(lacking) - 1:,} more like it)" if len(lacking) > 1 else ""
    if len(lacking) == len(names):
        folder = ", ".join([place for _, place in places[:4]])
    raise UserError(
        f"{source} names the image {lacking[0]}, which is not in {folder}{more}: put it there, "
        "name the folder of the images, or remove it from the annotations"
    )


_UNCERTAIN = 3


def _places(annotation_file: str, image_folder: str | None) -> list[tuple[int, str]]:
    """Folders, the likeliest first, each with its rank."""
    beside, file_name = os.path.split(annotation_file)
    stem = os.path.splitext(file_name)[0].lower()
    split = split_of(stem, os.path.basename(beside))
    bases = [os.path.abspath(image_folder)] if image_folder else [beside, os.path.dirname(beside)]
    ranks = dict(zip(bases, (0,) if image_folder else (1, 2)))
    for base in bases:
        for name in subfolders(base):
            folder = os.path.join(base, name)
            _set_rank(ranks, folder, stem, split)
            if name.lower() in _IMAGE_FOLDERS:
                for below in subfolders(folder):
                    _set_rank(ranks, os.path.join(folder, below), stem, split)
    return sorted(((rank, folder) for folder, rank in ranks.items()), key=lambda place: place[0])


def _set_rank(ranks: dict[str, int], folder: str, stem: str, split: str) -> None:
    name = os.path.basename(folder).lower()
    if name in stem.split("_") or (split and split_of(name) == split):
        ranks.setdefault(folder, 0)
    elif name in _IMAGE_FOLDERS:
        ranks.setdefault(folder, 2)
    elif split_of(name):
        ranks.setdefault(folder, _UNCERTAIN)


def subfolders(folder: str) -> list[str]:
    """The names of a folder's folders, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(x.name for x in entries if not x.name.startswith(".") and x.is_dir())
    except OSError:
        return []


class _Files:
    """The image files below a folder, each to be found once."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._stems: dict[str, dict[str, str]] = {}
        self._taken: set[str] = set()

    def resolve(self, name: Name) -> str | None:
        for text in name:
            plain = text.replace("\\", "/")
            for candidate in (text, plain, plain.rpartition("/")[2]):
                path = self._file(candidate)
                if path is not None and path not in self._taken:
                    self._taken.add(path)
                    return path
        return None

    def _file(self, candidate: str) -> str | None:
        path = os.path.normpath(os.path.join(self.folder, candidate))
        if is_image(candidate) or os.path.isfile(path):
            return path if os.path.isfile(path) else None
        folder, stem = os.path.split(path)
        if folder not in self._stems:
            names = sorted(filter(is_image, os.listdir(folder))) if os.path.isdir(folder) else []
            self._stems[folder] = {os.path.splitext(x)[0]: os.path.join(folder, x) for x in names}
        return self._stems[folder].get(stem)
