"""What a YOLO data set consists of: class names and images, by its data.yaml or its folders."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ...errors import UserError
from ..findings import counted, shown
from .folders import files_in, images_below
from .image_places import split_of_folder
from .numbers import to_label

_SPLITS = ("train", "val", "test")
_NAMES_FILES = ("classes.txt", "obj.names", "labels.txt", "_darknet.labels")


@dataclass
class YoloConfig:
    """Class names, and the images with their splits."""

    source: str  # what it is called in messages
    class_names: list[str]
    images: dict[str, str]  # the split of each absolute path
    lists_folders: bool = True  # False: some images are chosen by lists
    names_images: bool = True  # False: these are all there are, of whatever
    label_folders: tuple[str, str] | None = None  # of images and labels, where neither tells
    num_keypoint_values: int = 0  # behind each box, in data sets of poses
    notes: list[str] = field(default_factory=list)


def read_yolo_yaml(path: str) -> YoloConfig:
    """Read a ``data.yaml``, whose paths are relative to ``path`` in it or to its own folder.

    Raises:
        UserError: it has no names, or a folder or list that it names does not exist.
    """
    content = _load_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} has no keys: write names, train and val")
    names = _names(content.get("names"), path)
    if content.get("nc", len(names)) != len(names):
        raise UserError(
            f"{path} has nc {shown(content['nc'])}, but {len(names)} names: correct one of them"
        )
    config = YoloConfig(path, names, {}, num_keypoint_values=_keypoints(content, path))
    num_twice = 0
    for split, place in _places(content, path, config.notes):
        if os.path.isfile(place):
            config.lists_folders = False
        for image in _listed(place) if os.path.isfile(place) else images_below(place):
            num_twice += config.images.get(image, split) != split
            config.images.setdefault(image, split)
    if not config.images:
        raise UserError(f"{path}: train, val and test name no image: name their folders")
    if num_twice:
        twice = counted(num_twice, "image is", "images are")
        config.notes.append(f"{twice} in two of train, val and test: the first one counts")
    return config


def find_yolo_folder(folder: str, images: list[str], image_folder: str | None) -> YoloConfig:
    """A YOLO data set without a ``data.yaml``.

    Args:
        folder: below which the names of its classes are.
        images: of which some have label files.
        image_folder: whose images have their label files below ``folder``; None: see ``read_yolo``.

    Raises:
        UserError: there is no file with the names, or two that have others.
    """
    of_images = {os.path.dirname(image) for image in images}
    places = {folder, os.path.join(folder, "labels"), *of_images}
    places |= {os.path.dirname(x) for x in of_images if x.startswith(os.path.join(folder, ""))}
    places |= {place.replace("/images", "/labels") for place in places}
    paths = list(filter(_is_names_file, files_in(places)))
    first, names = "", None
    for path in paths or filter(_is_names_file, files_in([os.path.dirname(folder)])):
        others = _names_file(path)
        if names is not None and names != others:
            raise UserError(
                f"{first} and {path} have other names or another order: name one of their folders, "
                "or give both the same names"
            )
        first, names = first or path, others
    if names is not None:
        splits = {image: _split_below(folder, image) for image in images}
        folders = (image_folder, folder) if image_folder else None
        return YoloConfig(folder, names, splits, names_images=False, label_folders=folders)
    raise UserError(
        f"{folder} has YOLO's label files, but no data.yaml and no {_NAMES_FILES[0]}: write "
        f"{os.path.join(folder, _NAMES_FILES[0])} with the name of a class in each line, that of "
        "class 0 first"
    )


def _is_names_file(path: str) -> bool:
    """Whether a file is called as those of class names are; darknet's may be ``any.names``."""
    name = os.path.basename(path)
    return name in _NAMES_FILES or name.endswith(".names")


def _load_yaml(path: str) -> Any:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return yaml.safe_load(file)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): correct its path or permissions"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not YAML ({reason}): correct it") from error


def _split_below(folder: str, image: str) -> str:
    """The split that a folder between ``folder`` and an image says; or ""."""
    names = os.path.relpath(os.path.dirname(image), folder).split(os.sep)
    return next(filter(None, map(split_of_folder, names)), "")


def _names(names: Any, path: str) -> list[str]:
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise UserError(f"{path} has names of {shown(list(names))}: number them from 0 on")
        names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} has names {shown(names)}: list the names of the classes")
    for name in names:
        if name is None or isinstance(name, (bool, dict, list)):  # yes, no and ~ of YAML
            raise UserError(
                f"{path} has a name that YAML reads as {name!r}: write it in quotation marks"
            )
    names = [to_label(x if isinstance(x, str) else str(x), f"{path} has the name") for x in names]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path} has the name {twice[0]} twice: give every class its own")
    return names


def _names_file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file.read().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): save it anew") from error
    return _names([line for line in lines if line], path)


def _roots(folder: Any, path: str) -> list[str]:
    """Where relative paths begin: at ``path`` of the file, else at the file's own folder."""
    beside = os.path.dirname(os.path.abspath(path))
    if not isinstance(folder, str):
        return [beside]
    root = os.path.normpath(os.path.join(beside, folder))
    return [root, beside]


def _places(content: dict[str, Any], path: str, notes: list[str]) -> Iterator[tuple[str, str]]:
    """The folders and lists of ``train``, ``val`` and ``test``, each with its split.

    Roboflow names a ``test`` even where there is none, which is noted.
    """
    roots = _roots(content.get("path"), path)
    for split in _SPLITS:
        entries = content.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            tried = list(_tried(str(entry), roots))
            place = next(filter(_is_place, tried), None)
            if place is not None:
                yield split, place
            elif split == "test":
                notes.append(f"{path} has test: {entry}, but there is no {tried[0]}: left out")
            else:
                raise UserError(
                    f"{path} has {split}: {entry}, but there is no "
                    f"{' and no '.join(dict.fromkeys(tried))}: correct or remove it, or correct "
                    "the key path"
                )


def _tried(entry: str, roots: list[str]) -> Iterator[str]:
    """Where a folder or list can be; with ``../`` in vain, as Roboflow writes it, without."""
    for root in roots:
        for text in (entry, entry.removeprefix("../")):
            yield os.path.normpath(os.path.join(root, text))


def _is_place(path: str) -> bool:
    """Whether a path is a list or a folder; all of the machine is no data set."""
    return os.path.isfile(path) or (os.path.isdir(path) and os.path.dirname(path) != path)


def _listed(path: str) -> Iterator[str]:
    """The images of a list; relative ones are below its folder, or without their first folders.

    CVAT and darknet have ``data/`` before each, which is where their folder is thought to be.
    """
    folder = os.path.dirname(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"the image list {path} cannot be read ({error}): save it anew") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        text = line.strip().replace("\\", "/")
        parts = text.split("/")
        tried = [os.path.normpath(os.path.join(folder, text))]
        tried += [os.path.join(folder, *parts[i:]) for i in range(1, len(parts))]
        image = next(filter(os.path.isfile, tried), None)
        if image is None:
            raise UserError(
                f"line {number} of {path} names {line.strip()}, but there is no {tried[0]}: write "
                "paths that begin at the folder of the list"
            )
        yield image


def _keypoints(content: dict[str, Any], path: str) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or [type(x) for x in shape] != [int, int]:
        raise UserError(f"{path} has kpt_shape {shown(shape)}: write [number of points, 2 or 3]")
    return int(shape[0] * shape[1])
