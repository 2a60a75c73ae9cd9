"""With the same weights, the same numbers as Detectron2's own RetinaNet."""

import pytest
import torch
from conftest import make_batch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

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


def build_pair(cfg):
    """This package's model and stock's, with the same weights."""
    stock_cfg = cfg.clone()
    stock_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    stock_cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    model, stock = build_model(cfg), build_model(stock_cfg)
    # New heads score every anchor alike. With these weights many scores are 1, so that the order
    # of equal scores is compared as well.
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.05)
    torch.nn.init.constant_(model.head.cls_score.bias, -4.0)
    weights = model.state_dict()
    weights.pop("loss_normalizer")
    stock.load_state_dict(weights)
    return model, stock


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_stock(case, small_cfg):
    overrides, num_boxes = CASES[case]
    small_cfg.merge_from_list(overrides)
    model, stock = build_pair(small_cfg)
    batch = make_batch(small_cfg.MODEL.RETINANET.NUM_CLASSES, num_boxes)
    # Twice: the second step divides by a moving average that the first has changed.
    for _ in range(2):
        with EventStorage():
            losses, expected = model(batch), stock(batch)
        assert losses.keys() == expected.keys() == {"loss_cls", "loss_box_reg"}
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-7)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    actual, wanted = gradients(model), gradients(stock)
    assert actual.keys() == wanted.keys()
    for name, grad in wanted.items():
        difference = (actual[name] - grad).norm()
        # Next to nothing: the bias before a batch norm, whose gradient is rounding alone.
        assert difference <= 2e-4 * grad.norm() + 1e-6, name


@pytest.mark.parametrize("case", CASES)
def test_detections_equal_stock(case, small_cfg):
    # Exactly, since rounding chooses among the many scores of 1; see test_switches.py for the rest.
    small_cfg.MODEL.RETINANET.FAST_CPU_CONV = False
    check_detections_equal_stock(case, small_cfg)


def check_detections_equal_stock(case, small_cfg):
    overrides, num_boxes = CASES[case]
    small_cfg.merge_from_list(overrides)
    model, stock = build_pair(small_cfg)
    batch = make_batch(small_cfg.MODEL.RETINANET.NUM_CLASSES, num_boxes)
    with torch.no_grad():
        detections, expected = model.eval()(batch), stock.eval()(batch)
    for found, wanted in zip(detections, expected):
        found, wanted = found["instances"], wanted["instances"]
        assert found.image_size == wanted.image_size
        assert len(found) == len(wanted) > 0
        assert torch.equal(found.pred_classes, wanted.pred_classes)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            found.pred_boxes.tensor, wanted.pred_boxes.tensor, rtol=0, atol=0.01
        )


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
