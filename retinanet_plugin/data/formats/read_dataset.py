"""A data set, from whatever annotation files a path names."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, groupby

from ...errors import UserError
from ..findings import counted
from .annotated_images import AnnotatedImage, AnnotatedImages
from .coco import read_coco_file
from .createml import read_createml
from .csv_table import read_csv_table
from .labelme import read_labelme
from .near_misses import broken_files, near_miss
from .recognize import (
    COCO,
    CREATEML,
    CSV,
    FOREIGN,
    LABELME,
    VIA_CSV,
    VOC,
    YOLO,
    YOLO_FOLDER,
    Contents,
    contents_of,
    contents_of_file,
)
from .via_csv import read_via_csv
from .voc import read_voc
from .yolo import read_yolo
from .yolo_config import find_yolo_folder, read_yolo_yaml

_OF_FILES: dict[str, Callable[[str, str | None], AnnotatedImages]] = {
    COCO: read_coco_file,
    CREATEML: read_createml,
    CSV: read_csv_table,
    VIA_CSV: read_via_csv,
}
_OF_FOLDERS: dict[str, Callable[[Sequence[str], str | None], AnnotatedImages]] = {
    LABELME: read_labelme,
    VOC: read_voc,
}
# Control characters, and bytes of file names that are not UTF-8.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_LOOKED_FOR = (
    "a COCO or CreateML file (.json), YOLO's data.yaml or label files beside images, Pascal VOC's "
    "XML files, LabelMe's JSON files, a CSV table of boxes"
)


def read_dataset(path: str, image_folder: str | None = None) -> AnnotatedImages:
    """Read an annotation file, or all of a folder; the format is found by the content.

    Args:
        path: a file, or a folder that holds annotations of one format, up to four levels deep.
        image_folder: where the images are; None: look in the usual places beside the annotations.

    Returns:
        the images in the order of the files that name them, sorted by path, each once; those of
        COCO by their ids.

    Raises:
        UserError: nothing or more than one format is there, an entry is not as meant, or an image
            is not found.
    """
    if image_folder is not None:
        image_folder = os.path.abspath(image_folder)
    if os.path.isdir(path):
        contents = contents_of(path, image_folder)
    elif os.path.isfile(path):
        contents = contents_of_file(path)
    else:
        raise UserError(f"{path} does not exist: name an annotation file or a folder")
    kind = _only_format(contents, path)
    files = contents.formats[kind]
    if kind in (YOLO, YOLO_FOLDER):
        dataset = _read_yolo(kind, files, contents, image_folder)
    elif kind in _OF_FOLDERS:
        _check_no_broken(files, contents)
        folders = [
            list(group) for _, group in groupby(sorted(files, key=os.path.split), os.path.dirname)
        ]
        parts = [_OF_FOLDERS[kind](group, image_folder) for group in folders]
        dataset = _joined(parts, [os.path.dirname(group[0]) for group in folders])
    else:
        parts = [_OF_FILES[kind](x, image_folder) for x in files]
        _check_splits(parts, files)
        dataset = _joined(parts, files)
    if not dataset.images:
        raise UserError(f"{path} has no images: export it again")
    if not any(image.boxes for image in dataset.images):
        raise UserError(f"{path} has no box in any image: export it again with its annotations")
    _check_numbers(dataset, path)
    _check_names(dataset)
    return dataset


def _check_numbers(dataset: AnnotatedImages, path: str) -> None:
    """Refuse shares of the image's size where a format has pixels."""
    if all(max(box.x2, box.y2) <= 1 for image in dataset.images for box in image.boxes):
        raise UserError(
            f"all boxes of {path} are in the first pixel, as if their numbers ({dataset.format}) "
            "were divided by the image's size once too often: multiply them by it, or export again"
        )


def _check_names(dataset: AnnotatedImages) -> None:
    """Refuse file names that no format can hold."""
    for image in dataset.images:
        if _UNWRITABLE.search(image.file_name):
            raise UserError(
                f"the image {os.fsencode(image.file_name)!r} has control characters in its name, "
                "or others than UTF-8 has: rename it"
            )


def _only_format(contents: Contents, path: str) -> str:
    known = [kind for kind in contents.formats if kind not in FOREIGN]
    if len(known) == 1:
        return known[0]
    if known:
        examples = " or ".join(f"{_to_name(contents, kind)} ({kind})" for kind in known)
        raise UserError(
            f"{path} has annotations of {len(known)} formats: name one of them, {examples}"
        )
    for kind in contents.formats:
        raise UserError(f"{contents.formats[kind][0]} is {kind}: {FOREIGN[kind]}")
    if problem := near_miss(contents):
        raise UserError(problem)
    if os.path.isfile(path):
        raise UserError(f"{path} is of no known format: name {_LOOKED_FOR}")
    found = [counted(len(contents.images), "image", "images")] if contents.images else []
    found += [f"{len(files):,} {suffix}" for suffix, files in sorted(contents.others.items())[:5]]
    what = ", ".join(found) or "no file"
    raise UserError(f"{path} has no annotations: looked for {_LOOKED_FOR}, and found {what}")


def _check_no_broken(files: Sequence[str], contents: Contents) -> None:
    """Refuse wreckage among files of which each is of an image, which would be missing."""
    suffix = os.path.splitext(files[0])[1].lower()
    broken = broken_files(files, contents.others.get(suffix, []))
    if broken:
        more = f" ({len(broken) - 1:,} more like it)" if len(broken) > 1 else ""
        raise UserError(
            f"{broken[0]} is empty, cut off or of another kind{more}, and lies among annotations: "
            "export it again, or remove it"
        )


def _to_name(contents: Contents, kind: str) -> str:
    """What of a folder stands for one of its formats."""
    first = contents.formats[kind][0]
    return os.path.dirname(first) if kind in _OF_FOLDERS else first


def _read_yolo(
    kind: str, files: list[str], contents: Contents, image_folder: str | None
) -> AnnotatedImages:
    if len(files) > 1:
        raise UserError(f"{files[0]} and {files[1]} are both YOLO's data.yaml: name one of them")
    if kind == YOLO:
        return read_yolo(read_yolo_yaml(files[0]))
    return read_yolo(find_yolo_folder(files[0], contents.images, image_folder))


def _check_splits(parts: Sequence[AnnotatedImages], files: Sequence[str]) -> None:
    """Several files are one data set only if they are its train, val and test."""
    of_split: dict[str, str] = {}
    for part, file in zip(parts, files):
        if not part.images:
            continue
        split = part.images[0].split
        if len(files) > 1 and (not split or split in of_split):
            other = of_split.get(split, files[0] if file != files[0] else files[1])
            raise UserError(f"{other} and {file} are both annotations ({part.format}): name one")
        of_split[split] = file


def _joined(parts: Sequence[AnnotatedImages], sources: Sequence[str]) -> AnnotatedImages:
    """One data set of several."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.class_names)
    ordered = sorted(names) if parts[0].format != COCO else list(names)
    source_of: dict[str, str] = {}
    splits: dict[str, list[AnnotatedImage]] = defaultdict(list)
    for part, source in zip(parts, sources):
        for image in part.images:
            if image.file_name in source_of:
                raise UserError(
                    f"{image.file_name} is in {source_of[image.file_name]} and in {source}: remove "
                    "it from one of them"
                )
            source_of[image.file_name] = source
            splits[image.split].append(image)
    notes = [note for part in parts for note in part.notes]
    return AnnotatedImages(parts[0].format, ordered, [*chain(*splits.values())], notes)
