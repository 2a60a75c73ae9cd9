"""Regions to ignore: which anchors they keep from being background, which then learn nothing."""

import copy

import pytest
import torch
from conftest import DeviceOperations, assert_equal_training, build_pair, make_batch, train_step
from detectron2.config import LazyConfig
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch._subclasses.fake_tensor import FakeTensorMode

from retinanet_plugin import MATCHER_REGISTRY, UserError
from retinanet_plugin.execution.cuda_graphs import CudaGraphs, TrainingStep
from retinanet_plugin.head import Predictions
from retinanet_plugin.matching import (
    Targets,
    ignore_covered,
    padded_regions,
    padded_truth,
    read_ignore_boxes,
)

K = 5
NONE = torch.zeros(0, 4)


def labels_after(gt_labels, anchors, *regions, threshold=0.5):
    """Labels of the anchors (R, 4) of one image."""
    boxes = torch.tensor(regions, dtype=torch.float32).reshape(-1, 4)
    anchors = [Boxes(torch.tensor(anchors, dtype=torch.float32))]
    labels = ignore_covered(torch.tensor([gt_labels]), anchors, [boxes], threshold, K)
    return labels[0].tolist()


# ------------------------------------------------------------------ which anchors

SQUARE = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("region", "threshold", "is_ignored"),
    [
        ((0, 0, 10, 10), 1.0, True),  # all of the anchor
        ((-5, -5, 95, 95), 1.0, True),  # and much more
        ((0, 0, 10, 9.9), 1.0, False),
        ((0, 0, 5, 10), 0.5, True),  # half of it
        ((5, 0, 80, 10), 0.5, True),
        ((0, 0, 4.9, 10), 0.5, False),
        ((0, 0, 5, 5), 0.25, True),  # a quarter
        ((0, 0, 5, 5), 0.3, False),
        ((10, 0, 20, 10), 0.01, False),  # beside it
        ((3, 3, 3, 3), 0.01, False),  # no area
        ((0, 0, 0, 0), 0.01, False),
    ],
)
def test_what_covers_an_anchor(region, threshold, is_ignored):
    """The share of the anchor's own area counts, however large the region is."""
    assert labels_after([K], [SQUARE], region, threshold=threshold) == [-1 if is_ignored else K]


def test_regions_are_not_added_up():
    halves = (0, 0, 5, 10), (5, 0, 10, 10)
    assert labels_after([K], [SQUARE], *halves, threshold=0.5) == [-1]
    assert labels_after([K], [SQUARE], *halves, threshold=0.6) == [K]


def test_only_background_changes():
    """An object with a box of its own is learnt, in a crowd as well."""
    assert labels_after([0, K - 1, -1, K], [SQUARE] * 4, SQUARE) == [0, K - 1, -1, -1]


def test_an_anchor_without_area_is_not_covered():
    assert labels_after([K], [(5, 5, 5, 5)], SQUARE) == [K]


def test_each_image_has_regions_of_its_own():
    levels = [[0.0, 0, 10, 10], [20, 0, 30, 10]], [[0.0, 0, 40, 40]]
    anchors = [Boxes(torch.tensor(level)) for level in levels]
    regions = [
        NONE,
        torch.tensor([[19.0, 0, 31, 12]]),
        torch.tensor([[0.0, 0, 9, 9], [0, 0, 50, 50]]),
    ]
    labels = torch.full((3, 3), K)
    found = ignore_covered(labels, anchors, regions, 0.5, K)
    assert found.tolist() == [[K, K, K], [K, -1, K], [-1, -1, -1]]
    assert torch.equal(labels, torch.full((3, 3), K))  # a matcher's own tensor stays
    padded = padded_regions(regions)
    assert padded.shape == (3, 4, 4)
    assert torch.equal(ignore_covered(labels, anchors, list(padded), 0.5, K), found)


@pytest.mark.parametrize("seed", range(5))
def test_against_the_definition(seed):
    """Every anchor against every region, in float64, one by one."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(60, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + torch.rand(60, 2, generator=generator) * 60], 1).round()
    anchors, regions = boxes[:50], boxes[50:]

    def share(anchor, region):
        (ax1, ay1, ax2, ay2), (x1, y1, x2, y2) = anchor, region
        w, h = min(ax2, x2) - max(ax1, x1), min(ay2, y2) - max(ay1, y1)
        area = (ax2 - ax1) * (ay2 - ay1)
        return max(w, 0) * max(h, 0) / area if area > 0 else 0

    wanted = [
        -1 if max(share(a, r) for r in regions.tolist()) >= 0.5 else K for a in anchors.tolist()
    ]
    for dtype in (torch.float32, torch.float64):
        labels = torch.full((1, 50), K)
        some_anchors = [Boxes(anchors)]
        some_anchors[0].tensor = anchors.to(dtype)
        found = ignore_covered(labels, some_anchors, [regions.to(dtype)], 0.5, K)
        assert found[0].tolist() == wanted


# ------------------------------------------------------------------ training


def with_regions(batch, *regions):
    """Training inputs with ``ignore_boxes``; None: the image has no such key."""
    return [
        x if boxes is None else {**x, "ignore_boxes": Boxes(torch.tensor(boxes).reshape(-1, 4))}
        for x, boxes in zip(copy.deepcopy(batch), regions)
    ]


HALF_AND_NOTHING = [[0.0, 0, 64, 96]], None


def test_with_a_threshold_of_0_regions_change_nothing(small_cfg):
    small_cfg.MODEL.RETINANET.IGNORE_IOA_THRESH = 0.0
    model, stock = build_pair(small_cfg)
    batch = make_batch(K)
    other = copy.deepcopy(model)
    found = train_step(model, with_regions(batch, *HALF_AND_NOTHING))
    wanted = train_step(other, batch)
    assert found[0] == wanted[0]
    assert all(torch.equal(grad, wanted[1][name]) for name, grad in found[1].items())
    with EventStorage():
        assert_equal_training(found, train_step(stock, batch))


@pytest.mark.parametrize("regions", [(None, None), ([], None), ([], [])])
def test_without_regions_nothing_changes(small_cfg, regions):
    model = build_model(small_cfg)
    batch = make_batch(K)
    other = copy.deepcopy(model)
    assert read_ignore_boxes(with_regions(batch, *regions)) == []
    assert train_step(model, with_regions(batch, *regions))[0] == train_step(other, batch)[0]


def labels_and_gradients(model, batch):
    """Labels (N, R), and gradients of the logits (N, R, K) and deltas (N, R, 4)."""
    model.loss_normalizer.fill_(50)
    features = model.backbone(model.preprocess_image(batch).tensor)
    features = [features[name] for name in model.in_features]
    logits, deltas = (
        [level.detach().requires_grad_() for level in levels]
        for levels in Predictions.of_head(model.head(features), K)[:2]
    )
    predictions = Predictions(logits, deltas)
    anchors = model.anchor_generator(features)
    targets = model.match(anchors, model.ground_truth(batch), predictions)
    labels = model.without_ignored(targets.gt_labels, anchors, model.regions_to_ignore(batch))
    losses = model.losses(anchors, predictions, targets._replace(gt_labels=labels))
    sum(losses.values()).backward()
    gradients = (torch.cat([x.grad.flatten(1, 3) for x in part], 1) for part in (logits, deltas))
    return labels, *gradients


def test_ignored_anchors_learn_nothing_and_the_others_as_before(small_cfg):
    model = build_model(small_cfg)
    batch = make_batch(K)
    labels, logits, deltas = labels_and_gradients(model, batch)
    found = labels_and_gradients(model, with_regions(batch, *HALF_AND_NOTHING))
    newly = (found[0] == -1) & (labels != -1)
    assert newly[0].any()
    assert not newly[1].any()
    assert (labels[newly] == K).all()
    assert torch.equal(found[0][~newly], labels[~newly])
    assert (logits[newly] > 0).all()  # background was pushed down
    assert (found[1][newly] == 0).all()
    assert torch.equal(found[1][~newly], logits[~newly])
    assert torch.equal(found[2], deltas)


@MATCHER_REGISTRY.register()
class NothingButBackground(torch.nn.Module):
    """A matcher of a user's own."""

    def __init__(self, cfg):
        super().__init__()

    def forward(self, anchors, gt_instances):
        shape = len(gt_instances), sum(len(boxes) for boxes in anchors)
        return Targets(torch.full(shape, K), torch.zeros(*shape, 4))


@pytest.mark.parametrize("matcher", ["IoUMatcher", "ATSSMatcher", "NothingButBackground"])
@pytest.mark.parametrize("cls_loss", ["FocalLoss", "OHEMLoss", "CrossEntropyLoss"])
def test_with_every_matcher_and_loss(small_cfg, matcher, cls_loss):
    """A region over all of every anchor leaves foreground alone to learn from."""
    small_cfg.MODEL.RETINANET.MATCHER_NAME = matcher
    small_cfg.MODEL.RETINANET.CLS_LOSS_NAME = cls_loss
    model = build_model(small_cfg)
    everything = [[-1e4, -1e4, 1e4, 1e4]]
    labels, logits, _ = labels_and_gradients(
        model, with_regions(make_batch(K), everything, everything)
    )
    assert not (labels == K).any()
    assert (logits[labels == -1] == 0).all()
    assert (labels >= 0).any() == (matcher != "NothingButBackground")


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(small_cfg, threshold):
    small_cfg.MODEL.RETINANET.IGNORE_IOA_THRESH = threshold
    with pytest.raises(UserError, match=r"MODEL.RETINANET.IGNORE_IOA_THRESH is .*: give the share"):
        build_model(small_cfg)


def test_lazy_and_yaml_configs_agree(small_cfg, request):
    lazy = LazyConfig.load(str(request.config.rootpath / "configs/lazy/retinanet_R_50_FPN.py"))
    assert lazy.model.ignore_ioa_thresh == small_cfg.MODEL.RETINANET.IGNORE_IOA_THRESH == 0.5


# ------------------------------------------------------------------ GPUs


def test_no_operation_waits_for_a_gpu():
    """Fake tensors refuse to have values read; copies between devices would wait, too."""
    with FakeTensorMode(), torch.device("cuda"):
        anchors, labels = [Boxes(torch.rand(20, 4))], torch.ones(2, 20, dtype=torch.int64)
        regions = [torch.rand(3, 4), torch.rand(0, 4)]
        with DeviceOperations() as operations:
            found = ignore_covered(labels, anchors, regions, 0.5, K)
            padded_regions(regions)
        assert found.device.type == "cuda"
        assert found.shape == (2, 20)
    assert operations.found
    assert not any(crosses for _, crosses in operations.found)


def test_the_step_of_a_cuda_graph_is_that_of_the_model(small_cfg):
    model = build_model(small_cfg)
    other = copy.deepcopy(model)
    batch = with_regions(make_batch(K), *HALF_AND_NOTHING)
    losses, grads = train_step(model, batch)
    images = other.preprocess_image(batch).tensor
    truth = padded_truth([x["instances"] for x in batch])
    found = TrainingStep(other)(images, *truth, padded_regions(other.regions_to_ignore(batch)))
    sum(found).backward()
    found_grads = {name: p.grad for name, p in other.named_parameters() if p.requires_grad}
    assert_equal_training(
        (dict(zip(("loss_cls", "loss_box_reg"), found)), found_grads), (losses, grads)
    )


def test_regions_have_graphs_of_their_own(small_cfg):
    captured = []

    def capture(step, batch, allow_unused_input):
        captured.append([tuple(x.shape) for x in batch[1:]])
        return step

    graphs = CudaGraphs(build_model(small_cfg), capture)
    eager = copy.deepcopy(graphs.model)
    batch = make_batch(K)
    for regions in [(None, None), HALF_AND_NOTHING, ([], []), ([[0.0, 0, 9, 9]] * 3, None)]:
        some_batch = with_regions(batch, *regions)
        found, wanted = graphs(some_batch), eager(some_batch)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name])
    truth = [(2, 8, 4), (2, 8)]
    assert captured == [truth, [*truth, (2, 4, 4)]]


@pytest.mark.gpu
def test_on_a_gpu_as_on_a_cpu(small_cfg):
    model = build_model(small_cfg)
    batch = with_regions(make_batch(K), *HALF_AND_NOTHING)
    wanted = model(batch)
    small_cfg.MODEL.DEVICE = "cuda"
    other = build_model(small_cfg)
    other.load_state_dict({**model.state_dict(), "loss_normalizer": torch.tensor(100.0)})
    found = other(batch)
    for name in wanted:
        torch.testing.assert_close(found[name].cpu(), wanted[name], rtol=1e-3, atol=1e-5)
