"""Squares of images at random scales: their size, and where boxes go."""

import numpy as np
import pytest
from conftest import ROOT
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from retinanet_plugin.config import load_config
from retinanet_plugin.data.loading.mapper import RetinaNetMapper
from retinanet_plugin.data.loading.scale_jitter import ScaleJitter, with_scale_jitter
from retinanet_plugin.engine.checks.config_values import value_errors


@pytest.fixture
def record(tmp_path):
    """A white box of 50x40 in a black image of 200x100."""
    image = Image.new("RGB", (200, 100))
    image.paste((255, 255, 255), (100, 40, 150, 80))
    image.save(tmp_path / "a.png")
    box = {"bbox": [100.0, 40.0, 50.0, 40.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    annotations = [{**box, "iscrowd": 0}, {**box, "iscrowd": 1}]
    name = str(tmp_path / "a.png")
    return {"file_name": name, "height": 100, "width": 200, "annotations": annotations}


def config(*scales):
    cfg = load_config(str(ROOT / "configs/Base-RetinaNet.yaml"))
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.SCALE_JITTER = (96, 128), list(scales)
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


@pytest.mark.parametrize("seed", range(10))
def test_every_image_is_a_square_and_boxes_stay_on_their_objects(record, seed):
    np.random.seed(seed)
    sample = RetinaNetMapper(config(0.5, 2.0), is_train=True)(record)
    assert sample["image"].shape == (3, 128, 128)
    for x1, y1, x2, y2 in sample["instances"].gt_boxes.tensor.round().int().tolist():
        white = sample["image"][:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
        assert (white == 255).all()
    assert len(sample["ignore_boxes"]) == len(sample["instances"])


def test_at_scale_1_the_whole_image_just_fits_in(record):
    sample = RetinaNetMapper(config(1.0, 1.0), is_train=True)(record)
    # 200 pixels are 128; the lower half is padding.
    (box,) = sample["instances"].gt_boxes.tensor.tolist()
    assert box == pytest.approx([64, 25.6, 96, 51.2])
    assert (sample["image"][:, 64:] == 128).all()
    assert (sample["image"][:, :20] == 0).all()


def test_objects_have_all_sizes_between(record):
    np.random.seed(0)
    mapper, widths = RetinaNetMapper(config(0.5, 1.0), is_train=True), []
    for _ in range(200):
        (box,) = mapper(record)["instances"].gt_boxes.tensor.tolist()
        widths.append(box[2] - box[0])
    assert min(widths) == pytest.approx(16, abs=1)  # 50 pixels of 200 in 64
    assert max(widths) == pytest.approx(32, abs=1)


def test_other_augmentations_stay_where_they_are():
    flip, crop = T.RandomFlip(), T.RandomCrop("relative", (0.5, 0.5))
    first, jitter, last = with_scale_jitter(
        [crop, T.ResizeShortestEdge(96), flip], config(0.5, 2.0)
    )
    assert (first, last) == (crop, flip)
    assert isinstance(jitter, ScaleJitter)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (128, 128)])
def test_images_of_any_shape_are_squares(shape):
    for _ in range(20):
        image = np.zeros((*shape, 3), np.uint8)
        transform = ScaleJitter(0.1, 3.0, 128).get_transform(image)
        assert transform.apply_image(image).shape == (128, 128, 3)


def test_evaluation_sees_the_whole_image(record):
    cfg = config(0.5, 2.0)
    cfg.INPUT.MIN_SIZE_TEST = 100
    assert RetinaNetMapper(cfg, is_train=False)(record)["image"].shape == (3, 100, 200)


@pytest.mark.parametrize("scales", [[1.0], [2.0, 1.0], [0.0, 1.0], [0.5, 1.0, 2.0], ["a", "b"]])
def test_what_is_no_range_is_refused(scales):
    errors = list(value_errors(config(*scales), training=True))
    assert any("INPUT.SCALE_JITTER" in error for error in errors)


@pytest.mark.parametrize("scales", [[], [1.0, 1.0], [0.5, 2]])
def test_a_range_or_none_is_right(scales):
    errors = list(value_errors(config(*scales), training=True))
    assert not any("INPUT.SCALE_JITTER" in error for error in errors)
