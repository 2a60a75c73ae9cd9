"""Matching of anchors with ground-truth boxes: by IoU as Detectron2 does it, and by ATSS."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou

from retinanet_plugin import MATCHER_REGISTRY, UserError, add_retinanet_config
from retinanet_plugin.matching import padded_truth
from retinanet_plugin.matching.box_iou import box_iou as elementwise_iou
from retinanet_plugin.matching.iou_blocks import PAIR_BYTES
from retinanet_plugin.matching.iou_matrix import MATRIX_PAIR_BYTES, matrix_search

K = 7
STRIDES = (8, 16, 32, 64)
SIZES = [[s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (32, 64, 128, 256)]
ONE_SIZE = [[8 * stride] for stride in STRIDES]


class BothForms:
    """An IoUMatcher, also called as on a GPU, which must give the same to the last bit."""

    def __init__(self, matcher):
        self.matcher = matcher

    def __call__(self, anchors, images):
        found = self.matcher(anchors, images)
        padded = self.matcher.match_padded(anchors, *padded_truth(images))
        for ours, theirs in zip(found[:2], padded[:2]):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=0, equal_nan=True)
        return found


def make_matcher(name="IoUMatcher", **keys):
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = K
    for key, value in keys.items():
        cfg.MODEL.RETINANET[key] = value
    matcher = MATCHER_REGISTRY.get(name)(cfg)
    return BothForms(matcher) if name == "IoUMatcher" else matcher


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
    result = Instances((160, 224), gt_boxes=Boxes(boxes))
    result.gt_classes = torch.arange(len(boxes)) % K if classes is None else torch.tensor(classes)
    return result


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
    matcher = make_matcher(IOU_THRESHOLDS=list(thresholds), IOU_LABELS=list(labels), **keys)
    gt_labels, matched_gt_boxes, _ = matcher(anchors, images)
    for gt, found_labels, found_boxes in zip(images, gt_labels, matched_gt_boxes):
        stock_labels, stock_boxes = stock_match(anchors, gt, thresholds, labels)
        assert torch.equal(found_labels, stock_labels)
        foreground = (stock_labels >= 0) & (stock_labels < K)
        torch.testing.assert_close(
            found_boxes[foreground], stock_boxes[foreground], rtol=0, atol=0, equal_nan=True
        )


# ------------------------------------------------------------------ IoUMatcher, computed by hand

# Five anchors of 10x10: IoUs with the box (0, 0, 10, 10) are 1, 9/11, 5/15, 4.5/15.5 and 0.
ROW = [Boxes(torch.tensor([[x, 0.0, x + 10, 10.0] for x in (0, 1, 5, 5.5, 40)]))]
BOX = [0.0, 0.0, 10.0, 10.0]


def test_bands_of_iou():
    matcher = make_matcher(IOU_THRESHOLDS=[0.3, 0.5])
    gt_labels, matched_gt_boxes, _ = matcher(ROW, [instances([BOX], [3])])
    assert gt_labels.tolist() == [[3, 3, -1, K, K]]
    assert matched_gt_boxes[0, :2].tolist() == [BOX, BOX]


def test_iou_at_a_threshold_belongs_to_the_band_above():
    # 7/10 is below 0.7 in float64 and equal to it in float32, in which IoUs are compared.
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 7.0, 10.0]]))]
    gt_labels, *_ = make_matcher(IOU_THRESHOLDS=[0.3, 0.7])(anchors, [instances([BOX], [2])])
    assert gt_labels.tolist() == [[2, 2]]
    assert_as_stock(anchors, [instances([BOX])], thresholds=(0.3, 0.7))


def test_a_box_below_all_thresholds_keeps_its_best_anchors_ties_included():
    # IoU 4/100 with the first two anchors alike, less with the third.
    gt_labels, matched, _ = make_matcher()(ROW, [instances([[4.0, 4.0, 6.0, 6.0]], [5])])
    assert gt_labels.tolist() == [[5, 5, K, K, K]]
    assert matched[0, 0].tolist() == [4.0, 4.0, 6.0, 6.0]


def test_of_equal_ious_the_first_box_wins():
    gt_labels, *_ = make_matcher()(ROW, [instances([BOX, BOX], [4, 1])])
    assert gt_labels[0, :2].tolist() == [4, 4]


def test_images_without_boxes_are_background():
    matcher = make_matcher(IOU_LABELS=[-1, -1, 1])
    gt_labels, matched, _ = matcher(ROW, [instances([]), instances([BOX], [3]), instances([])])
    assert gt_labels.tolist() == [[K] * 5, [3, 3, -1, -1, -1], [K] * 5]
    assert not matched[[0, 2]].any()
    gt_labels, *_ = matcher(ROW, [instances([])])
    assert gt_labels.tolist() == [[K] * 5]


# ------------------------------------------------------------------ IoUMatcher against Detectron2


@pytest.mark.parametrize("num_boxes", [0, 1, 2, 10, 100, 2500])
def test_random_boxes(num_boxes):
    assert_as_stock(grid_anchors(), [instances(random_boxes(num_boxes, seed=num_boxes))])


@pytest.mark.parametrize("memory_mb", [1e-6, 0.05, 1.0, 1000.0])
def test_any_memory_budget(memory_mb):
    images = [instances(random_boxes(num, seed=num)) for num in (30, 0, 80)]
    assert_as_stock(grid_anchors(96, 96), images, MATCHER_MEMORY_MB=memory_mb)


def recorded_sizes(monkeypatch, module):
    """A list that gets the number of IoUs of each call that ``matching/<module>.py`` makes."""
    sizes = []

    def recorded(boxes, others):
        result = elementwise_iou(boxes, others)
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


@pytest.mark.parametrize(
    ("thresholds", "labels"),
    [
        ((0.5,), (0, 1)),
        ((0.3, 0.3, 0.7), (0, 1, -1, 1)),
        ((0.4, 0.5), (1, -1, 0)),
        ((0.1, 0.6), (-1, 0, 1)),
    ],
)
def test_any_bands(thresholds, labels):
    images = [instances(random_boxes(60, seed=1)), instances([[500.0, 500.0, 510.0, 510.0]])]
    assert_as_stock(grid_anchors(), images, thresholds=thresholds, labels=labels)


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
}


@pytest.mark.parametrize("boxes", HOSTILE.values(), ids=HOSTILE)
def test_hostile_boxes(boxes):
    assert_as_stock(grid_anchors(), [instances(boxes), instances(random_boxes(20, seed=2))])


def test_boxes_equal_to_anchors():
    anchors = grid_anchors()
    assert_as_stock(anchors, [instances(Boxes.cat(anchors).tensor[::37])])


@pytest.mark.parametrize(
    "anchors",
    [
        grid_anchors(sizes=ONE_SIZE, ratios=(1.0,)),
        grid_anchors(40, 700, sizes=[[5, 90], [300], [17, 18], [64]], ratios=(0.1, 3), offset=0.5),
        [Boxes(random_boxes(1000, seed=8)), Boxes(random_boxes(1, seed=9))],
        [Boxes(torch.tensor([[10.0, 10.0, 40.0, 40.0]]).expand(300, 4))],
        [Boxes(torch.zeros(5, 4)), Boxes(torch.zeros(0, 4))],
    ],
    ids=["one a location", "uneven levels", "random", "all the same", "no area"],
)
def test_any_anchors(anchors):
    assert_as_stock(anchors, [instances(random_boxes(40, seed=3, width=300))])


# ------------------------------------------------------------------ IoUMatcher, two corrections


def test_a_box_out_of_reach_makes_nothing_foreground_on_request():
    far = [900.0, 900.0, 950.0, 950.0]
    images = [instances([far, BOX], [1, 3]), instances([BOX], [2])]
    gt_labels, *_ = make_matcher()(ROW, images)
    assert gt_labels.tolist() == [[3, 3, 3, 3, 1], [2, 2, K, K, K]]
    gt_labels, *_ = make_matcher(MATCHER_SKIP_UNREACHED_BOXES=True)(ROW, images)
    assert gt_labels.tolist() == [[3, 3, K, K, K], [2, 2, K, K, K]]


# The second box has its best IoU, 1/100, with the anchor (5, 0, 15, 10) and the next, which
# overlap the first box better but too little to be foreground.
TWO_BOXES = [BOX, [14.0, 2.0, 15.0, 3.0]]


def test_a_low_quality_match_takes_the_box_that_caused_it_on_request():
    gt_labels, matched, _ = make_matcher()(ROW, [instances(TWO_BOXES, [3, 6])])
    assert gt_labels.tolist() == [[3, 3, 3, 3, K]]
    gt_labels, matched, _ = make_matcher(MATCHER_LOW_QUALITY_TO_CAUSE=True)(
        ROW, [instances([]), instances(TWO_BOXES, [3, 6])]
    )
    assert gt_labels.tolist() == [[K] * 5, [3, 3, 6, 6, K]]
    assert matched[1, :4].tolist() == [BOX, BOX, TWO_BOXES[1], TWO_BOXES[1]]


def test_of_several_causes_the_one_of_the_highest_iou_counts_then_the_first():
    anchor = [Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))]
    boxes = [[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 4.0, 4.0], [5.0, 5.0, 7.0, 7.0]]
    matcher = make_matcher(MATCHER_LOW_QUALITY_TO_CAUSE=True)
    gt_labels, *_ = matcher(anchor, [instances(boxes, [1, 2, 3])])
    assert gt_labels.tolist() == [[2]]


def test_a_box_out_of_reach_causes_all_anchors_that_no_other_box_does():
    far = [900.0, 900.0, 950.0, 950.0]
    matcher = make_matcher(MATCHER_LOW_QUALITY_TO_CAUSE=True)
    gt_labels, matched, _ = matcher(ROW, [instances([*TWO_BOXES, far, far], [3, 6, 1, 2])])
    assert gt_labels.tolist() == [[3, 3, 6, 6, 1]]
    assert matched[0, 4].tolist() == far


def test_corrections_change_nothing_else():
    """Against the whole matrix, on random boxes of which some are out of reach."""
    anchors = grid_anchors()
    gt = instances(torch.cat([random_boxes(150, seed=5), random_boxes(3, seed=6) + 2000]))
    gt_labels, matched, _ = make_matcher(
        MATCHER_SKIP_UNREACHED_BOXES=True, MATCHER_LOW_QUALITY_TO_CAUSE=True
    )(anchors, [gt])

    iou = pairwise_iou(gt.gt_boxes, Boxes.cat(anchors))
    best_iou, box = iou.max(0)
    causes = (iou == iou.max(1, keepdim=True).values) & (iou > 0)
    weak = causes.any(0) & (best_iou < 0.5)
    box[weak] = torch.where(causes, iou, -1.0).max(0).indices[weak]
    expected = torch.where(best_iou >= 0.4, -1, K)
    foreground = weak | (best_iou >= 0.5)
    expected[foreground] = gt.gt_classes[box[foreground]]
    assert weak.sum() > 20
    assert torch.equal(gt_labels[0], expected)
    assert torch.equal(matched[0, foreground], gt.gt_boxes.tensor[box[foreground]])


@pytest.mark.parametrize("skip_unreached", [False, True])
@pytest.mark.parametrize("to_cause", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_both_forms_give_the_same_with_any_corrections(skip_unreached, to_cause, seed):
    """BothForms compares, on hostile boxes among random ones and in any order."""
    matcher = make_matcher(
        MATCHER_SKIP_UNREACHED_BOXES=skip_unreached, MATCHER_LOW_QUALITY_TO_CAUSE=to_cause,
        MATCHER_MEMORY_MB=0.5, IOU_LABELS=[[0, -1, 1], [-1, 0, 1], [1, -1, 0]][seed],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    hostile = torch.tensor([box for boxes in HOSTILE.values() for box in boxes])
    boxes = torch.cat([random_boxes(40, seed=seed), hostile])
    boxes = boxes[torch.randperm(len(boxes), generator=generator)]
    matcher(grid_anchors(), [instances(boxes[:70]), instances([]), instances(boxes[70:75])])


# ------------------------------------------------------------------ IoUMatcher, padded


def test_truth_is_padded_to_a_power_of_two():
    three, ten = instances(random_boxes(3, seed=1)), instances(random_boxes(10, seed=2))
    boxes, classes = padded_truth([three, instances([]), ten])
    assert boxes.shape == (3, 16, 4)
    assert classes.shape == (3, 16)
    assert torch.equal(boxes[0, :3], three.gt_boxes.tensor)
    assert classes[2].tolist() == ten.gt_classes.tolist() + [-1] * 6
    assert not boxes[1].any()
    assert (classes[1] == -1).all()
    assert padded_truth([three])[0].shape == (1, 8, 4)
    assert padded_truth([instances([])])[0].shape == (1, 8, 4)
    assert padded_truth([instances(random_boxes(64, seed=3))])[0].shape == (1, 64, 4)


def test_padding_is_no_box_at_the_origin():
    anchors = [Boxes(torch.tensor([[-5.0, -5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]]))]
    gt_labels, *_ = make_matcher()(anchors, [instances([[-5.0, -5.0, 5.0, 4.0]], [3])])
    assert gt_labels.tolist() == [[3, K]]


def test_dense_search_keeps_its_memory(monkeypatch):
    sizes = recorded_sizes(monkeypatch, "iou_matrix")
    anchors = Boxes.cat(grid_anchors()).tensor
    boxes = random_boxes(128, seed=1).view(2, 64, 4)
    matrix_search(anchors, boxes, torch.ones(2, 64, dtype=torch.bool), max_bytes=2**20)
    assert sum(sizes) == 128 * len(anchors)
    assert len(sizes) > 5
    assert max(sizes) * MATRIX_PAIR_BYTES <= 2 * 2**20  # of two images


# ------------------------------------------------------------------ ATSSMatcher


def box_iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter and inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def atss_reference(levels, boxes, k):
    """Algorithm 1 of arXiv 1912.02424 in plain Python: {anchor: box} of foreground anchors."""
    flat = [anchor for level in levels for anchor in level.tensor.tolist()]
    best = {}
    for g, box in enumerate(boxes.tolist()):
        center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, start = [], 0
        for level in levels:
            distances = [
                (round(math.dist(center, ((a[0] + a[2]) / 2, (a[1] + a[3]) / 2)), 3), start + i)
                for i, a in enumerate(level.tensor.tolist())
            ]
            candidates += [i for _, i in sorted(distances)[:k]]
            start += len(level)
        ious = [box_iou(box, flat[i]) for i in candidates]
        mean = sum(ious) / len(ious)
        std = math.sqrt(sum((iou - mean) ** 2 for iou in ious) / (len(ious) - 1))
        for i, iou in zip(candidates, ious):
            x, y = (flat[i][0] + flat[i][2]) / 2, (flat[i][1] + flat[i][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if iou >= mean + std and inside and iou > best.get(i, (0.0, None))[0]:
                best[i] = iou, g
    return {i: g for i, (_, g) in best.items()}


@pytest.mark.parametrize(
    ("sizes", "ratios", "anchors_per_location"),
    [(ONE_SIZE, (1.0,), 1), (SIZES, (0.5, 1.0, 2.0), 9)],
    ids=["one a location", "nine a location"],
)
@pytest.mark.parametrize("topk", [1, 4, 9])
def test_atss_against_algorithm_1(sizes, ratios, anchors_per_location, topk):
    anchors = grid_anchors(96, 128, sizes=sizes, ratios=ratios, offset=0.5)
    all_boxes = [random_boxes(num, seed=num, height=96, width=128) for num in (1, 0, 25)]
    images = [instances(boxes) for boxes in all_boxes]
    matcher = make_matcher("ATSSMatcher", ATSS_TOPK=topk)
    gt_labels, matched, _ = matcher(anchors, images)
    for boxes, found_labels, found_boxes in zip(all_boxes, gt_labels, matched):
        expected = atss_reference(anchors, boxes, topk * anchors_per_location)
        foreground = (found_labels != K).nonzero().flatten().tolist()
        assert foreground == sorted(expected)
        assert found_labels[foreground].tolist() == [expected[i] % K for i in foreground]
        assert torch.equal(found_boxes[foreground], boxes[[expected[i] for i in foreground]])
        assert len(foreground) > 0 or len(boxes) <= 1


def test_atss_in_little_memory_gives_the_same():
    anchors, images = grid_anchors(offset=0.5), [instances(random_boxes(50, seed=4))]
    little = make_matcher("ATSSMatcher", MATCHER_MEMORY_MB=1e-6)(anchors, images)
    plenty = make_matcher("ATSSMatcher", MATCHER_MEMORY_MB=1000.0)(anchors, images)
    assert all(torch.equal(a, b) for a, b in zip(little[:2], plenty[:2]))


def test_atss_takes_all_of_equal_candidates_and_the_first_of_equal_boxes():
    # Three anchors alike: their IoUs, 9/2500, have deviation 0 and must reach their own mean, which
    # rounds to more than that in float32.
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]] * 3))]
    boxes = [[23.5, 23.5, 26.5, 26.5]] * 2
    gt_labels, *_ = make_matcher("ATSSMatcher")(anchors, [instances(boxes, [5, 1])])
    assert gt_labels.tolist() == [[5, 5, 5]]


def test_atss_wants_the_centre_inside_the_box():
    gt_labels, *_ = make_matcher("ATSSMatcher")(
        [Boxes(torch.tensor([BOX]))], [instances([[5.0, 0.0, 15.0, 10.0]])]
    )
    assert gt_labels.tolist() == [[K]]


# ------------------------------------------------------------------ settings that make no sense


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("IoUMatcher", "IOU_THRESHOLDS", [0.5, 0.4]),
        ("IoUMatcher", "IOU_THRESHOLDS", [0.0, 0.5]),
        ("IoUMatcher", "IOU_THRESHOLDS", []),
        ("IoUMatcher", "IOU_LABELS", [0, 1]),
        ("IoUMatcher", "IOU_LABELS", [0, 2, 1]),
        ("IoUMatcher", "MATCHER_MEMORY_MB", 0.0),
        ("ATSSMatcher", "MATCHER_MEMORY_MB", -1.0),
        ("ATSSMatcher", "ATSS_TOPK", 0),
    ],
)
def test_error_names_the_key(name, key, value):
    with pytest.raises(UserError, match=rf"^MODEL\.RETINANET\.{key} is .*: give "):
        make_matcher(name, **{key: value})
