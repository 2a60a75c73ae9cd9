"""Windows around boxes: where they may lie, and what becomes of images and boxes."""

import numpy as np
import pytest
from conftest import ROOT
from detectron2.structures import BoxMode

from retinanet_plugin.config import load_config
from retinanet_plugin.data.loading.box_crop import BoxCrop
from retinanet_plugin.data.loading.mapper import RetinaNetMapper


def window(share, boxes, size=(100, 200)):
    """(x, y, width, height) of a window in an image of ``size``, height and width."""
    crop = BoxCrop(share).get_transform(np.zeros((*size, 3), np.uint8), np.array(boxes, float))
    return crop.x0, crop.y0, crop.w, crop.h


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("box", [(0, 0, 10, 10), (95, 45, 105, 55), (180, 90, 200, 100)])
def test_a_window_holds_the_box_and_lies_in_the_image(box, seed):
    np.random.seed(seed)
    x, y, w, h = window(0.25, [box])
    assert (w, h) == (50, 25)
    assert 0 <= x <= box[0]
    assert box[2] <= x + w <= 200
    assert 0 <= y <= box[1]
    assert box[3] <= y + h <= 100


@pytest.mark.parametrize(("size", "expected"), [((100, 6000), (100, 50)), ((900, 30), (15, 30))])
def test_a_window_of_a_long_image_is_no_longer_than_two_to_one(size, expected):
    assert window(0.5, [(5, 5, 9, 9)], size)[2:] == expected


def test_a_window_is_anywhere_it_can_be():
    np.random.seed(0)
    found = {window(0.25, [(95, 45, 105, 55)])[0] for _ in range(500)}
    assert found == set(range(105 - 50, 95 + 1))


def test_a_window_grows_for_a_large_box():
    # The box is 100 pixels wide and 10 high: 110 or more are wide enough, 25 are high enough.
    _, _, w, h = window(0.25, [(50, 45, 150, 55)])
    assert (w, h) == (120, 25)


def test_a_box_as_large_as_the_image_takes_it_whole():
    assert window(0.25, [(0, 0, 200, 100)]) == (0, 0, 200, 100)


@pytest.mark.parametrize("box", [(-50, -50, 10, 10), (190, 90, 300, 300), (99.5, 0.2, 99.9, 0.4)])
def test_boxes_beyond_the_border_and_between_pixels(box):
    x, y, w, h = window(0.1, [box])
    assert min(x, y) >= 0
    assert min(w, h) >= 1
    assert x + w <= 200
    assert y + h <= 100


def test_without_a_box_the_window_is_anywhere():
    np.random.seed(0)
    assert {window(0.5, np.zeros((0, 4)), (4, 4))[0] for _ in range(50)} == {0, 1, 2}


def test_every_box_has_its_turn():
    np.random.seed(0)
    boxes = [(0, 0, 10, 10), (190, 90, 200, 100)]
    assert {window(0.06, boxes)[0] > 100 for _ in range(50)} == {False, True}


@pytest.fixture
def record(tmp_path):
    from PIL import Image

    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    box = {"bbox": [150, 40, 20, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    crowd = {**box, "bbox": [0, 0, 9, 9], "iscrowd": 1}
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 100,
        "width": 200,
        "annotations": [{**box, "iscrowd": 0}, crowd],
    }


@pytest.mark.parametrize("seed", range(10))
def test_training_sees_windows_of_the_resized_image(record, seed):
    cfg = load_config(str(ROOT / "configs/Base-RetinaNet.yaml"))
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (200,), 400
    cfg.INPUT.BOX_CROP = 0.4
    np.random.seed(seed)
    sample = RetinaNetMapper(cfg, is_train=True)(record)
    assert sample["image"].shape == (3, 80, 160)
    (box,) = sample["instances"].gt_boxes.tensor.tolist()
    assert (box[2] - box[0], box[3] - box[1]) == (40, 60)
    # Testing sees the whole image.
    cfg.INPUT.MIN_SIZE_TEST = 200
    assert RetinaNetMapper(cfg, is_train=False)(record)["image"].shape == (3, 200, 400)
