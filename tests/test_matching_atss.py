"""ATSSMatcher: its foreground is that of the paper's algorithm 1, written out in plain Python."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet_plugin import MATCHER_REGISTRY, UserError, add_retinanet_config

K = 7


def make_matcher(**keys):
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = K
    for key, value in keys.items():
        cfg.MODEL.RETINANET[key] = value
    return MATCHER_REGISTRY.get("ATSSMatcher")(cfg)


def grid_anchors(height, width, num_sizes, ratios):
    """Anchors of three levels around the centres of their cells."""
    strides = (8, 16, 32)
    sizes = [[4 * stride * 2 ** (i / 3) for i in range(num_sizes)] for stride in strides]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[ratios], strides=strides, offset=0.5
    )
    return generator([torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides])


def random_boxes(num, seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    size = 4 * 40 ** torch.rand(num, 2, generator=generator)
    center = torch.rand(num, 2, generator=generator) * torch.tensor([width, height])
    return torch.cat([center - size / 2, center + size / 2], dim=1)


def instances(boxes, classes=None):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.arange(len(boxes)) % K if classes is None else torch.tensor(classes)
    return Instances((96, 128), gt_boxes=Boxes(boxes), gt_classes=classes)


# ------------------------------------------------------------------ against algorithm 1


def plain_iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter and inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def plain_center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def algorithm_1(levels, boxes, k):
    """{anchor: box} of foreground anchors, of k candidates a level (arXiv 1912.02424)."""
    flat = [anchor for level in levels for anchor in level.tensor.tolist()]
    best = {}
    for g, box in enumerate(boxes.tolist()):
        candidates, start = [], 0
        for level in levels:
            # Anchors of a location have one centre, but for rounding.
            distances = [
                (round(math.dist(plain_center(box), plain_center(anchor)), 3), start + i)
                for i, anchor in enumerate(level.tensor.tolist())
            ]
            candidates += [i for _, i in sorted(distances)[:k]]
            start += len(level)
        ious = [plain_iou(box, flat[i]) for i in candidates]
        mean = sum(ious) / len(ious)
        std = math.sqrt(sum((iou - mean) ** 2 for iou in ious) / (len(ious) - 1))
        for i, iou in zip(candidates, ious):
            x, y = plain_center(flat[i])
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if iou >= mean + std and inside and iou > best.get(i, (0.0, None))[0]:
                best[i] = iou, g
    return {i: g for i, (_, g) in best.items()}


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    height=st.integers(20, 96),
    width=st.integers(20, 96),
    num_sizes=st.integers(1, 3),
    ratios=st.sampled_from([[1.0], [0.5, 1.0, 2.0]]),
    topk=st.sampled_from([1, 4, 9]),
    num_boxes=st.lists(st.integers(0, 10), min_size=1, max_size=3),
    memory_mb=st.sampled_from([1e-6, 16.0]),
)
def test_any_grid(height, width, num_sizes, ratios, topk, num_boxes, memory_mb):
    anchors = grid_anchors(height, width, num_sizes, ratios)
    all_boxes = [random_boxes(num, i, height, width) for i, num in enumerate(num_boxes)]
    matcher = make_matcher(ATSS_TOPK=topk, MATCHER_MEMORY_MB=memory_mb)
    gt_labels, matched_gt_boxes, _ = matcher(anchors, [instances(boxes) for boxes in all_boxes])
    for boxes, labels, matched in zip(all_boxes, gt_labels, matched_gt_boxes):
        expected = algorithm_1(anchors, boxes, topk * num_sizes * len(ratios))
        foreground = sorted(expected)
        assert (labels != K).nonzero().flatten().tolist() == foreground
        assert labels[foreground].tolist() == [expected[i] % K for i in foreground]
        assert torch.equal(matched[foreground], boxes[[expected[i] for i in foreground]])


# ------------------------------------------------------------------ computed by hand


def test_all_of_equal_candidates_and_the_first_of_equal_boxes():
    # Three anchors alike: their IoUs, 9/2500, have deviation 0 and must reach their own mean, which
    # rounds to more than that in float32.
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]] * 3))]
    boxes = [[23.5, 23.5, 26.5, 26.5]] * 2
    gt_labels, *_ = make_matcher()(anchors, [instances(boxes, [5, 1])])
    assert gt_labels.tolist() == [[5, 5, 5]]


def test_the_centre_has_to_be_inside_the_box():
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))]
    gt_labels, *_ = make_matcher()(anchors, [instances([[5.0, 0.0, 15.0, 10.0]])])
    assert gt_labels.tolist() == [[K]]


@pytest.mark.parametrize("box", [[9.0, 9, 9, 40], [40.0, 40, 9, 9], [0.0, math.nan, 9, math.inf]])
def test_odd_boxes_match_nothing_and_leave_others_alone(box):
    anchors, good = grid_anchors(96, 128, 1, [1.0]), [20.0, 20.0, 70.0, 60.0]
    gt_labels, *_ = make_matcher()(anchors, [instances([box, good], [1, 2]), instances([good])])
    assert (gt_labels[0] == 2).any()
    assert torch.equal(gt_labels[0] == 2, gt_labels[1] == 0)
    assert not (gt_labels[0] == 1).any()


@pytest.mark.parametrize("anchors", [[Boxes(torch.zeros(0, 4))], grid_anchors(32, 32, 1, [1.0])])
@pytest.mark.parametrize("boxes", [[], [[3.0, 3.0, 9.0, 9.0]]])
def test_nothing_to_match(anchors, boxes):
    gt_labels, matched_gt_boxes, _ = make_matcher()(anchors, [instances([]), instances(boxes)])
    assert gt_labels.shape == (2, sum(len(level) for level in anchors))
    assert matched_gt_boxes.shape == (*gt_labels.shape, 4)
    assert (gt_labels[0] == K).all()


@pytest.mark.parametrize(("key", "value"), [("MATCHER_MEMORY_MB", -1.0), ("ATSS_TOPK", 0)])
def test_error_names_the_key(key, value):
    with pytest.raises(UserError, match=rf"^MODEL\.RETINANET\.{key} is .*: give "):
        make_matcher(**{key: value})
