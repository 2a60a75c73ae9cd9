"""Soft targets, weights of boxes, an IoU branch and scales of levels: in the whole model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import make_batch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou
from torch import nn

from retinanet_plugin import MATCHER_REGISTRY, UserError
from retinanet_plugin.head import Predictions
from retinanet_plugin.losses import QualityFocalLoss, giou_loss
from retinanet_plugin.matching import Targets

K = 5


def model_of(cfg, **keys):
    cfg = cfg.clone()
    cfg.MODEL.RETINANET.update(NUM_CLASSES=K, **keys)
    return build_model(cfg)


def parts_of_a_step(model, batch):
    """Anchors, predictions and targets of a batch."""
    features, predictions = model.backbone_and_head(model.preprocess_image(batch).tensor)
    anchors = model.anchor_generator(features)
    return anchors, predictions, model.matching(batch, anchors, predictions)


def ious_by_hand(model, anchors, predictions, targets):
    """IoU (N, R) of every decoded prediction with the anchor's matched box."""
    transform, rows = model.inference.box2box_transform, []
    deltas = torch.cat([x.flatten(1, 3) for x in predictions.pred_anchor_deltas], dim=1)
    for of_image, boxes in zip(deltas, targets.matched_gt_boxes):
        decoded = Boxes(transform.apply_deltas(of_image, Boxes.cat(anchors).tensor))
        rows.append(
            torch.cat([pairwise_iou(decoded[i : i + 1], Boxes(b[None]))[0]
                       for i, b in enumerate(boxes)])
        )  # fmt: skip
    return torch.stack(rows)


@pytest.fixture
def batch():
    return make_batch(K)


@pytest.mark.parametrize("weighting", ["none", "quality", "score"])
def test_losses_with_soft_targets_by_hand(small_cfg, batch, weighting):
    model = model_of(
        small_cfg,
        CLS_LOSS_NAME="QualityFocalLoss",
        BBOX_REG_LOSS_TYPE="giou",
        BBOX_REG_LOSS_WEIGHTING=weighting,
        BBOX_REG_LOSS_WEIGHT=2.0,
    )
    model.loss_normalizer.fill_(50.0)
    anchors, predictions, targets = parts_of_a_step(model, batch)
    foreground = (targets.gt_labels >= 0) & (targets.gt_labels < K)
    quality = ious_by_hand(model, anchors, predictions, targets).where(foreground, 0)

    logits = torch.cat([x.flatten(1, 3) for x in predictions.pred_logits], dim=1)
    right_cls = QualityFocalLoss()([logits], [targets.gt_labels], None, [quality])
    deltas = torch.cat([x.flatten(1, 3) for x in predictions.pred_anchor_deltas], dim=1)
    decoded = model.inference.box2box_transform.apply_deltas(
        deltas.flatten(0, 1), Boxes.cat(anchors).tensor.repeat(len(batch), 1)
    )
    boxes = giou_loss(decoded, targets.matched_gt_boxes.flatten(0, 1)).view_as(quality)[foreground]
    normalizer = 0.9 * 50 + 0.1 * foreground.sum()
    if weighting == "none":
        right_box = boxes.sum() / normalizer
    else:
        score = logits.sigmoid().amax(-1)
        weights = (quality if weighting == "quality" else score)[foreground]
        right_box = (weights * boxes).sum() / weights.sum().clamp(min=1)

    losses = model.losses(anchors, predictions, targets)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    torch.testing.assert_close(losses["loss_cls"], right_cls / normalizer, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["loss_box_reg"], 2 * right_box, rtol=1e-4, atol=1e-6)


def test_qualities_of_a_matcher_are_the_targets_and_their_sum_the_divisor(small_cfg, batch):
    model = model_of(small_cfg, CLS_LOSS_NAME="QualityFocalLoss", MATCHER_NAME="TaskAlignedMatcher")
    model.loss_normalizer.fill_(50.0)
    anchors, predictions, targets = parts_of_a_step(model, batch)
    labels = targets.gt_labels.split([len(level) for level in anchors], dim=1)
    soft = targets.gt_qualities.split([len(level) for level in anchors], dim=1)
    right = model.cls_loss(
        [x.flatten(1, 3) for x in predictions.pred_logits], list(labels), None, list(soft)
    )
    loss = model.losses(anchors, predictions, targets)["loss_cls"]
    normalizer = 0.9 * 50 + 0.1 * targets.gt_qualities.sum().clamp(min=1)
    torch.testing.assert_close(loss, right / normalizer)
    torch.testing.assert_close(model.loss_normalizer, normalizer)


PARTS = {
    "QFL": {"CLS_LOSS_NAME": "QualityFocalLoss"},
    "VFL, weighted": {"CLS_LOSS_NAME": "VarifocalLoss", "BBOX_REG_LOSS_WEIGHTING": "quality"},
    "ATSS": {"CLS_LOSS_NAME": "VarifocalLoss", "MATCHER_NAME": "ATSSMatcher"},
    "TAL": {
        "CLS_LOSS_NAME": "QualityFocalLoss",
        "MATCHER_NAME": "TaskAlignedMatcher",
        "BBOX_REG_LOSS_WEIGHTING": "quality",
    },
    "TAL, hard": {"MATCHER_NAME": "TaskAlignedMatcher"},
    "score": {"BBOX_REG_LOSS_WEIGHTING": "score"},
    "branch": {"IOU_BRANCH": True},
    "scales": {"BOX_SCALES": True, "SCORE_VOTING": True},
    "all": {
        "CLS_LOSS_NAME": "QualityFocalLoss",
        "MATCHER_NAME": "TaskAlignedMatcher",
        "BBOX_REG_LOSS_TYPE": "giou",
        "BBOX_REG_LOSS_WEIGHTING": "quality",
        "IOU_BRANCH": True,
        "BOX_SCALES": True,
        "SCORE_VOTING": True,
        "NORM": "GN",
    },
}


@pytest.mark.parametrize("keys", PARTS.values(), ids=PARTS)
def test_trains_detects_and_copies(small_cfg, batch, keys):
    model = model_of(small_cfg, **keys)
    other = copy.deepcopy(model)
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert {name: float(x) for name, x in other(batch).items()} == {
        name: float(x) for name, x in losses.items()
    }
    model.eval()
    model.inference.score_thresh = 0.0  # nothing is trained
    with torch.no_grad():
        (detections, *_) = model([{"image": batch[0]["image"]}])
    assert len(detections["instances"]) > 0
    no_objects = [{**x, "instances": x["instances"][:0]} for x in batch]
    empty = model.train()(no_objects)
    assert empty["loss_box_reg"] == 0
    assert empty["loss_cls"].isfinite()


def test_an_iou_branch_learns_the_iou_and_multiplies_the_scores(small_cfg, batch):
    model = model_of(small_cfg, IOU_BRANCH=True, IOU_LOSS_WEIGHT=3.0)
    model.loss_normalizer.fill_(50.0)
    anchors, predictions, targets = parts_of_a_step(model, batch)
    foreground = (targets.gt_labels >= 0) & (targets.gt_labels < K)
    quality = ious_by_hand(model, anchors, predictions, targets)[foreground]
    logits = torch.cat([x.flatten(1) for x in predictions.pred_ious], dim=1)[foreground]
    right = 3 * F.binary_cross_entropy_with_logits(logits, quality, reduction="sum")
    losses = model.losses(anchors, predictions, targets)
    assert list(losses) == ["loss_cls", "loss_box_reg", "loss_iou"]
    torch.testing.assert_close(losses["loss_iou"], right / (0.9 * 50 + 0.1 * foreground.sum()))

    model.eval()
    model.inference.score_thresh = 0.0
    nn.init.zeros_(model.head.iou_pred.weight)
    nn.init.constant_(model.head.iou_pred.bias, 0.0)  # an IoU of 1/2 everywhere
    with torch.no_grad():
        (halved,) = model(batch[:1])
        model.head.iou_pred = None
        (plain,) = model(batch[:1])
    torch.testing.assert_close(halved["instances"].scores, plain["instances"].scores / 2)
    torch.testing.assert_close(
        halved["instances"].pred_boxes.tensor, plain["instances"].pred_boxes.tensor
    )


def test_scales_multiply_the_deltas_of_their_level(small_cfg, batch):
    model = model_of(small_cfg, BOX_SCALES=True)
    with torch.no_grad():
        features, before = model.backbone_and_head(model.preprocess_image(batch).tensor)
        model.head.box_scales.copy_(torch.arange(1.0, 6.0))
        after = Predictions.of_head(model.head(features), K)
    for level, (old, new) in enumerate(
        zip(before.pred_anchor_deltas, after.pred_anchor_deltas), start=1
    ):
        torch.testing.assert_close(new, old * level)


def test_what_is_off_leaves_no_weight(small_cfg):
    plain = set(model_of(small_cfg).state_dict())
    rich = set(model_of(small_cfg, IOU_BRANCH=True, BOX_SCALES=True).state_dict())
    assert rich - plain == {"head.box_scales", "head.iou_pred.weight", "head.iou_pred.bias"}


def test_an_unknown_weighting_is_a_sentence(small_cfg):
    with pytest.raises(UserError, match=r"BBOX_REG_LOSS_WEIGHTING is 'iou': choose one of none, "):
        model_of(small_cfg, BBOX_REG_LOSS_WEIGHTING="iou")


class OwnMatcher(nn.Module):
    """Gives qualities, of some shape."""

    def __init__(self, model, shape=None, needs_predictions=True):
        super().__init__()
        self.inner, self.shape, self.needs_predictions = model.matcher, shape, needs_predictions

    def forward(self, anchors, gt_instances, *predictions):
        labels, boxes, _ = self.inner(anchors, gt_instances)
        return Targets(labels, boxes, torch.ones(self.shape or labels.shape))


def test_qualities_that_nothing_would_read_are_a_sentence(small_cfg, batch):
    model = model_of(small_cfg)
    model.matcher = OwnMatcher(model, needs_predictions=False)
    with pytest.raises(UserError, match="set needs_predictions = True in its class"):
        model(batch)


def test_qualities_of_another_shape_are_a_sentence(small_cfg, batch):
    model = model_of(small_cfg)
    model.matcher = OwnMatcher(model, shape=(3,))
    with pytest.raises(UserError, match=r"and, optional, gt_qualities of shape \(2, "):
        model(batch)


def test_registered():
    assert "TaskAlignedMatcher" in MATCHER_REGISTRY
