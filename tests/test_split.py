"""A data set split: shares of classes, near-duplicates, the smallest data sets."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from retinanet_plugin.data.formats import AnnotatedImage, AnnotatedImages, Box
from retinanet_plugin.data.near_duplicates import near_copies, near_duplicates
from retinanet_plugin.data.split import split
from retinanet_plugin.errors import UserError


def picture(seed, size=(120, 90)):
    """Soft blobs, as different from those of another seed as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def data(folder, labels, pictures=None):
    """An image for each entry of ``labels``, which has a box for each letter."""
    images = []
    for i, text in enumerate(labels):
        path = folder / f"{i:04d}.png"
        (pictures[i] if pictures else picture(i)).save(path)
        boxes = [Box(letter, 0, 0, 9, 9) for letter in text]
        images.append(AnnotatedImage(str(path), boxes, 120, 90))
    return AnnotatedImages("made here", sorted(set("".join(labels))), images)


def names(part):
    return [image.file_name for image in part.images]


def test_every_class_has_its_share_in_validation(tmp_path):
    rng = np.random.default_rng(0)
    labels = ["".join(rng.choice(list("abcd"), rng.integers(0, 6), p=[0.6, 0.3, 0.07, 0.03]))
              for _ in range(200)]  # fmt: skip
    dataset = data(tmp_path, labels)
    train, val, notes = split(dataset, 0.2)
    assert notes == []
    assert sorted(names(train) + names(val)) == names(dataset)
    assert {x.split for x in train.images} == {"train"}
    assert {x.split for x in val.images} == {"val"}
    total = dataset.boxes_per_class()
    for label, count in val.boxes_per_class().items():
        assert abs(count - 0.2 * total[label]) <= 2
    num_empty = sum(not x.boxes for x in val.images)
    assert abs(num_empty - 0.2 * labels.count("")) <= 1
    assert abs(len(val.images) - 40) <= 4


def test_the_seed_alone_decides(tmp_path):
    dataset = data(tmp_path, ["a", "ab", "b", "a", "abb", "b", "", "a", "b", "a"])
    backwards = dataset.with_images(dataset.images[::-1])
    assert names(split(dataset, 0.3, 5)[1]) == names(split(backwards, 0.3, 5)[1])
    assert len({tuple(names(split(dataset, 0.3, seed)[1])) for seed in range(8)}) > 1


def test_near_duplicates_are_on_one_side(tmp_path):
    pictures = []
    for seed in range(12):
        original = picture(seed)
        encoded = io.BytesIO()
        original.resize((80, 60)).save(encoded, "JPEG", quality=60)
        pictures += [original, Image.open(encoded), ImageEnhance.Brightness(original).enhance(0.9)]
    dataset = data(tmp_path, ["a"] * 36, pictures)
    groups = near_duplicates(names(dataset))
    assert groups == [[i, i + 1, i + 2] for i in range(0, 36, 3)]
    for seed in range(5):
        train, val, notes = split(dataset, 0.25, seed)
        assert len(val.images) == 9
        of_train, of_val = ({int(name[-8:-4]) // 3 for name in names(x)} for x in (train, val))
        assert not of_train & of_val
        assert notes[0].startswith("36 images look like others (12 groups, the largest of 3)")


def test_copies_of_roboflow_are_known_by_their_names(tmp_path):
    """They are mirrored, cropped, turned ..."""
    files = []
    for name, seed in (("a_jpg", "01"), ("b_jpg", "02"), ("a_jpg", "03"), ("a_png", "04")):
        files.append(str(tmp_path / f"{name}.rf.{seed * 16}.jpg"))
        picture(int(seed)).save(files[-1])
    assert near_duplicates(files) == [[0, 2], [1], [3]]
    assert near_copies(files[2:], files[:2]) == {0: 0}


def test_even_surfaces_are_alike_only_if_they_are_the_same(tmp_path):
    pages = []
    for i in range(4):  # a sheet with a spot: no bit of the hash is certain
        page = Image.new("RGB", (120, 90), (240, 240, 240))
        page.paste((20, 20, 20), (25 * i + 5, 10 * i + 5, 25 * i + 15, 10 * i + 15))
        pages.append(page)
    blank = Image.new("RGB", (120, 90), (240, 240, 240))
    dataset = data(tmp_path, "a" * 6, [*pages, blank, blank])
    assert near_duplicates(names(dataset)) == [[0], [1], [2], [3], [4, 5]]


def test_copies_among_other_images(tmp_path):
    dataset = data(tmp_path, "a" * 6, [picture(x) for x in (1, 2, 3, 2, 4, 1)])
    files = names(dataset)
    assert near_copies(files[3:], files[:3]) == {0: 1, 2: 0}
    assert near_copies([], files) == near_copies(files, []) == {}


def test_an_image_that_cannot_be_read_looks_like_none(tmp_path):
    dataset = data(tmp_path, "aa", [picture(1)] * 2)
    (tmp_path / "0000.png").write_bytes(b"")
    assert near_duplicates([*names(dataset), str(tmp_path / "gone.png")]) == [[0], [1], [2]]


def test_a_video_is_cut_by_name_and_said(tmp_path):
    dataset = data(tmp_path, "a" * 10, [picture(0)] * 10)
    train, val, notes = split(dataset, 0.2)
    assert names(val) == names(dataset)[-2:]
    assert len(train.images) == 8
    assert "all images look alike" in notes[0]


@pytest.mark.parametrize(
    "labels", [["a", "a"], ["a", ""], ["a", "b"], ["a", "a", "a"], ["", "ab", ""]]
)
def test_the_smallest_data_sets(tmp_path, labels):
    train, val, _ = split(data(tmp_path, labels), 0.2)
    assert len(train.images) >= len(val.images) == 1


def test_a_class_with_one_image_is_for_training(tmp_path):
    for seed in range(5):
        dataset = data(tmp_path, ["ax", "a", "ay", "a", "a", "a"])
        train, val, notes = split(dataset, 0.5, seed)
        assert train.boxes_per_class() == {"a": 3, "x": 1, "y": 1}
        assert val.boxes_per_class() == {"a": 3, "x": 0, "y": 0}
        assert notes == ["2 classes have too few images to be in validation as well: x, y"]


def test_no_class_is_in_validation_alone(tmp_path):
    rng = np.random.default_rng(0)
    letters = [chr(ord("A") + i) for i in range(50)]
    labels = ["".join(rng.choice(letters, 5)) for _ in range(25)]
    train, val, _ = split(data(tmp_path, labels))
    in_train, in_val = train.boxes_per_class(), val.boxes_per_class()
    assert [label for label in in_val if in_val[label] and not in_train[label]] == []
    assert val.images


def test_one_image_with_most_boxes_leaves_images_for_training(tmp_path):
    train, val, _ = split(data(tmp_path, ["a" * 100, *"a" * 20]), 0.2)
    assert len(train.images[0].boxes) == 100
    assert len(val.images) == 7  # the first number above 1.5 * 0.2 * 21


def test_the_only_boxes_are_for_training(tmp_path):
    for seed in range(5):
        train, _, _ = split(data(tmp_path, ["", "a"]), 0.2, seed)
        assert train.num_boxes == 1


def test_a_class_with_two_images_is_on_both_sides(tmp_path):
    train, val, notes = split(data(tmp_path, ["a"] * 8 + ["b", "b"]), 0.2)
    assert (train.boxes_per_class()["b"], val.boxes_per_class()["b"]) == (1, 1)
    assert notes == []


def test_what_cannot_be_split(tmp_path):
    dataset = data(tmp_path, "aa")
    with pytest.raises(UserError, match="1 image cannot be split: add more"):
        split(dataset.with_images(dataset.images[:1]))
    for fraction in (0, 0.6, float("nan")):
        with pytest.raises(UserError, match=f"the validation share is {fraction:g}"):
            split(dataset, fraction)


def test_ignored_boxes_do_not_count(tmp_path):
    dataset = data(tmp_path, ["a"] * 10)
    dataset.images[3].boxes[:] = [Box("a", 0, 0, 9, 9, ignored=True)] * 50
    counts = Counter(len(part.images) for part in split(dataset, 0.2)[:2])
    assert counts == {8: 1, 2: 1}
