"""Pascal VOC's lists of images, ``ImageSets/Main/train.txt`` and others, as splits."""

import os
from collections.abc import Collection, Mapping

from ...errors import UserError
from ..findings import counted
from .folders import is_image

_LISTS = ("train", "val", "test", "trainval")


def listed_splits(folder: str, stems: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The splits that the lists beside a folder of annotations say.

    ``trainval`` alone says nothing. Beside ``test`` it is what to train on; with ``train`` or
    ``val`` missing, it has the images of the missing one.

    Args:
        folder: of the XML files.
        stems: of their names.

    Returns:
        the split of each image that is in a list, by its stem, and notes on names that are none.

    Raises:
        UserError: a list cannot be read.
    """
    lists, notes = {}, []
    for name in _LISTS:
        path = os.path.join(os.path.dirname(folder), "ImageSets", "Main", f"{name}.txt")
        if not os.path.isfile(path):
            continue
        names = [_stem(line, stems) for line in _lines(path)]
        lists[name] = dict.fromkeys(names)
        unknown = [x for x in names if x not in stems]
        if unknown:
            have = counted(len(unknown), "name has", "names have")
            notes.append(
                f"{have} no XML file in {folder}, of {len(names):,} in {path}; the first is "
                f"{unknown[0]}"
            )
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):
        for stem in lists.get(split, ()):
            splits.setdefault(stem, split)
    rest = _split_of_rest(lists)
    for stem in lists.get("trainval", ()) if rest else ():
        splits.setdefault(stem, rest)
    return splits, notes


def _split_of_rest(lists: Mapping[str, Collection[str]]) -> str:
    """What the images of ``trainval`` are that no other list names; or ""."""
    for split, other in (("train", "val"), ("val", "train")):
        if split not in lists and other in lists:
            return split if set(lists[other]) <= set(lists.get("trainval", ())) else ""
    return "train" if "test" in lists and "train" not in lists else ""


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file.read().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"the image list {path} cannot be read ({error}): save it anew") from error


def _stem(line: str, stems: Collection[str]) -> str:
    """The image of a line, which may have folders, a suffix or a number behind it."""
    for text in (line, line.split()[0]):
        name = text.replace("\\", "/").rpartition("/")[2]
        if is_image(name) or name.lower().endswith(".xml"):
            name = os.path.splitext(name)[0]
        if name in stems:
            return name
    return line
