"""The demo data set: the same bytes for the same seed, tight boxes, val digits unseen in train."""

import hashlib
import json

import cv2
import numpy as np
import pytest

from retinanet_plugin import UserError
from retinanet_plugin.data import digits as module
from retinanet_plugin.data.digits import NUM_IMAGES, write_digits


def digest(folder):
    hashes = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            hashes.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return hashes.hexdigest()


def test_same_seed_same_bytes(digits, tmp_path):
    counts = {"train": 8, "val": 4}
    write_digits(str(tmp_path / "again"), seed=1, num_images=counts)
    write_digits(str(tmp_path / "other"), seed=2, num_images=counts)
    assert digest(tmp_path / "again") == digest(digits) != digest(tmp_path / "other")


def test_size_of_the_set():
    assert NUM_IMAGES["train"] >= 1000
    assert NUM_IMAGES["val"] >= 200


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_and_annotations_agree(digits, split):
    coco = json.loads((digits / f"annotations/{split}.json").read_text())
    assert [c["name"] for c in coco["categories"]] == list("0123456789")
    for image in coco["images"]:
        pixels = cv2.imread(str(digits / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        assert min(pixels.shape[:2]) >= 160
        boxes = [a["bbox"] for a in coco["annotations"] if a["image_id"] == image["id"]]
        assert 1 <= len(boxes) <= 5
        for x, y, w, h in boxes:
            assert 20 <= max(w, h) <= 80
            assert x >= 0
            assert y >= 0
            assert x + w <= image["width"]
            assert y + h <= image["height"]


def test_boxes_are_tight_around_the_ink():
    """Drawn on one flat colour, the digits' pixels reach every side of their boxes."""
    glyphs, _, _ = module._load_sources()
    flat = [np.full((427, 640, 3), 90, dtype=np.uint8)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        image, boxes, _ = module._draw_image(rng, glyphs, np.arange(len(glyphs)), flat)
        ink = np.abs(image.astype(int) - 90).max(axis=2) > 8
        covered = np.zeros_like(ink)
        for x, y, w, h in boxes:
            rows, columns = np.nonzero(ink[y : y + h, x : x + w])
            slack = max(2, 0.06 * max(w, h))
            assert max(rows.min(), h - 1 - rows.max()) <= slack
            assert max(columns.min(), w - 1 - columns.max()) <= slack
            covered[y : y + h, x : x + w] = True
        assert not ink[~covered].any()


def test_val_digits_never_appear_in_train(tmp_path, monkeypatch):
    shown = {}
    draw = module._draw_image

    def spy(rng, glyphs, choice, photographs):
        image, boxes, chosen = draw(rng, glyphs, choice, photographs)
        shown.setdefault(len(choice), set()).update(int(glyph) for glyph in chosen)
        return image, boxes, chosen

    monkeypatch.setattr(module, "_draw_image", spy)
    write_digits(str(tmp_path / "digits"), num_images={"train": 150, "val": 50})
    val, train = (shown[size] for size in sorted(shown))
    assert len(val) > 60
    assert len(train) > 200
    assert not val & train


def test_an_existing_folder_is_left_alone(digits):
    before = digest(digits)
    with pytest.raises(UserError, match="has files, such as annotations: name a new folder"):
        write_digits(str(digits))
    assert digest(digits) == before
