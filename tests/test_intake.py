"""Which images are trained on, which are for validation, and what is said of it."""

import re

import numpy as np
import pytest
from PIL import Image

from retinanet_plugin.data.planning.intake import take_in

LINE = "0 0.5 0.5 0.2 0.4\n"


@pytest.fixture
def data(tmp_path):
    """A function that writes a YOLO data set with a folder for each of some marks."""

    def write(**number_of):
        rng = np.random.default_rng(0)
        for mark, number in number_of.items():
            folder = tmp_path / mark.replace("unmarked", "pictures")
            folder.mkdir()
            for i in range(number):
                pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{mark}{i}.png")
                (folder / f"{mark}{i}.txt").write_text(LINE)
        (tmp_path / "classes.txt").write_text("cat\n")
        return str(tmp_path)

    return write


def marks_of(part):
    """The marks of images, as their names begin."""
    return {re.split(r"[\d/]", image.file_name)[-2] for image in part.images}


A_FIFTH = "1 image of 5 set aside for validation, a fifth of every class; --val names others"


@pytest.mark.parametrize(
    ("number_of", "train", "val", "notes"),
    [
        ({"train": 6, "val": 2}, "train", "val", []),
        ({"train": 6, "val": 2, "test": 4}, "train", "val", ["4 images are not used, marked test"]),
        ({"train": 6, "test": 2}, "train", "test", []),
        ({"unmarked": 6, "test": 2}, "unmarked", "test", []),
        (
            {"train": 6, "val": 2, "unmarked": 1}, "train", "val",
            ["1 image is not used, in no list or folder of a split"],
        ),
        ({"val": 5, "test": 4}, "val", "val", [A_FIFTH, "4 images are not used, marked test"]),
        ({"test": 5}, "test", "test", [A_FIFTH]),
    ],
)  # fmt: skip
def test_marks_are_kept_and_what_is_not_used_is_said(data, number_of, train, val, notes):
    path = data(**number_of)
    intake = take_in(path, None)
    assert (marks_of(intake.train), marks_of(intake.val)) == ({train}, {val})
    if train != val:
        notes = [f"2 images for validation, which {path} marks {val}", *notes]
    assert intake.notes == notes


def test_marked_images_that_are_trained_on_are_said_to_be(data, tmp_path):
    path = data(train=4, test=2, val=3)
    intake = take_in(path, None)
    assert len(intake.train.images) == 4
    others = tmp_path.parent / f"{tmp_path.name}_others"
    others.mkdir()
    Image.new("RGB", (20, 20)).save(others / "a.png")
    (others / "a.txt").write_text(LINE)
    (others / "classes.txt").write_text("cat\n")
    intake = take_in(path, str(others))
    assert len(intake.train.images) == 9
    assert "has 5 images that are marked val or test: trained on as well" in intake.notes[0]


def test_images_for_validation_that_are_trained_on_are_counted(data, tmp_path):
    path = data(train=4, val=3)
    assert "look like" not in " ".join(take_in(path, None).notes)
    (tmp_path / "val/val0.png").write_bytes((tmp_path / "train/train2.png").read_bytes())
    with Image.open(tmp_path / "train/train1.png") as image:
        image.resize((60, 40)).save(tmp_path / "val/val2.png")
    for notes in (
        take_in(path, None).notes,
        take_in(str(tmp_path / "train"), str(tmp_path / "val")).notes,
    ):
        assert (
            "2 images look like others that are trained on, of 3 for validation, such as"
            in notes[-1]
        )
        assert "/val/val0.png like" in notes[-1]
        assert "/train/train2.png: results" in notes[-1]
