"""IoUMatcher: its labels are those that Detectron2 reads off the whole IoU matrix."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retinanet_plugin import MATCHER_REGISTRY, UserError, add_retinanet_config
from retinanet_plugin.box_iou import box_iou
from retinanet_plugin.matching import padded_truth
from retinanet_plugin.matching.iou_blocks import PAIR_BYTES
from retinanet_plugin.matching.iou_matrix import MATRIX_PAIR_BYTES, matrix_search

K = 7
STRIDES = (8, 16, 32, 64)
SIZES = [[s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (32, 64, 128, 256)]


def make_matcher(**keys):
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = K
    for key, value in keys.items():
        cfg.MODEL.RETINANET[key] = value
    return MATCHER_REGISTRY.get("IoUMatcher")(cfg)


def match(anchors, images, **keys):
    """Labels and matched boxes; in the form for GPUs they must be the same to the last bit."""
    matcher = make_matcher(**keys)
    searched = matcher(anchors, images)
    padded = matcher.match_padded(anchors, *padded_truth(images))
    for ours, theirs in zip(searched[:2], padded[:2]):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0, equal_nan=True)
    return searched[:2]


def grid_anchors(height=160, width=224, sizes=SIZES, ratios=(0.5, 1.0, 2.0), offset=0.0):
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[list(ratios)], strides=STRIDES, offset=offset
    )
    return generator(
        [torch.zeros(1, 1, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    )


def random_boxes(num, seed, *, height=160, width=224, smallest=4, largest=200):
    generator = torch.Generator().manual_seed(seed)
    size = smallest * (largest / smallest) ** torch.rand(num, 2, generator=generator)
    center = torch.rand(num, 2, generator=generator) * torch.tensor([width, height])
    return torch.cat([center - size / 2, center + size / 2], dim=1)


def instances(boxes, classes=None):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.arange(len(boxes)) % K if classes is None else torch.tensor(classes)
    return Instances((160, 224), gt_boxes=Boxes(boxes), gt_classes=classes)


def stock_match(anchors, gt, thresholds=(0.4, 0.5), labels=(0, -1, 1)):
    """Labels (R,) and matched boxes (R, 4), as Detectron2's RetinaNet.label_anchors has them."""
    anchors = Boxes.cat(anchors)
    matcher = Matcher(list(thresholds), list(labels), allow_low_quality_matches=True)
    index, anchor_labels = matcher(pairwise_iou(gt.gt_boxes, anchors))
    if len(gt) == 0:
        return torch.full_like(index, K), torch.zeros_like(anchors.tensor)
    gt_labels = gt.gt_classes[index]
    gt_labels[anchor_labels == 0] = K
    gt_labels[anchor_labels == -1] = -1
    return gt_labels, gt.gt_boxes.tensor[index]


def assert_as_stock(anchors, images, *, thresholds=(0.4, 0.5), labels=(0, -1, 1), **keys):
    keys |= {"IOU_THRESHOLDS": list(thresholds), "IOU_LABELS": list(labels)}
    for gt, gt_labels, boxes in zip(images, *match(anchors, images, **keys)):
        stock_labels, stock_boxes = stock_match(anchors, gt, thresholds, labels)
        assert torch.equal(gt_labels, stock_labels)
        foreground = (stock_labels >= 0) & (stock_labels < K)
        torch.testing.assert_close(
            boxes[foreground], stock_boxes[foreground], rtol=0, atol=0, equal_nan=True
        )


# ------------------------------------------------------------------ computed by hand

# Five anchors of 10x10: IoUs with the box (0, 0, 10, 10) are 1, 9/11, 5/15, 4.5/15.5 and 0.
ROW = [Boxes(torch.tensor([[x, 0.0, x + 10, 10.0] for x in (0, 1, 5, 5.5, 40)]))]
BOX = [0.0, 0.0, 10.0, 10.0]
FAR = [900.0, 900.0, 950.0, 950.0]


def test_bands_of_iou():
    gt_labels, boxes = match(ROW, [instances([BOX], [3])], IOU_THRESHOLDS=[0.3, 0.5])
    assert gt_labels.tolist() == [[3, 3, -1, K, K]]
    assert boxes[0, :2].tolist() == [BOX, BOX]
    assert not boxes[0, 2:].any()


def test_iou_at_a_threshold_belongs_to_the_band_above():
    # 7/10 is below 0.7 in float64 and equal to it in float32, in which IoUs are compared.
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 7.0, 10.0]]))]
    gt_labels, _ = match(anchors, [instances([BOX], [2])], IOU_THRESHOLDS=[0.3, 0.7])
    assert gt_labels.tolist() == [[2, 2]]
    assert_as_stock(anchors, [instances([BOX])], thresholds=(0.3, 0.7))


def test_a_box_below_all_thresholds_keeps_its_best_anchors_ties_included():
    # IoU 4/100 with the first two anchors alike, less with the third.
    gt_labels, boxes = match(ROW, [instances([[4.0, 4.0, 6.0, 6.0]], [5])])
    assert gt_labels.tolist() == [[5, 5, K, K, K]]
    assert boxes[0, 0].tolist() == [4.0, 4.0, 6.0, 6.0]


def test_of_equal_ious_the_first_box_wins():
    gt_labels, _ = match(ROW, [instances([BOX, BOX], [4, 1])])
    assert gt_labels[0, :2].tolist() == [4, 4]


def test_images_without_boxes_are_background():
    images = [instances([]), instances([BOX], [3]), instances([])]
    gt_labels, boxes = match(ROW, images, IOU_LABELS=[-1, -1, 1])
    assert gt_labels.tolist() == [[K] * 5, [3, 3, -1, -1, -1], [K] * 5]
    assert not boxes[[0, 2]].any()
    gt_labels, _ = match(ROW, [instances([])])
    assert gt_labels.tolist() == [[K] * 5]


# ------------------------------------------------------------------ two corrections of stock


def test_a_box_out_of_reach_makes_nothing_foreground_on_request():
    images = [instances([FAR, BOX], [1, 3]), instances([BOX], [2])]
    gt_labels, _ = match(ROW, images)
    assert gt_labels.tolist() == [[3, 3, 3, 3, 1], [2, 2, K, K, K]]
    gt_labels, _ = match(ROW, images, MATCHER_SKIP_UNREACHED_BOXES=True)
    assert gt_labels.tolist() == [[3, 3, K, K, K], [2, 2, K, K, K]]


# The second box has its best IoU, 1/100, with the anchor (5, 0, 15, 10) and the next, which
# overlap the first box better but too little to be foreground.
TWO_BOXES = [BOX, [14.0, 2.0, 15.0, 3.0]]


def test_a_low_quality_match_takes_the_box_that_caused_it_on_request():
    images = [instances([]), instances(TWO_BOXES, [3, 6])]
    assert match(ROW, images)[0].tolist() == [[K] * 5, [3, 3, 3, 3, K]]
    gt_labels, boxes = match(ROW, images, MATCHER_LOW_QUALITY_TO_CAUSE=True)
    assert gt_labels.tolist() == [[K] * 5, [3, 3, 6, 6, K]]
    assert boxes[1, :4].tolist() == [BOX, BOX, TWO_BOXES[1], TWO_BOXES[1]]


def test_of_several_causes_the_one_of_the_highest_iou_counts():
    anchor = [Boxes(torch.tensor([BOX]))]
    boxes = [[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 4.0, 4.0], [5.0, 5.0, 7.0, 7.0]]
    gt_labels, _ = match(anchor, [instances(boxes, [1, 2, 3])], MATCHER_LOW_QUALITY_TO_CAUSE=True)
    assert gt_labels.tolist() == [[2]]


def test_a_box_out_of_reach_causes_all_anchors_that_no_other_box_does():
    images = [instances([*TWO_BOXES, FAR, FAR], [3, 6, 1, 2])]
    gt_labels, boxes = match(ROW, images, MATCHER_LOW_QUALITY_TO_CAUSE=True)
    assert gt_labels.tolist() == [[3, 3, 6, 6, 1]]
    assert boxes[0, 4].tolist() == FAR


# ------------------------------------------------------------------ against the whole matrix

# Coordinates that are equal, infinite or none: boxes of them may be empty or turned over.
ODD = st.sampled_from([0.0, 5.0, 5.5, 20.0, -1e6, 1e6, 1e25, -math.inf, math.inf, math.nan])
ODD_BOXES = st.lists(st.tuples(ODD, ODD, ODD, ODD), max_size=3)


@st.composite
def some_boxes(draw, max_size):
    """Boxes (num, 4) on a grid, coarse ones with many equal IoUs; odd ones among them."""
    spacing, num = draw(st.sampled_from([0.01, 1.0, 8.0])), draw(st.integers(0, max_size))
    boxes = random_boxes(num, draw(st.integers(0, 99)), height=64, width=64, largest=80)
    boxes = (boxes / spacing).round() * spacing
    odd = torch.tensor(draw(ODD_BOXES)).reshape(-1, 4)
    place = draw(st.integers(0, num))
    return torch.cat([boxes[:place], odd, boxes[place:]])


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    levels=st.lists(some_boxes(max_size=300), min_size=1, max_size=3),
    boxes=st.lists(some_boxes(max_size=30), min_size=1, max_size=2),
    bands=st.sampled_from(
        [([0.4, 0.5], [0, -1, 1]), ([0.5], [0, 1]), ([0.1, 0.6], [-1, 0, 1]),
         ([0.4, 0.5], [1, -1, 0]), ([0.3, 0.3, 0.7], [0, 1, -1, 1])]
    ),
    skip_unreached=st.booleans(),
    to_cause=st.booleans(),
    memory_mb=st.sampled_from([1e-6, 0.05, 16.0]),
)  # fmt: skip
def test_any_boxes_and_anchors(levels, boxes, bands, skip_unreached, to_cause, memory_mb):
    anchors, images = [Boxes(level) for level in levels], [instances(some) for some in boxes]
    ious = [pairwise_iou(gt.gt_boxes, Boxes.cat(anchors)) for gt in images]
    assume(all(iou.shape[1] > 0 and not iou.isnan().any() for iou in ious))  # stock refuses NaN
    keys = {"IOU_THRESHOLDS": bands[0], "IOU_LABELS": bands[1], "MATCHER_MEMORY_MB": memory_mb,
            "MATCHER_SKIP_UNREACHED_BOXES": skip_unreached,
            "MATCHER_LOW_QUALITY_TO_CAUSE": to_cause}  # fmt: skip
    gt_labels, matched = match(anchors, images, **keys)
    for image, (gt, iou) in enumerate(zip(images, ious)):
        if len(gt) == 0:
            assert (gt_labels[image] == K).all()
            continue
        box, labels = Matcher(*bands)(iou)
        best_iou = iou.amax(1, keepdim=True)
        claims = (iou == best_iou) & ((best_iou > 0) | (not skip_unreached))
        low_quality = claims.any(0) & (labels != 1)
        if to_cause:
            box = torch.where(low_quality, torch.where(claims, iou, -1.0).max(0).indices, box)
        foreground = low_quality | (labels == 1)
        expected = torch.where(labels == 0, K, -1).where(~foreground, gt.gt_classes[box])
        assert torch.equal(gt_labels[image], expected)
        expected = gt.gt_boxes.tensor[box].where(foreground[:, None], 0)
        torch.testing.assert_close(matched[image], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("num_boxes", [0, 1, 2, 10, 100, 2000])
def test_random_boxes(num_boxes):
    assert_as_stock(grid_anchors(), [instances(random_boxes(num_boxes, seed=num_boxes))])


HOSTILE = {
    "far from all anchors": [[5000.0, 5000.0, 5100.0, 5100.0], [50.0, 50.0, 90.0, 90.0]],
    "second of two far away": [[50.0, 50.0, 90.0, 90.0], [-900.0, 0.0, -800.0, 50.0]],
    "no area": [[50.0, 50.0, 50.0, 90.0], [30.0, 30.0, 30.0, 30.0], [50.0, 50.0, 90.0, 90.0]],
    "turned over": [[90.0, 90.0, 50.0, 50.0], [90.0, 50.0, 50.0, 90.0]],
    "tiny": [[x + 0.25, 40.0, x + 1.0, 41.5] for x in range(0, 200, 5)],
    "huge": [[-2000.0, -2000.0, 3000.0, 3000.0], [-1e6, -1e6, 1e6, 1e6]],
    "thin": [[0.0, 80.0, 224.0, 80.5], [100.0, -20.0, 100.25, 300.0]],
    "not finite": [[math.nan, 0.0, 50.0, 50.0], [0.0, 0.0, math.inf, 80.0], [8.0, 8.0, 40.0, 40.0]],
    "identical": [[40.0, 40.0, 104.0, 104.0]] * 50,
    "small in large": [[40.0, 40.0, 140.0, 140.0], [60.0, 60.0, 66.0, 66.0]],
    "equal to anchors": Boxes.cat(grid_anchors()).tensor[::37],
}


@pytest.mark.parametrize("boxes", HOSTILE.values(), ids=HOSTILE)
def test_hostile_boxes(boxes):
    assert_as_stock(grid_anchors(), [instances(boxes), instances(random_boxes(20, seed=2))])


@pytest.mark.parametrize(
    "anchors",
    [
        grid_anchors(sizes=[[8 * stride] for stride in STRIDES], ratios=(1.0,)),
        grid_anchors(40, 700, sizes=[[5, 90], [300], [17, 18], [64]], ratios=(0.1, 3), offset=0.5),
        [Boxes(random_boxes(1000, seed=8)), Boxes(random_boxes(1, seed=9))],
        [Boxes(torch.tensor([[10.0, 10.0, 40.0, 40.0]]).expand(300, 4))],
        [Boxes(torch.zeros(5, 4)), Boxes(torch.zeros(0, 4))],
    ],
    ids=["one a location", "uneven levels", "random", "all the same", "no area"],
)
def test_any_anchors(anchors):
    assert_as_stock(anchors, [instances(random_boxes(40, seed=3, width=300))])


def test_no_anchors_have_no_targets():
    gt_labels, boxes = match([Boxes(torch.zeros(0, 4))] * 2, [instances([BOX]), instances([])])
    assert gt_labels.shape == (2, 0)
    assert boxes.shape == (2, 0, 4)


def test_padding_is_no_box_at_the_origin():
    anchors = [Boxes(torch.tensor([[-5.0, -5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]]))]
    gt_labels, _ = match(anchors, [instances([[-5.0, -5.0, 5.0, 4.0]], [3])])
    assert gt_labels.tolist() == [[3, K]]


# ------------------------------------------------------------------ memory


def recorded_sizes(monkeypatch, module):
    """A list that gets the number of IoUs of each call that ``matching/<module>.py`` makes."""
    sizes = []

    def recorded(boxes, others):
        result = box_iou(boxes, others)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(f"retinanet_plugin.matching.{module}.box_iou", recorded)
    return sizes


def test_no_more_ious_at_once_than_memory_allows(monkeypatch):
    sizes = recorded_sizes(monkeypatch, "iou_blocks")
    anchors = grid_anchors(320, 448)
    boxes = random_boxes(500, seed=1, height=320, width=448, largest=60)
    make_matcher(MATCHER_MEMORY_MB=1.0)(anchors, [instances(boxes)])
    assert len(sizes) > 5
    assert max(sizes) * PAIR_BYTES <= 2**20
    # Few pairs of the whole matrix are looked at.
    assert sum(sizes) < len(boxes) * len(Boxes.cat(anchors)) / 5


def test_the_whole_matrix_is_never_in_memory(monkeypatch):
    sizes = recorded_sizes(monkeypatch, "iou_matrix")
    anchors = Boxes.cat(grid_anchors()).tensor
    boxes = random_boxes(128, seed=1).view(2, 64, 4)
    matrix_search(anchors, boxes, torch.ones(2, 64, dtype=torch.bool), max_bytes=2**20)
    assert sum(sizes) == 128 * len(anchors)
    assert len(sizes) > 5
    assert max(sizes) * MATRIX_PAIR_BYTES <= 2 * 2**20  # of two images


# ------------------------------------------------------------------ settings that make no sense


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("IOU_THRESHOLDS", [0.5, 0.4]),
        ("IOU_THRESHOLDS", [0.0, 0.5]),
        ("IOU_THRESHOLDS", []),
        ("IOU_LABELS", [0, 1]),
        ("IOU_LABELS", [0, 2, 1]),
        ("MATCHER_MEMORY_MB", 0.0),
        ("MATCHER_MEMORY_MB", float("inf")),
    ],
)
def test_error_names_the_key(key, value):
    with pytest.raises(UserError, match=rf"^MODEL\.RETINANET\.{key} is .*: give "):
        make_matcher(**{key: value})
