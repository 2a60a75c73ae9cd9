"""Where the images of an annotation file are: in the usual places, if all of them are there."""

import os
import re
from collections import Counter
from collections.abc import Sequence

from ...errors import UserError
from ..findings import counted
from .annotated_images import AnnotatedImage
from .folders import is_image, subfolders

_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "data")
# Folders for annotations alone, so that images are beside them.
_OF_ANNOTATIONS = re.compile("ann|label|xml|json|csv|data|coco|voc")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")

# Images that were deleted since, and no mistake of the place: up to this share is left out.
_FEW_MISSING = 0.05

Name = tuple[str, ...]  # what an image may be called, the likeliest first


def split_of_folder(name: str) -> str:
    """``train``, ``val`` or ``test`` if a folder is called so; or "".

    >>> split_of_folder("val2017")
    'val'
    """
    return _SPLITS.get(re.sub(r"[\d_-]+$", "", name.lower()), "")


def split_of_file(path: str) -> str:
    """``train``, ``val`` or ``test`` if a word of a file's name is so, or its folder; or "".

    >>> split_of_file("annotations/instances_val2017.json")
    'val'
    """
    folder, name = os.path.split(os.path.abspath(path))
    words = re.split(r"[^a-z]+", os.path.splitext(name)[0].lower())
    splits = [_SPLITS[word] for word in words if word in _SPLITS]
    return splits[0] if splits else split_of_folder(os.path.basename(folder))


def are_few_missing(num_missing: int, num_images: int) -> bool:
    """Whether so few files lack that the others are a data set without them."""
    return num_missing <= _FEW_MISSING * num_images


def place_images(
    images: list[AnnotatedImage],
    names: Sequence[Name],
    annotation_file: str,
    image_folder: str | None,
    sources: Sequence[str] = (),
) -> list[str]:
    """Set the files of an annotation file's images, and remove images that have none, if few.

    A name is tried as it is; then with ``/`` for ``\\``; then without its folders, which may be
    those of another machine. One without an image's suffix stands for the file of that stem.

    Args:
        images: whose ``file_name``, an absolute path, each file once, is set.
        names: of each image what it may be called.
        annotation_file: beside which the images are looked for.
        image_folder: where they are; None: look in the usual places.
        sources: the files that have the names, where each has its own.

    Returns:
        a note on the images that were removed.

    Raises:
        UserError: no place has nearly all of them, or two are as likely.
    """
    paths, notes = _find(names, annotation_file, image_folder, sources)
    for image, path in zip(images, paths):
        image.file_name = path or ""
    images[:] = [image for image in images if image.file_name]
    return notes


def _find(
    names: Sequence[Name], annotation_file: str, image_folder: str | None, sources: Sequence[str]
) -> tuple[Sequence[str | None], list[str]]:
    """Of each image its path, or None; and a note on these."""
    if image_folder is not None and not os.path.isdir(image_folder):
        raise UserError(f"the image folder {image_folder} is not a folder: correct its path")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{annotation_file} names {twice[0][0]} twice: remove one of them")
    places = _places(os.path.abspath(annotation_file), image_folder)
    found: tuple[_Rank, str, list[str]] | None = None
    closest: tuple[str, list[int], list[str | None]] | None = None  # a folder, and what it lacks
    for rank, place in places:
        if found and not found[0] == rank == (rank[0], _UNCERTAIN):
            break
        files = _Files(place)
        paths = [files.resolve(name) for name in names]
        lacking = [i for i, path in enumerate(paths) if path is None]
        complete = [path for path in paths if path is not None]
        if lacking:
            if closest is None or len(lacking) < len(closest[1]):
                closest = place, lacking, paths
        elif found is None:
            found = rank, place, complete
        elif complete != found[2]:
            raise UserError(
                f"{annotation_file}: both {found[1]} and {place} have images of these names: name "
                "the image folder"
            )
    if found:
        return found[2], []
    assert closest is not None
    folder, lacking, paths = closest
    missing = names[lacking[0]]
    name, source = missing[0], sources[lacking[0]] if sources else annotation_file
    if are_few_missing(len(lacking), len(names)):
        are = counted(len(lacking), "image is", "images are")
        return paths, [
            f"{are} left out of {len(names):,}, which {folder} does not have; the first is {name} "
            f"of {source}"
        ]
    alike = next(filter(None, (_Files(place).of_other_case(missing) for _, place in places)), "")
    if len(lacking) == len(names):
        folder = ", ".join([place for _, place in places[:4]])
    though = f", though {alike} is there" if alike else ""
    raise UserError(
        f"{source} names the image {name}, which is not in {folder}{though} ({len(lacking):,} of "
        f"{len(names):,} images are missing): put them there, name their folder by --images, or "
        "remove them from the annotations"
    )


# By the base that a place is in, then by how likely it is there.
_Rank = tuple[int, int]
_UNCERTAIN = 3


def _places(annotation_file: str, image_folder: str | None) -> list[tuple[_Rank, str]]:
    """Folders, the likeliest first, each with its rank."""
    beside, file_name = os.path.split(annotation_file)
    stem = os.path.splitext(file_name)[0].lower()
    split = split_of_file(annotation_file)
    if image_folder is not None:
        bases = [os.path.abspath(image_folder)]
    elif _OF_ANNOTATIONS.search(os.path.basename(beside).lower()):
        bases = [beside, os.path.dirname(beside)]
    else:  # what is above may be of other data
        bases = [beside]
    ranks: dict[str, _Rank] = {}
    for order, base in enumerate(bases):
        ranks.setdefault(base, (order, 0 if image_folder else 1))
        for name in subfolders(base):
            folder = os.path.join(base, name)
            below = subfolders(folder) if name.lower() in _IMAGE_FOLDERS else []
            for place in (folder, *(os.path.join(folder, x) for x in below)):
                rank = _rank(os.path.basename(place).lower(), stem, split)
                if rank is not None:
                    ranks.setdefault(place, (order, rank))
    return sorted(((rank, folder) for folder, rank in ranks.items()), key=lambda place: place[0])


def _rank(folder: str, stem: str, split: str) -> int | None:
    """How likely a folder has the images of an annotation file, by its name; None: not at all."""
    if folder in stem.split("_") or (split and split_of_folder(folder) == split):
        return 0
    if folder in _IMAGE_FOLDERS:
        return 2
    return _UNCERTAIN if split_of_folder(folder) else None


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

    def of_other_case(self, name: Name) -> str | None:
        """A file that differs from a name in capital letters alone."""
        for text in name:
            folder, base = os.path.split(os.path.join(self.folder, text.replace("\\", "/")))
            for place in (folder, self.folder):
                others = os.listdir(place) if os.path.isdir(place) else ()
                for other in sorted(others):
                    if other.casefold() == base.casefold():
                        return os.path.join(place, other)
        return None
