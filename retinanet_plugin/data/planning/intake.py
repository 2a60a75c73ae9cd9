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
from ..near_duplicates import near_copies
from ..split import split


@dataclass(frozen=True)
class Intake:
    """Images to train on and images for validation; their classes are the same."""

    train: AnnotatedImages
    val: AnnotatedImages
    notes: list[str]  # sentences on what was read and how it was parted
    called: tuple[str, str]  # what findings call the two

    @property
    def most_objects(self) -> int:
        """In an image."""
        images = [*self.train.images, *self.val.images]
        return max(sum(not box.ignored for box in image.boxes) for image in images)

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


def take_in(train: str, val: str | None, images: str | None = None) -> Intake:
    """Read the data; where no images for validation are named or marked, a fifth is set aside.

    Args:
        train: annotations that :func:`retinanet_plugin.data.formats.read_dataset` reads.
        val: the same of other images.
        images: the folder that all images are in; None: look in the usual places.

    Raises:
        UserError: a path has no data set, or one image is in both.
    """
    dataset = read_dataset(train, images)
    notes = list(dataset.notes)
    if val is not None:
        others = read_dataset(val, images)
        _check_apart(dataset, others, train, val)
        notes += [*_held_out_note(dataset, train), *others.notes, *_alike_note(dataset, others)]
        return _with_equal_classes(dataset, others, notes, (train, val))
    to_train, to_validate, of_parting = _parted(dataset, train)
    called = train, f"{train} (images for validation)"
    return _with_equal_classes(to_train, to_validate, [*notes, *of_parting], called)


def _parted(
    dataset: AnnotatedImages, called: str
) -> tuple[AnnotatedImages, AnnotatedImages, list[str]]:
    """Images to train on and for validation, as they are marked or set aside, and notes on it.

    Where none are marked for validation, a test set is taken for it. It is never trained on, unless
    there is nothing else.
    """
    marked: dict[str, list[AnnotatedImage]] = {"train": [], "": [], "val": [], "test": []}
    for image in dataset.images:
        marked[image.split].append(image)
    to_train = "train" if marked["train"] else ""
    to_validate = "val" if marked["val"] else "test"
    if marked[to_train] and marked[to_validate]:
        train, val = (dataset.with_images(marked[mark]) for mark in (to_train, to_validate))
        images = counted(len(val.images), "image", "images")
        notes = [f"{images} for validation, which {called} marks {to_validate}"]
        notes += _alike_note(train, val)
    else:
        free = [image for image in dataset.images if image.split != "test"] or dataset.images
        train, val, of_split = split(dataset.with_images(free))
        images = counted(len(val.images), "image", "images")
        notes = [
            f"{images} of {len(free):,} set aside for validation, a fifth of every class; --val "
            "names others",
            *of_split,
        ]
    used = {image.file_name for part in (train, val) for image in part.images}
    for mark, images_of_mark in marked.items():
        if images_of_mark and images_of_mark[0].file_name not in used:
            are = counted(len(images_of_mark), "image is", "images are")
            why = f"marked {mark}" if mark else "in no list or folder of a split"
            notes.append(f"{are} not used, {why}")
    return train, val, notes


def _held_out_note(dataset: AnnotatedImages, called: str) -> list[str]:
    """A note on images that are trained on although they are marked for something else."""
    number = sum(image.split in ("val", "test") for image in dataset.images)
    if number in (0, len(dataset.images)):
        return []
    are = counted(number, "image that is", "images that are")
    return [f"{called} has {are} marked val or test: trained on as well, since --val names others"]


def _alike_note(train: AnnotatedImages, val: AnnotatedImages) -> list[str]:
    """A note on images for validation that were seen in training, or nearly."""
    to_train, to_validate = ([image.file_name for image in part.images] for part in (train, val))
    pairs = [(to_validate[i], to_train[j]) for i, j in near_copies(to_validate, to_train).items()]
    if not pairs:
        return []
    look = counted(len(pairs), "image looks", "images look")
    return [
        f"{look} like others that are trained on, of {len(val.images):,} for validation, such as "
        f"{pairs[0][0]} like {pairs[0][1]}: results on them will be better than on new images"
    ]


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
