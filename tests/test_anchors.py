"""Which boxes anchors reach, against all anchors of a model; anchors that are fitted to boxes."""

import itertools
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou

from retinanet_plugin.__main__ import main
from retinanet_plugin.config import load_config
from retinanet_plugin.data.anchor_fit import _sample, fit_anchors
from retinanet_plugin.data.anchor_reach import AnchorGrid, anchor_shapes, of_levels
from retinanet_plugin.data.anchor_search import AnchorSearch
from retinanet_plugin.errors import UserError

STRIDES = (8, 16, 32, 64, 128)
USUAL = [[stride * 4 * 2 ** (i / 3) for i in range(3)] for stride in STRIDES], [[0.5, 1.0, 2.0]]


def random_boxes(count, size=(320, 256), low=3, high=200, seed=0):
    """Boxes anywhere in an image, with sides spread evenly over the octaves."""
    rng = np.random.default_rng(seed)
    sides = np.minimum(np.exp(rng.uniform(np.log(low), np.log(high), (count, 2))), size)
    corners = rng.random((count, 2)) * (np.array(size) - sides)
    return np.concatenate([corners, corners + sides], axis=1), np.tile(size, (count, 1))


def around(x, y, width, height):
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def grid_iou(box, strides, shapes, offset=0.0):
    """Of one box in an image of 320 x 256, with anchors of one level each."""
    grid = AnchorGrid(strides, offset)
    shapes = [np.array([shape], float) for shape in shapes]
    return float(grid.best_iou(np.array([box], float), np.array([[320, 256]]), shapes)[0])


# ---- what anchors reach ----


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize(
    ("sizes", "ratios"),
    [USUAL, ([[24.0, 48.0]], [[1.0]]), ([16.0, 64.0, 200.0], [0.3, 2.5])],
    ids=["retinanet", "one list of sizes", "numbers for all levels"],
)
def test_reach_is_that_of_all_anchors(offset, sizes, ratios):
    boxes, image_sizes = random_boxes(300, size=(200, 150))  # padded to 224 x 160
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=ratios, strides=list(STRIDES), offset=offset
    )
    features = [torch.zeros(1, 1, -(-160 // s), -(-224 // s)) for s in STRIDES]
    anchors = Boxes.cat(generator(features))
    expected = pairwise_iou(Boxes(torch.tensor(boxes)), anchors).amax(dim=1)
    shapes = anchor_shapes(of_levels(sizes, 5, "SIZES"), of_levels(ratios, 5, "ASPECT_RATIOS"))
    found = AnchorGrid(STRIDES, offset).best_iou(boxes, image_sizes, shapes)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_reach_by_hand():
    # Centres are at multiples of 8: one is the box's own, then the next is 4 away in x.
    assert grid_iou(around(80, 40, 16, 16), (8,), [(16, 16)]) == 1
    assert grid_iou(around(84, 40, 16, 16), (8,), [(16, 16)]) == pytest.approx(12 / 20)
    assert grid_iou(around(84, 40, 16, 16), (8,), [(16, 16)], offset=0.5) == pytest.approx(12 / 20)
    assert grid_iou(around(84, 44, 16, 16), (8,), [(16, 16)], offset=0.5) == 1
    # Inside: areas decide. Apart: nothing does.
    assert grid_iou(around(80, 40, 4, 4), (8,), [(8, 8)]) == 16 / 64
    assert grid_iou(around(84, 40, 4, 4), (8,), [(4, 4)]) == 0
    # The best of the levels.
    assert grid_iou(around(84, 44, 4, 4), (8, 4), [(4, 4), (8, 4)]) == 16 / 32
    # The padded image ends: the last centre of stride 128 is at 256 in x and at 128 in y.
    assert grid_iou((256, 192, 320, 256), (128,), [(64, 128)]) == 0


def test_no_shape_reaches_more_than_the_one_made_for_a_box():
    boxes, image_sizes = random_boxes(20, low=2, high=20)
    grid = AnchorGrid((8, 16))
    at_most = grid.best_iou_of_any_shape(boxes, image_sizes)
    sides = np.arange(0.5, 40, 0.5)
    every = np.array(list(itertools.product(sides, sides)))
    tried = grid.best_iou(boxes, image_sizes, [every, every])
    assert (tried <= at_most + 1e-9).all()
    assert (tried >= at_most - 0.06).all()  # half a pixel from the best side
    # A centre 1 beside that of a 4 x 4 box: the anchor that covers the box is 6 wide.
    box, size = np.array([around(81, 40, 4, 4)]), np.array([[320, 256]])
    assert AnchorGrid((8,)).best_iou_of_any_shape(box, size) == pytest.approx(16 / 24)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[8], [16]], "SIZES has 2 lists for 5 levels"),
        ([], "SIZES has 1 lists for 5 levels"),
        ([[8, -1]], r"SIZES is \[\[8, -1\]\]: give positive numbers"),
        ([[8, float("nan")]], "give positive numbers"),
    ],
)
def test_anchors_that_are_none(sizes, message):
    boxes, image_sizes = random_boxes(2)
    with pytest.raises(UserError, match=message):
        fit_anchors(boxes, image_sizes, STRIDES, sizes=sizes)


# ---- the fit ----


@pytest.mark.parametrize(
    "boxes",
    [
        [around(101, 77, 37, 61)],
        [around(101, 77, 37, 61)] * 500,
        [(0, 0, 320, 256)],
        [around(160 + i, 128, 200, 10) for i in range(50)],
        [around(160, 128 + i, 10, 200) for i in range(50)],
    ],
    ids=["one box", "equal boxes", "as large as the image", "20 times as wide", "20 times as high"],
)
def test_few_anchors_reach_boxes_of_one_shape(boxes):
    fit = fit_anchors(boxes, np.tile((320, 256), (len(boxes), 1)), STRIDES)
    assert fit.after.coverage == 1
    assert fit.after.num_anchors <= 2
    assert fit.after.ious.mean() >= 0.7


@pytest.mark.parametrize("seed", range(4))
def test_a_fit_never_reaches_less(seed):
    rng = np.random.default_rng(seed)
    boxes, image_sizes = random_boxes(200, seed=seed, low=rng.uniform(2, 20))
    classes = rng.integers(4, size=200) * 7  # any numbers
    before = (
        [sorted(rng.uniform(4, 400, 2)) for _ in STRIDES],
        [sorted(rng.uniform(0.2, 5, 2))],
    )
    if seed == 3:  # good ones, which random ones are not
        before = USUAL
    fit = fit_anchors(
        boxes, image_sizes, STRIDES,
        classes=classes, sizes=before[0], aspect_ratios=before[1], tolerance=0.02, max_anchors=6,
    )  # fmt: skip
    assert fit.after.coverage >= fit.before.coverage
    for k in set(classes):
        of_class = classes == k
        lost = fit.before.are_reached[of_class].mean() - fit.after.are_reached[of_class].mean()
        assert lost <= 0.02 + 1e-9
    assert (fit.after.ious <= fit.ious_at_most + 1e-9).all()
    # Numbers are of the sizes and ratios as they are returned.
    shapes = anchor_shapes(fit.after.sizes, fit.after.aspect_ratios)
    again = AnchorGrid(STRIDES).best_iou(boxes, image_sizes, shapes)
    np.testing.assert_array_equal(again, fit.after.ious)
    # Sizes are the same multiples of the strides.
    if fit.after is not fit.before:
        scales = np.array(fit.after.sizes) / np.array(STRIDES)[:, None]
        np.testing.assert_allclose(scales, np.tile(scales[:1], (5, 1)), rtol=1e-3)


def test_the_same_boxes_give_the_same_anchors_and_more_anchors_reach_no_less():
    boxes, image_sizes = random_boxes(100)
    reach = []
    for most in (1, 2, 4):
        fit, again = (fit_anchors(boxes, image_sizes, STRIDES, max_anchors=most) for _ in range(2))
        assert (fit.after.sizes, fit.after.aspect_ratios) == (
            again.after.sizes,
            again.after.aspect_ratios,
        )
        assert fit.after is fit.before or fit.after.num_anchors <= most
        reach.append(fit.after.coverage)
    assert reach == sorted(reach)


def test_good_anchors_stay():
    boxes, image_sizes = random_boxes(300, low=30)
    first = fit_anchors(boxes, image_sizes, STRIDES, max_anchors=4)
    second = fit_anchors(
        boxes, image_sizes, STRIDES, max_anchors=4,
        sizes=first.after.sizes, aspect_ratios=first.after.aspect_ratios,
    )  # fmt: skip
    assert first.after is not first.before
    assert second.after is second.before


@pytest.mark.parametrize("seed", range(3))
def test_more_anchors_are_worth_a_new_training(seed):
    """Else those that a plan chose would be replaced for nothing."""
    boxes, image_sizes = random_boxes(100, seed=seed)
    few = fit_anchors(boxes, image_sizes, STRIDES, max_anchors=3).after
    fit = fit_anchors(boxes, image_sizes, STRIDES, sizes=few.sizes, aspect_ratios=few.aspect_ratios)
    gains = fit.after.coverage - few.coverage, fit.after.ious.mean() - few.ious.mean()
    assert fit.after is fit.before or gains[0] >= 0.002 or gains[1] >= 0.02


def test_fewer_anchors_are_taken_where_they_are_as_good():
    # All squares of 45 px to 47 px: one anchor does what RetinaNet's nine do.
    rng = np.random.default_rng(0)
    boxes = [around(*rng.uniform(60, 200, 2), *[rng.uniform(45, 47)] * 2) for _ in range(100)]
    fit = fit_anchors(boxes, np.tile((320, 256), (100, 1)), STRIDES)
    assert fit.before.num_anchors == 9
    assert fit.after.num_anchors <= 2
    assert fit.after.coverage == 1


def test_a_class_is_not_given_up_for_others():
    # Half of what can be reached with two anchors is far from the rest.
    wide, high = ([around(160, 128, *side)] for side in ((128, 16), (16, 128)))
    boxes, classes = wide * 95 + high * 5, [0] * 95 + [1] * 5
    sizes = np.tile((320, 256), (100, 1))
    before = {"sizes": [45.0], "aspect_ratios": [8.0]}  # reaches those of class 1 alone
    fit = fit_anchors(boxes, sizes, (8,), classes=classes, max_anchors=2, **before)
    assert fit.before.are_reached.tolist() == [False] * 95 + [True] * 5
    assert fit.after.are_reached.all()
    fit = fit_anchors(boxes, sizes, (8,), classes=classes, max_anchors=1, **before)
    assert fit.after is fit.before
    fit = fit_anchors(boxes, sizes, (8,), classes=classes, max_anchors=1, tolerance=1, **before)
    assert fit.after.are_reached.tolist() == [True] * 95 + [False] * 5


def test_boxes_far_below_the_stride_are_told():
    boxes, image_sizes = random_boxes(400, low=3.9, high=4.1)
    fit = fit_anchors(boxes, image_sizes, STRIDES)
    out = fit.ious_at_most < 0.5
    assert out.mean() > 0.8
    assert not (fit.after.are_reached & out).any()
    assert fit.after.coverage > fit.before.coverage == 0


def test_one_anchor_is_the_best_of_all_that_are_tried():
    boxes, image_sizes = random_boxes(50, low=10)
    grid, ones = AnchorGrid(STRIDES), np.ones(50)
    search = AnchorSearch(
        grid, boxes, image_sizes, np.zeros(50, int), ones / 50, np.zeros(1), threshold=0.5
    )
    (found,) = search.grow(1)

    def score(scale, ratio):
        shapes = anchor_shapes([[scale * s] for s in STRIDES], [[ratio]] * 5)
        ious = grid.best_iou(boxes, image_sizes, shapes)
        return (ious >= 0.5).mean() + 0.1 * ious.mean()

    scores = {(s, r): score(s, r) for s in search.scales for r in search.ratios}
    assert score(found[0][0], found[1][0]) == pytest.approx(max(scores.values()), abs=1e-6)


def test_a_sample_stands_for_all_boxes():
    classes = np.repeat([0, 1, 2], [90_000, 9_990, 10])
    chosen, weights = _sample(classes)
    assert len(chosen) == len(set(chosen.tolist())) < 6100
    assert (np.diff(classes[chosen]) >= 0).all()
    shares = np.bincount(classes[chosen], weights)
    np.testing.assert_allclose(shares, np.bincount(classes) / len(classes))
    assert (classes[chosen] == 2).sum() == 10
    assert sorted(_sample(np.array([1, 0, 1]))[0]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("boxes", "image_sizes", "strides", "message"),
    [
        (np.zeros((0, 4)), np.zeros((0, 2)), STRIDES, "there are no boxes"),
        ([(1, 1, 5)], [(9, 9)], STRIDES, r"have the shapes \(\(1, 3\)"),
        ([(1, 1, 5, 5)], [(9, 9)] * 2, STRIDES, r"give \(M, 4\)"),
        ([(5, 1, 5, 5)], [(9, 9)], STRIDES, r"\[5.0, 1.0, 5.0, 5.0\] is no box"),
        ([(1, 1, 5, float("nan"))], [(9, 9)], STRIDES, "is no box"),
        ([(1, 1, 5, 5)], [(0, 9)], STRIDES, "an image has no size"),
        ([(1, 1, 5, 5)], [(9, 9)], (), "give a positive number for each level"),
    ],
)
def test_what_cannot_be_fitted_is_said(boxes, image_sizes, strides, message):
    with pytest.raises(UserError, match=message):
        fit_anchors(boxes, image_sizes, strides)


# ---- the command ----


@pytest.fixture
def run_anchors(digits_entries, tmp_path, capsys):
    """``run_anchors(*arguments, **opts)``: the error or None, and what was printed."""
    config = tmp_path / "mine.yaml"
    root = str(tmp_path / "output")

    def run(*arguments, **opts):
        (train, *_), (val, *_) = digits_entries
        options = {
            "DATASETS.COCO_JSON": str([list(entry) for entry in digits_entries]),
            "DATASETS.TRAIN": f"('{train}',)",
            "DATASETS.TEST": f"('{val}',)",
            "OUTPUT_DIR": root,
            **{key.replace("__", "."): value for key, value in opts.items()},
        }
        options = [text for pair in options.items() for text in pair]
        try:
            main(["anchors", "--config-file", str(config), *arguments, "--opts", *options])
            error = None
        except SystemExit as exit_:
            error = exit_.code
        return error, capsys.readouterr().out

    base = "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml"
    config.write_text(f"_BASE_: {ROOT / base}\n")
    return run


SHIFTED = {"MODEL__ANCHOR_GENERATOR__SIZES": "[[64], [128], [256]]"}


def test_the_command_writes_a_config_that_reaches_more(run_anchors, tmp_path):
    output = tmp_path / "new" / "anchors.yaml"
    error, out = run_anchors("--output", str(output), "--max-anchors", "4", **SHIFTED)
    assert error is None
    cfg = load_config(str(output))
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    assert len(sizes) == 3
    assert len(sizes[0]) * len(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]) <= 4
    assert cfg.SOLVER.MAX_ITER == 2  # of the config below
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    before, after, gain = map(
        float, re.search(r"^all +\d+ +(\S+) +(\S+) +\+(\S+)", out, re.M).groups()
    )
    assert gain == pytest.approx(after - before, abs=0.11)
    assert after > before
    assert f"train_net.py --config-file {output} --opts DATASETS.COCO_JSON" in out
    assert "MODEL.ANCHOR_GENERATOR" not in out.rpartition("--opts")[2]

    # Measured again, those that were proposed are now those that are there.
    opts = {
        f"MODEL__ANCHOR_GENERATOR__{key}": str(cfg.MODEL.ANCHOR_GENERATOR[key])
        for key in ("SIZES", "ASPECT_RATIOS")
    }
    _, again = run_anchors("--max-anchors", "4", **opts)
    assert re.search(rf"^all +\d+ +{after}\b", again, re.M)


def test_every_class_and_size_has_a_row(run_anchors):
    _, out = run_anchors(**SHIFTED)
    rows = re.findall(r"^(.+?)  +(\d+)  +\d", out, re.M)
    counts = {name: int(count) for name, count in rows}
    total = counts.pop("all")
    assert sum(counts.get(name, 0) for name in ("small", "medium", "large")) == total
    assert sum(count for name, count in counts.items() if name.endswith(" px")) == total
    assert sum(count for name, count in counts.items() if name.isdecimal()) == total


def test_nothing_is_written_where_nothing_is_better(run_anchors, tmp_path):
    error, out = run_anchors("--max-anchors", "1")
    assert error is None
    assert "no better anchors were found" in out
    assert not (tmp_path / "output/anchors.yaml").exists()
    assert (tmp_path / "output/anchors.png").exists()


def test_another_matcher_is_told_from_the_measure(run_anchors):
    _, out = run_anchors(MODEL__RETINANET__MATCHER_NAME="ATSSMatcher", **SHIFTED)
    assert "ATSSMatcher sets a threshold for each box" in out


def test_mistakes_are_sentences(run_anchors, tmp_path):
    for arguments, opts, message in (
        (["--output", "a.txt"], {}, "--output a.txt is no config file"),
        (["--output", str(tmp_path / "mine.yaml")], {}, "mine.yaml exists already: delete it, or"),
        ([], {"MODEL__RETINANET__IOU_LABELS": "[0, -1, -1]"}, "IOU_LABELS"),
        ([], {"DATASETS__TRAIN": "('nothing',)"}, "no data set is registered as 'nothing'"),
    ):
        error, _ = run_anchors(*arguments, **opts)
        assert error.startswith("error: ")
        assert message in error
        assert "\n" not in error
