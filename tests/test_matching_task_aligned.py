"""TaskAlignedMatcher: against the paper's definition written out, by hand, and at the edges."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from retinanet_plugin import UserError
from retinanet_plugin.config import load_config
from retinanet_plugin.matching import MATCHER_REGISTRY, ATSSMatcher, TaskAlignedMatcher
from retinanet_plugin.matching.anchor_pairs import highest_of_each, pairs_inside

K = 3
TRANSFORM = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))


def matcher(**arguments):
    return TaskAlignedMatcher(num_classes=K, box2box_transform=TRANSFORM, **arguments)


def make_anchors(num_sizes=3):
    generator = DefaultAnchorGenerator(
        sizes=[
            [8.0 * (1 + i) for i in range(num_sizes)],
            [24.0 * (1 + i) for i in range(num_sizes)],
        ],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=[8, 16],
        offset=0.5,
    )
    return generator([torch.zeros(1, 1, 10, 12), torch.zeros(1, 1, 5, 6)])


def make_truth(num_boxes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_boxes, 2, generator=rng) * 60
    size = 4 + torch.rand(num_boxes, 2, generator=rng) * 40
    return Instances(
        (80, 96),
        gt_boxes=Boxes(torch.cat([corner, corner + size], dim=1)),
        gt_classes=torch.randint(K, (num_boxes,), generator=rng),
    )


def make_predictions(anchors, num_images, num_anchors, seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = [(10, 12), (5, 6)]
    logits = [
        # In memory as the head's are.
        torch.randn(num_images, num_anchors, K, h, w, generator=rng).permute(0, 3, 4, 1, 2)
        for h, w in sizes
    ]
    deltas = [
        (torch.randn(num_images, num_anchors, 4, h, w, generator=rng) * 0.3).permute(0, 3, 4, 1, 2)
        for h, w in sizes
    ]
    return logits, deltas


def by_definition(anchors, instances, logits, deltas, alpha, beta, topk):
    """arXiv 2108.07755, section 3.2, for one image with loops over boxes and anchors."""
    boxes, classes = instances.gt_boxes.tensor, instances.gt_classes
    scores = torch.cat([x.reshape(-1, K) for x in logits]).double().sigmoid()
    decoded = TRANSFORM.apply_deltas(
        torch.cat([x.reshape(-1, 4) for x in deltas]), Boxes.cat(anchors).tensor
    )
    iou = pairwise_iou(Boxes(boxes), Boxes(decoded)).double()
    centers = Boxes.cat(anchors).get_centers()
    t = scores[:, classes].T ** alpha * iou**beta * (iou > 0)
    for m, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for r, (x, y) in enumerate(centers.tolist()):
            if min(x - x1, y - y1, x2 - x, y2 - y) <= 0.01:
                t[m, r] = 0
    owner = {}
    for m in range(len(boxes)):
        for r in sorted(range(len(centers)), key=lambda r: -t[m, r])[:topk]:
            if t[m, r] > 0 and (r not in owner or iou[m, r] > iou[owner[r], r]):
                owner[r] = m
    labels = torch.full((len(centers),), K)
    matched, qualities = torch.zeros(len(centers), 4), torch.zeros(len(centers))
    for r, m in owner.items():
        mine = [other for other, box in owner.items() if box == m]
        labels[r], matched[r] = classes[m], boxes[m]
        qualities[r] = t[m, r] / t[m, mine].max() * iou[m, mine].max()
    return labels, matched, qualities


@pytest.mark.parametrize("memory_mb", [16, 0.001])
@pytest.mark.parametrize(
    ("alpha", "beta", "topk", "num_sizes"),
    [
        (1.0, 6.0, 13, 3),
        (0.5, 2.0, 4, 1),
        (0.0, 1.0, 1, 2),
        (1.0, 0.0, 3, 3),
        (1.5, 8.0, 10_000, 1),
    ],
)
def test_is_the_papers_definition(alpha, beta, topk, num_sizes, memory_mb):
    anchors = make_anchors(num_sizes)
    truth = [make_truth(12, seed=1), make_truth(0), make_truth(5, seed=2)]
    logits, deltas = make_predictions(anchors, 3, 3 * num_sizes)
    match = matcher(alpha=alpha, beta=beta, topk=topk, memory_mb=memory_mb)
    labels, matched, qualities = match(anchors, truth, logits, deltas)
    for n, instances in enumerate(truth):
        of_image = [x[n] for x in logits], [x[n] for x in deltas]
        right = by_definition(anchors, instances, *of_image, alpha, beta, topk)
        assert torch.equal(labels[n], right[0])
        assert torch.equal(matched[n], right[1])
        torch.testing.assert_close(qualities[n], right[2], rtol=1e-6, atol=1e-12)
    assert (labels[0] < K).any()
    assert (labels[1] == K).all()


def test_the_best_anchor_of_a_box_has_its_highest_iou_as_quality():
    """By hand: two anchors at one location predict IoUs of 1 and 1/2 with equal scores."""
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10], [50.0, 50, 60, 60]]))]
    truth = Instances(
        (80, 80), gt_boxes=Boxes(torch.tensor([[0.0, 0, 10, 10]])), gt_classes=torch.tensor([2])
    )
    logits, deltas = torch.zeros(1, 1, 3, 1, K), torch.zeros(1, 1, 3, 1, 4)
    deltas[0, 0, 1, 0, 2] = torch.log(torch.tensor(2.0))  # twice as wide
    labels, _, qualities = matcher(beta=1.0)(anchors, [truth], [logits], [deltas])
    assert labels.tolist() == [[2, 2, K]]
    torch.testing.assert_close(qualities, torch.tensor([[1.0, 0.5, 0.0]]))
    _, _, steeper = matcher(beta=3.0)(anchors, [truth], [logits], [deltas])
    torch.testing.assert_close(steeper, torch.tensor([[1.0, 0.125, 0.0]]))


def test_atss_in_the_first_iterations():
    anchors, truth = make_anchors(), [make_truth(6)]
    predictions = make_predictions(anchors, 1, 9)
    first = ATSSMatcher(num_classes=K)
    match = matcher(first_matcher=first, first_iterations=10)
    with EventStorage(9):
        early = match(anchors, truth, *predictions)
    with EventStorage(10):
        late = match(anchors, truth, *predictions)
    assert early.gt_qualities is None
    assert torch.equal(early.gt_labels, first(anchors, truth).gt_labels)
    assert torch.equal(late.gt_labels, matcher()(anchors, truth, *predictions).gt_labels)
    assert not torch.equal(early.gt_labels, late.gt_labels)
    assert match(anchors, truth, *predictions).gt_qualities is not None  # outside of a training


def test_the_log_says_when_losses_rise(monkeypatch):
    said = []
    place = "retinanet_plugin.matching.task_aligned_matcher.log_first_n"
    monkeypatch.setattr(place, lambda level, message, name: said.append(message))
    anchors, truth = make_anchors(), [make_truth(6)]
    match = matcher(first_matcher=ATSSMatcher(num_classes=K), first_iterations=2)
    for iteration, number in ((1, 0), (2, 1), (3, 1)):
        with EventStorage(iteration):
            match(anchors, truth, *make_predictions(anchors, 1, 9))
        assert len(said) == number
    assert "the losses are higher" in said[0]


def test_from_config():
    cfg = load_config("", ["SOLVER.MAX_ITER", "1000", "MODEL.RETINANET.TASK_ALIGNED_TOPK", "10"])
    match = MATCHER_REGISTRY.get("TaskAlignedMatcher")(cfg)
    assert (match.topk, match.first_iterations, match.needs_predictions) == (10, 330, True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_no_foreground(value):
    anchors, truth = make_anchors(), [make_truth(6)]
    logits, deltas = make_predictions(anchors, 1, 9)
    logits[0][0, :, :, 0] = float("nan")
    deltas[1][..., 0] = value
    labels, _, qualities = matcher()(anchors, truth, logits, deltas)
    assert qualities.isfinite().all()
    first_of_location = torch.arange(len(anchors[0])) % 9 == 0
    assert (labels[0, : len(anchors[0])][first_of_location] == K).all()


def test_sixteen_bit_predictions():
    anchors, truth = make_anchors(), [make_truth(6)]
    predictions = [[x.bfloat16() for x in levels] for levels in make_predictions(anchors, 1, 9)]
    found = matcher()(anchors, truth, *predictions)
    exact = matcher()(anchors, truth, *([x.float() for x in levels] for levels in predictions))
    for half, full in zip(found, exact):
        assert torch.equal(half, full)


def test_boxes_without_a_center_inside_have_no_anchor():
    anchors = make_anchors()
    tiny = Instances(
        (80, 96), gt_boxes=Boxes(torch.tensor([[5.0, 5, 6, 6]])), gt_classes=torch.tensor([0])
    )
    labels, _, _ = matcher()(anchors, [tiny], *make_predictions(anchors, 1, 9))
    assert (labels == K).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1.0}, r"TASK_ALIGNED_ALPHA is -1.0: give a number from 0"),
        ({"beta": float("nan")}, r"TASK_ALIGNED_BETA is nan: give a number from 0"),
        ({"alpha": float("inf")}, r"TASK_ALIGNED_ALPHA is inf: give a number from 0"),
        ({"topk": 0}, r"TASK_ALIGNED_TOPK is 0: give a number from 1"),
        ({"memory_mb": 0}, r"MATCHER_MEMORY_MB is 0"),
    ],
)
def test_a_number_out_of_range_is_a_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        matcher(**arguments)


def test_a_share_out_of_range_is_a_sentence():
    cfg = load_config("", ["MODEL.RETINANET.TASK_ALIGNED_ATSS_SHARE", "4"])
    with pytest.raises(UserError, match=r"TASK_ALIGNED_ATSS_SHARE is 4.0: give the share"):
        TaskAlignedMatcher(cfg)


def test_pairs_inside_are_the_same_in_any_memory():
    anchors, boxes = make_anchors(), make_truth(20).gt_boxes.tensor
    whole = torch.cat([torch.stack(pairs) for pairs in pairs_inside(anchors, boxes, 16)], dim=1)
    parts = list(pairs_inside(anchors, boxes, 1e-4))
    assert len(parts) == 20  # a box at a time
    assert torch.equal(torch.cat([torch.stack(pairs) for pairs in parts], dim=1), whole)


def test_highest_of_each():
    values = torch.tensor([0.5, 0.9, 0.5, 0.0, 0.7, float("nan"), 0.2, 0.9])
    group = torch.tensor([1, 0, 1, 0, 1, 0, 0, 0])
    assert highest_of_each(values, group, 1).tolist() == [1, 4]
    assert highest_of_each(values, group, 2).tolist() == [1, 7, 4, 0]
