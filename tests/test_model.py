"""Shapes, gradients, the moving average and precision of the whole model."""

import copy

import pytest
import torch
from conftest import make_batch, train_step
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from retinanet_plugin import ModularRetinaNet, UserError


def test_features_have_the_papers_strides(small_cfg):
    features = build_backbone(small_cfg)(torch.zeros(1, 3, 128, 256))
    shapes = {name: tuple(feature.shape) for name, feature in features.items()}
    assert shapes == {f"p{i}": (1, 64, 128 >> i, 256 >> i) for i in range(3, 8)}


@pytest.mark.parametrize(
    ("depth", "groups", "width", "res2"),
    [(18, 1, 64, 64), (34, 1, 64, 64), (50, 32, 4, 256), (101, 32, 8, 256), (152, 1, 64, 256)],
)
def test_every_resnet_and_resnext_goes_under_the_pyramid(small_cfg, depth, groups, width, res2):
    resnets = small_cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = depth, groups, width
    resnets.RES2_OUT_CHANNELS = res2
    backbone = build_backbone(small_cfg)
    conv2 = backbone.bottom_up.res3[0].conv2
    assert (conv2.groups, conv2.out_channels) == (groups, 2 * groups * width)
    assert backbone.bottom_up.output_shape()["res5"].channels == 8 * res2
    with torch.no_grad():
        assert list(backbone(torch.zeros(1, 3, 64, 64))) == [f"p{i}" for i in range(3, 8)]


@pytest.mark.parametrize(("source", "channels"), [("res5", 512), ("p5", 64)])
def test_p6_and_p7_by_hand(small_cfg, source, channels):
    small_cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE = source
    backbone = build_backbone(small_cfg)
    images = torch.rand(1, 3, 128, 128)
    features = backbone(images)
    c5 = backbone.bottom_up(images)["res5"] if source == "res5" else features["p5"]
    assert c5.shape[1] == channels
    p6 = backbone.top_block.p6(c5)
    torch.testing.assert_close(features["p6"], p6)
    torch.testing.assert_close(features["p7"], backbone.top_block.p7(p6.relu()))
    for conv in (backbone.top_block.p6, backbone.top_block.p7):
        assert (conv.kernel_size, conv.stride) == ((3, 3), (2, 2))


def test_head_outputs_have_a_times_k_and_a_times_4_channels(small_cfg):
    model = build_model(small_cfg)
    features = [torch.rand(2, 64, 8, 12), torch.rand(2, 64, 4, 6)]
    pred_logits, pred_anchor_deltas = model.head(features)
    assert [tuple(x.shape) for x in pred_logits] == [(2, 9 * 5, 8, 12), (2, 9 * 5, 4, 6)]
    assert [tuple(x.shape) for x in pred_anchor_deltas] == [(2, 9 * 4, 8, 12), (2, 9 * 4, 4, 6)]


def test_every_anchor_starts_at_the_prior_probability(small_cfg):
    head = build_model(small_cfg).head
    (logits,), _ = head([torch.zeros(1, 64, 4, 4)])
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01))


def test_every_trainable_parameter_receives_a_gradient(small_cfg):
    model = build_model(small_cfg)
    train_step(model, make_batch(5))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_losses_are_divided_by_the_moving_average_and_boxes_weighted(small_cfg):
    model = build_model(small_cfg)
    batch = make_batch(5)
    anchors = 0
    with EventStorage() as storage:
        losses = model(batch)
        anchors = storage.latest()["num_pos_anchors"][0] * len(batch)
    average = 0.9 * 100 + 0.1 * anchors
    assert model.loss_normalizer.item() == pytest.approx(average)

    model.box_loss_weight = 3.0
    second = model(batch)
    second_average = 0.9 * average + 0.1 * anchors
    assert second["loss_cls"].item() == pytest.approx(
        losses["loss_cls"].item() * average / second_average, rel=1e-5
    )
    assert second["loss_box_reg"].item() == pytest.approx(
        3 * losses["loss_box_reg"].item() * average / second_average, rel=1e-5
    )


def test_evaluation_leaves_the_moving_average_alone(small_cfg):
    model = build_model(small_cfg)
    model(make_batch(5))
    before = model.loss_normalizer.clone()
    with torch.no_grad():
        model.eval()(make_batch(5))
    assert torch.equal(model.loss_normalizer, before)


def test_moving_average_is_saved_and_restored(small_cfg):
    model, other = build_model(small_cfg), build_model(small_cfg)
    model(make_batch(5))
    assert model.loss_normalizer != other.loss_normalizer
    other.load_state_dict(model.state_dict())
    assert model.loss_normalizer == other.loss_normalizer


def test_batches_without_any_box_train(small_cfg):
    model = build_model(small_cfg)
    losses, _ = train_step(model, make_batch(5, num_boxes=(0, 0)))
    assert losses["loss_box_reg"] == 0
    assert losses["loss_cls"] > 0
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


def test_an_image_without_boxes_is_all_background(small_cfg):
    model = build_model(small_cfg)
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16]]))]
    empty = Instances((16, 16), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
    labels, boxes = model.label_anchors(anchors, [empty])
    assert labels[0].tolist() == [5, 5]
    assert boxes[0].tolist() == [[0] * 4] * 2


def test_losses_are_float32_under_autocast(small_cfg):
    model = build_model(small_cfg)
    batch = make_batch(5)
    exact = copy.deepcopy(model)(batch)
    dtypes = []
    model.head.register_forward_hook(lambda head, _, out: dtypes.append(out[0][0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = train_step(model, batch)
    assert dtypes == [torch.bfloat16]
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.02, atol=0)


def test_detections_scale_with_the_output_size(small_cfg):
    small_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    model = build_model(small_cfg).eval()
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        same = model([{"image": image}])[0]["instances"]
        double = model([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert (same.image_size, double.image_size) == ((64, 64), (128, 192))
    factor = torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(double.pred_boxes.tensor, same.pred_boxes.tensor * factor)


def test_pictures_of_training_as_in_stock(small_cfg):
    small_cfg.VIS_PERIOD = 1
    with EventStorage() as storage:
        build_model(small_cfg)(make_batch(5))
        assert len(storage._vis_data) == 1


def test_training_without_truth_is_refused(small_cfg):
    batch = [{"image": torch.zeros(3, 64, 64), "file_name": "a.jpg"}]
    with pytest.raises(ValueError, match=r"a\.jpg has no 'instances'"):
        build_model(small_cfg)(batch)


@pytest.mark.parametrize("bad_class", [5, 6, -1])
@pytest.mark.parametrize("name", [{"file_name": "data/a.jpg"}, {}])
def test_classes_that_the_model_does_not_have_are_refused(small_cfg, name, bad_class):
    model, batch = build_model(small_cfg), make_batch(5)
    batch[1].update(name)
    batch[1]["instances"].gt_classes[2] = bad_class
    where = name.get("file_name", "image 1 of the batch")
    message = rf"^{where} has a box of class {bad_class} but .*NUM_CLASSES is 5 \(classes 0 to 4\)"
    with pytest.raises(UserError, match=message):
        model(batch)
    anchors = [Boxes(torch.rand(3, 4))]
    with pytest.raises(UserError, match=f"^image 1 of the batch has a box of class {bad_class}"):
        model.label_anchors(anchors, [x["instances"] for x in batch])


class _PredictionMatcher(torch.nn.Module):
    """Makes the anchor of the highest score of each image foreground: it asks for predictions."""

    needs_predictions = True

    def forward(self, anchors, gt_instances, pred_logits, pred_anchor_deltas):
        assert not any(x.requires_grad for x in pred_logits + pred_anchor_deltas)
        scores = torch.cat([level.flatten(1, 3).amax(2) for level in pred_logits], dim=1)
        labels = torch.full_like(scores, 5, dtype=torch.int64)
        labels.scatter_(1, scores.argmax(1, keepdim=True), 0)
        boxes = torch.stack([x.gt_boxes.tensor[0] for x in gt_instances])
        return labels, boxes[:, None].expand(*labels.shape, 4)


def test_a_matcher_that_asks_for_predictions_gets_them_without_gradient(small_cfg):
    model = build_model(small_cfg)
    model.matcher = _PredictionMatcher()
    with EventStorage() as storage:
        losses, grads = train_step(model, make_batch(5))
        assert storage.latest()["num_pos_anchors"][0] == 1
    assert losses["loss_box_reg"] > 0
    assert all(grad.isfinite().all() for grad in grads.values())


def test_a_subclass_can_label_anchors_itself(small_cfg):
    class Background(ModularRetinaNet):
        def label_anchors(self, anchors, gt_instances):
            labels, boxes = super().label_anchors(anchors, gt_instances)
            return torch.full_like(labels, self.num_classes), boxes

    model = Background(small_cfg)
    assert model.train()(make_batch(5))["loss_box_reg"] == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.RETINANET.IN_FEATURES", ["p3", "p9"], "has 'p9', which the backbone"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]], "has 2 levels but .* has 5"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [8], [8], [8], [8, 9]], "anchors at a location"),
        ("MODEL.FPN.IN_FEATURES", ["res3", "res9"], "has 'res9', which build_resnet_backbone"),
        ("MODEL.FPN.IN_FEATURES", [], "IN_FEATURES is empty"),
        ("MODEL.FPN.TOP_BLOCK_IN_FEATURE", "res4x", "is 'res4x', which does not exist"),
        ("MODEL.FPN.BOTTOM_UP", "build_nothing", "is 'build_nothing', .* build_resnet_b"),
        ("MODEL.RETINANET.CLS_LOSS_NAME", "FocallLoss", "is 'FocallLoss', .* FocalLoss"),
        ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "l3", "is 'l3', .* smooth_l1"),
        ("MODEL.RETINANET.MATCHER_NAME", "Matcher", "is 'Matcher', .* IoUMatcher"),
        ("MODEL.RETINANET.HEAD_NAME", "Head", "is 'Head', .* RetinaNetHead"),
    ],
)
def test_parts_that_do_not_fit_are_refused(small_cfg, key, value, message):
    small_cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=message):
        build_model(small_cfg)
