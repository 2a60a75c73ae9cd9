"""A data set parted into training and validation images that have nothing to do with each other."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import UserError
from .findings import counted
from .formats import AnnotatedImage, AnnotatedImages
from .near_duplicates import near_duplicates

_TRAIN, _VAL = 0, 1
_MOST_NAMED = 5
_MOST_OF_SHARE = 1.5  # of the images' share for validation, unless a class would lack there


def split(
    dataset: AnnotatedImages, fraction: float = 0.2, seed: int = 0
) -> tuple[AnnotatedImages, AnnotatedImages, list[str]]:
    """Choose validation images so that each class has about ``fraction`` of its boxes in them.

    Images that look alike are on one side. Iterative stratification (Sechidis et al., On the
    Stratification of Multi-label Data, ECML PKDD 2011, algorithm 1), of boxes instead of labels and
    of groups of images: the class with the fewest groups comes first, and each of its groups, the
    largest first, goes to the side that has the least of its share of the class, but none to
    validation that has the last of a class for training. Images without objects count as a class.

    Args:
        dataset: two images or more; their own splits are not regarded.
        fraction: of the boxes for validation, above 0 and up to 0.5.
        seed: of the order among equals; the order of ``dataset.images`` does not matter.

    Returns:
        training and validation images, sorted by file name, and sentences on what was done.

    Raises:
        UserError: there are less than two images, or ``fraction`` is out of range.
    """
    if not 0 < fraction <= 0.5:
        raise UserError(f"the validation share is {fraction:g}: choose one above 0 and up to 0.5")
    images = sorted(dataset.images, key=lambda image: image.file_name)
    if len(images) < 2:
        raise UserError(f"{counted(len(images), 'image', 'images')} cannot be split: add more")
    groups = near_duplicates([image.file_name for image in images])
    if len(groups) == 1:
        in_val = _last(len(images), fraction)
        notes = [
            "all images look alike, as those of one video: the last by name are for validation, "
            "but results on them will be better than on other images"
        ]
    else:
        counts, sizes = _counts(images, groups, dataset.class_names), np.array([*map(len, groups)])
        side = _stratify(counts, sizes, fraction, seed)
        in_val = {i for group, s in zip(groups, side) if s == _VAL for i in group}
        notes = _alike_note(groups)
    train = [replace(x, split="train") for i, x in enumerate(images) if i not in in_val]
    val = [replace(x, split="val") for i, x in enumerate(images) if i in in_val]
    parts = dataset.with_images(train), dataset.with_images(val)
    return *parts, notes + _lacking_notes(*parts)


def _last(num_images: int, fraction: float) -> set[int]:
    return set(range(num_images - max(1, round(num_images * fraction)), num_images))


def _counts(
    images: Sequence[AnnotatedImage], groups: Sequence[Sequence[int]], class_names: list[str]
) -> np.ndarray:
    """Boxes of each class, and images without any, of each group: (G, K + 1)."""
    column_of = {name: k for k, name in enumerate(class_names)}
    counts = np.zeros((len(groups), len(class_names) + 1), dtype=np.int64)
    for row, group in zip(counts, groups):
        for i in group:
            boxes = [box for box in images[i].boxes if not box.ignored]
            for box in boxes:
                row[column_of[box.label]] += 1
            row[-1] += not boxes
    return counts


def _stratify(counts: np.ndarray, sizes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The side of each group, by its boxes (G, K + 1) and number of images (G,)."""
    num_groups = len(counts)
    rank = np.random.default_rng(seed).permutation(num_groups)
    shares = np.array([1 - fraction, fraction])
    filled = np.zeros((2, counts.shape[1]))  # boxes of each side and class, for each of its share
    filled_groups = np.zeros(2)
    side = np.full(num_groups, -1)
    has = counts > 0
    # Where one image has most of a class's boxes, all others would not make up for it.
    most_in_val = _MOST_OF_SHARE * fraction * sizes.sum()
    while (side < 0).any():
        left = (has & (side < 0)[:, None]).sum(axis=0)
        k = int(np.where(left > 0, left, num_groups + 1).argmin())
        members = np.flatnonzero(has[:, k] & (side < 0))
        for group in members[np.lexsort((rank[members], -counts[members, k]))]:
            emptiest = min((_TRAIN, _VAL), key=lambda s: (filled[s, k], filled_groups[s]))
            is_full = filled[_VAL, k] > 0 and sizes[side == _VAL].sum() >= most_in_val
            # Of a class that training lacks nothing is learned; validation can do without one.
            takes_last = (has[group] & (has[side != _VAL].sum(axis=0) == 1)).any()
            chosen = _TRAIN if takes_last or is_full else emptiest
            side[group] = chosen
            filled[chosen] += counts[group] / shares[chosen]
            filled_groups[chosen] += 1 / shares[chosen]
    if not (side == _VAL).any():
        side[_most_dispensable(counts, rank)] = _VAL
    return side


def _most_dispensable(counts: np.ndarray, rank: np.ndarray) -> int:
    """The group that takes the last boxes of the fewest classes with it; the smallest of these."""
    boxes = counts[:, :-1]  # training can do without images that have none
    num_lost = ((boxes > 0) & (boxes == boxes.sum(axis=0))).sum(axis=1)
    return int(np.lexsort((rank, counts.sum(axis=1), num_lost))[0])


def _alike_note(groups: Sequence[Sequence[int]]) -> list[str]:
    several = [group for group in groups if len(group) > 1]
    if not several:
        return []
    images = sum(map(len, several))
    return [
        f"{images:,} images look like others ({counted(len(several), 'group', 'groups')}, the "
        f"largest of {max(map(len, several)):,}): each group is on one side"
    ]


def _lacking_notes(train: AnnotatedImages, val: AnnotatedImages) -> list[str]:
    """What classes are on one side alone."""
    in_train, in_val = train.boxes_per_class(), val.boxes_per_class()
    notes = []
    for part, others, name in ((in_val, in_train, "validation"), (in_train, in_val, "training")):
        lacking = [label for label in part if not part[label] and others[label]]
        if lacking:
            more = ", ..." if len(lacking) > _MOST_NAMED else ""
            classes = counted(len(lacking), "class has", "classes have")
            names = ", ".join(lacking[:_MOST_NAMED])
            notes.append(f"{classes} too few images to be in {name} as well: {names}{more}")
    return notes
