"""The user's data, in whatever format, as two annotation files in COCO's."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

from ...errors import UserError
from ...whole_files import write_whole_file
from ..findings import counted
from ..formats import AnnotatedImage, AnnotatedImages, read_dataset
from ..split import split


@dataclass(frozen=True)
class Intake:
    """Images to train on and images for validation; their classes are the same."""

    train: AnnotatedImages
    val: AnnotatedImages
    notes: list[str]  # sentences on what was read and how it was parted
    called: tuple[str, str]  # what findings call the two

    def write(self, folder: str, name: str) -> list[list[str]]:
        """Write ``annotations/`` in ``folder``.

        Returns:
            entries of ``DATASETS.COCO_JSON``: ``NAME_train`` and ``NAME_val``, paths absolute.

        Raises:
            UserError: a file cannot be written.
        """
        entries, image_id = [], 1
        for part, dataset in (("train", self.train), ("val", self.val)):
            path = os.path.abspath(os.path.join(folder, "annotations", f"{part}.json"))
            coco = dataset.to_coco(image_id)
            image_id += len(dataset.images)  # results of one part are not those of the other
            content = json.dumps(coco, ensure_ascii=False).encode()
            write_whole_file(path, partial(_put, content))
            entries.append([f"{name}_{part}", path, dataset.image_folder])
        return entries


def take_in(train: str, val: str | None) -> Intake:
    """Read the data, and set a fifth of them aside for validation where none are named or marked.

    Args:
        train: annotations that :func:`retinanet_plugin.data.formats.read_dataset` reads.
        val: the same of other images.

    Raises:
        UserError: a path has no data set, or one image is in both.
    """
    dataset = read_dataset(train)
    notes = list(dataset.notes)
    if val is not None:
        others = read_dataset(val)
        _check_apart(dataset, others, train, val)
        return _with_equal_classes(dataset, others, [*notes, *others.notes], (train, val))
    part_of = {part: [x for x in dataset.images if x.split == part] for part in _PARTS}
    marked = part_of["val"] or part_of["test"]
    if part_of["train"] and marked:
        unused = len(dataset.images) - len(part_of["train"]) - len(marked)
        notes.append(
            f"{train} says itself which {counted(len(marked), 'image is', 'images are')} for "
            "validation" + (f"; {unused:,} marked for test are not used" if unused else "")
        )
        parts = dataset.with_images(part_of["train"]), dataset.with_images(marked)
    else:
        train_part, val_part, of_split = split(dataset)
        parts = train_part, val_part
        notes.append(
            f"{counted(len(parts[1].images), 'image', 'images')} of {len(dataset.images):,} set "
            "aside for validation, a fifth of every class; --val names others"
        )
        notes += of_split
    return _with_equal_classes(*parts, notes, (train, f"{train} (images for validation)"))


_PARTS = ("train", "val", "test")


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _with_equal_classes(
    train: AnnotatedImages, val: AnnotatedImages, notes: list[str], called: tuple[str, str]
) -> Intake:
    names = list(dict.fromkeys([*train.class_names, *val.class_names]))
    train, val = (replace(part, class_names=names) for part in (train, val))
    if not train.num_boxes:
        raise UserError("the images to train on have no box: annotate some, or name other data")
    return Intake(train, val, notes, called)


def _check_apart(
    train: AnnotatedImages, val: AnnotatedImages, train_path: str, val_path: str
) -> None:
    def names(images: Sequence[AnnotatedImage]) -> set[str]:
        return {os.path.realpath(image.file_name) for image in images}

    shared = names(train.images) & names(val.images)
    if shared:
        raise UserError(
            f"{min(shared)} is in {train_path} and in {val_path}, as "
            f"{counted(len(shared), 'image is', 'images are')}: leave --val out to have some "
            "set aside, or remove them from one"
        )
