"""With the same weights, the same numbers as Detectron2's own RetinaNet."""

import detectron2.layers
import pytest
import torch
from conftest import (
    assert_equal_detections,
    assert_equal_training,
    build_pair,
    detect,
    make_batch,
    train_step,
)
from detectron2.utils.events import EventStorage

from retinanet_plugin.execution import Execution

RETINANET = "MODEL.RETINANET."
CASES = {
    "one class": ([RETINANET + "NUM_CLASSES", 1], (3, 5)),
    "five classes, smooth L1 with beta": (
        [RETINANET + "NUM_CLASSES", 5, RETINANET + "SMOOTH_L1_LOSS_BETA", 0.1],
        (2, 30),
    ),
    "eighty classes, GIoU": (
        [RETINANET + "NUM_CLASSES", 80, RETINANET + "BBOX_REG_LOSS_TYPE", "giou"],
        (3, 5),
    ),
    "group norm in the head": ([RETINANET + "NORM", "GN", RETINANET + "NUM_CONVS", 4], (0, 5)),
    "batch norm in the head, of each level": ([RETINANET + "NORM", "BN"], (3, 5)),
    "gamma 0, alpha 0.5": (
        [RETINANET + "FOCAL_LOSS_GAMMA", 0.0, RETINANET + "FOCAL_LOSS_ALPHA", 0.5],
        (3, 5),
    ),
    "gamma 5, no alpha": (
        [RETINANET + "FOCAL_LOSS_GAMMA", 5.0, RETINANET + "FOCAL_LOSS_ALPHA", -1.0],
        (3, 5),
    ),
    "other thresholds": (
        [
            RETINANET + "IOU_THRESHOLDS", [0.3, 0.6],
            RETINANET + "SCORE_THRESH_TEST", 0.3,
            RETINANET + "NMS_THRESH_TEST", 0.3,
            RETINANET + "TOPK_CANDIDATES_TEST", 20,
            "TEST.DETECTIONS_PER_IMAGE", 7,
        ],
        (4, 1),
    ),
    "images without boxes": ([], (0, 0)),
}  # fmt: skip


# 0.6 builds a norm of one channel to learn its name, which group norm refuses.
STOCK_HAS_GROUP_NORM = hasattr(detectron2.layers, "move_device_like")


@pytest.fixture(params=CASES)
def case(request, small_cfg):
    """The model, stock's, and a batch."""
    overrides, num_boxes = CASES[request.param]
    if "GN" in overrides and not STOCK_HAS_GROUP_NORM:
        pytest.skip("Detectron2 0.6 cannot build its RetinaNet with group norm")
    small_cfg.merge_from_list(overrides)
    batch = make_batch(small_cfg.MODEL.RETINANET.NUM_CLASSES, num_boxes)
    return *build_pair(small_cfg), batch


def test_losses_and_gradients_equal_stock(case):
    model, stock, batch = case
    # Twice: the second step divides by a moving average that the first has changed.
    for _ in range(2):
        model.zero_grad()
        stock.zero_grad()
        with EventStorage():
            found, expected = train_step(model, batch), train_step(stock, batch)
        assert_equal_training(found, expected)


def test_detections_equal_stock(case):
    model, stock, batch = case
    # Exactly, since rounding chooses among the many scores of 1; the other way is tested below.
    model.execution = Execution(fast_cpu_conv=False)
    assert_equal_detections(detect(model, batch), detect(stock, batch))


@pytest.mark.usefixtures("fast_cpu_conv")
def test_fast_convolutions_have_stocks_losses_and_gradients(case):
    model, stock, batch = case
    with EventStorage():
        assert_equal_training(train_step(model, batch), train_step(stock, batch))


def test_fast_convolutions_have_stocks_detections(small_cfg, fast_cpu_conv):
    model, stock = build_pair(small_cfg)
    # Moderate scores: where many are 1, rounding chooses among equals.
    for each in (model, stock):
        torch.nn.init.normal_(each.head.cls_score.weight, std=1e-4, generator=seeded())
        torch.nn.init.constant_(each.head.cls_score.bias, -1.0)
    batch = make_batch(5)
    assert_equal_detections(detect(model, batch), detect(stock, batch))
    assert fast_cpu_conv


def seeded():
    return torch.Generator().manual_seed(1)


def test_labels_equal_stock(small_cfg):
    model, stock = build_pair(small_cfg)
    batch = make_batch(5, num_boxes=(40, 0))
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    anchors = model.anchor_generator([features[name] for name in model.in_features])
    instances = [x["instances"] for x in batch]
    labels, boxes = model.label_anchors(anchors, instances)
    expected_labels, expected_boxes = stock.label_anchors(anchors, instances)
    for n in range(2):
        assert torch.equal(labels[n], expected_labels[n])
        foreground = (labels[n] >= 0) & (labels[n] < 5)
        assert foreground.any() == (n == 0)
        assert torch.equal(boxes[n][foreground], expected_boxes[n][foreground])


def test_checkpoint_of_stock_loads(small_cfg, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    model, stock = build_pair(small_cfg)
    torch.nn.init.constant_(stock.head.cls_score.bias, 0.25)
    DetectionCheckpointer(stock, save_dir=str(tmp_path)).save("stock")
    DetectionCheckpointer(model).load(str(tmp_path / "stock.pth"))
    weights, loaded = stock.state_dict(), model.state_dict()
    assert loaded.keys() - weights.keys() == {"loss_normalizer"}
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
