"""From facts of the data and measured times to a plan: no timing, no model, no files."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.structures import BoxMode

from retinanet_plugin.config import load_config
from retinanet_plugin.data.anchor_reach import resized
from retinanet_plugin.data.dataset_facts import DatasetFacts
from retinanet_plugin.data.planning.anchors import choose_levels, plan_anchors
from retinanet_plugin.data.planning.choice import Choice, Machine, StepCost, options
from retinanet_plugin.data.planning.config_text import config_text
from retinanet_plugin.data.planning.crops import choose_views
from retinanet_plugin.data.planning.detections import choose_detections
from retinanet_plugin.data.planning.durations import in_words
from retinanet_plugin.data.planning.flips import choose_flip
from retinanet_plugin.data.planning.image_size import choose_image_size, small_share
from retinanet_plugin.data.planning.network import (
    base_of,
    base_path,
    choose_network,
    choose_precision,
)
from retinanet_plugin.data.planning.plan import Wishes, plan_for_data
from retinanet_plugin.data.planning.schedule import START_SECONDS, plan_schedule, usual_batch
from retinanet_plugin.data.planning.targets import choose_targets

# Boxes of 30 pixels that cover a quarter of 800x600.
MANY_SMALL = [(x, y, 30, 30) for x in range(0, 780, 60) for y in range(0, 580, 60)]
FAST, SLOW = Machine("cpu", 1e-3), Machine("cpu", 10.0)
HOUR = 3600.0


def facts_of(size, boxes, num_images=100, class_names=("a",), classes=None):
    """Images of ``size`` (W, H), each with the same ``boxes`` (x, y, w, h)."""
    classes = classes or [0] * len(boxes)
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": k, "iscrowd": 0}
        for box, k in zip(boxes, classes)
    ]
    image = {"width": size[0], "height": size[1], "annotations": annotations}
    return DatasetFacts("x_train", "x", list(class_names), [dict(image) for _ in range(num_images)])


# ------------------------------------------------------------------ image size


def test_small_objects_get_24_pixels():
    # 30 of 600 pixels are 24 of 480.
    size = choose_image_size(facts_of((800, 600), [(10, 10, 30, 30)]), FAST, HOUR)
    assert (size.short_edge, size.max_size) == (480, 640)
    assert size.small_side == 24
    assert not size.warnings


def test_large_objects_need_few_pixels():
    facts = facts_of((800, 600), [(10, 10, 500, 500)])
    assert choose_image_size(facts, FAST, HOUR).short_edge == 320


def test_images_are_at_most_doubled():
    size = choose_image_size(facts_of((200, 200), [(10, 10, 4, 4)]), FAST, HOUR)
    assert size.short_edge == 384  # 400 in whole strides of 32
    assert size.small_side == pytest.approx(4 * 384 / 200)


@pytest.mark.parametrize(
    ("edge", "side", "machine", "planned", "remedy"),
    [
        (6000, 40, FAST, 800, "cut the images into tiles"),
        (
            6000,
            40,
            Machine("cpu", 1e4),
            128,
            "cut the images into tiles, or give it more time with --budget",
        ),
        (200, 3, FAST, 384, "take images that show them with more pixels"),
    ],
)
def test_objects_too_small_to_learn_are_told_with_what_helps(edge, side, machine, planned, remedy):
    size = choose_image_size(facts_of((edge, edge), [(10, 10, side, side)]), machine, HOUR)
    assert size.short_edge == planned
    (warning,) = size.warnings
    assert warning.endswith(
        f"where the shorter edge of images has {planned}, which is too small to learn: {remedy}"
    )


def test_a_slow_machine_gets_smaller_images_down_to_a_limit():
    facts = facts_of((800, 600), [(10, 10, 30, 30)])
    edges = [
        choose_image_size(facts, Machine("cpu", seconds), 360).short_edge
        for seconds in (0.1, 1.0, 2.0, 100.0)
    ]
    assert edges == sorted(edges, reverse=True)
    assert edges[0] == 480
    assert edges[-1] == 128


def test_few_images_are_not_seen_so_often_that_they_must_be_small():
    slow = Machine("cpu", 0.5)
    one, many = (facts_of((800, 600), MANY_SMALL, num_images) for num_images in (1, 100))
    assert choose_image_size(one, slow, 60).short_edge == 480
    assert choose_image_size(many, slow, 60).short_edge < 300


def test_time_that_loading_takes_is_not_there_for_pixels():
    facts = facts_of((800, 600), MANY_SMALL)
    edges = [
        choose_image_size(facts, Machine("cpu", 0.5, loading), 360).short_edge
        for loading in (0.0, 0.05, 0.07)
    ]
    assert edges[0] > edges[1] > edges[2]


def test_images_are_not_small_because_loading_is_slow():
    facts = facts_of((800, 600), MANY_SMALL)
    edges = [
        choose_image_size(facts, Machine("cpu", 0.5, loading), 360).short_edge
        for loading in (0.07, 0.1, 0.2)
    ]
    assert edges[0] < edges[1] < edges[2] == 480


def test_windows_leave_time_for_larger_images():
    slow = Machine("cpu", 1.0)
    few, many = (facts_of((800, 600), boxes) for boxes in ([(10, 10, 30, 30)], MANY_SMALL))
    assert choose_image_size(few, slow, 360).short_edge == 480
    assert choose_image_size(many, slow, 360).short_edge < 480


def test_every_class_counts_alike_for_the_size():
    # One class has a hundred times as many boxes, which are large.
    boxes = [(0, 0, 200, 200)] * 100 + [(0, 0, 20, 20)]
    facts = facts_of((600, 600), boxes, 2, ("large", "small"), [0] * 100 + [1])
    assert small_share(facts) == 20 / 600


@pytest.mark.parametrize(
    ("size", "side", "edge", "max_size"),
    [
        ((1242, 375), 30, 320, 1088),  # the smaller objects have 25.6
        ((1242, 375), 16, 576, 1920),
        ((2048, 512), 24, 512, 2048),
        ((6000, 200), 63, 192, 5760),  # the pixels of a square of 1,052
        ((50000, 200), 63, 128, 8192),  # 64:1
    ],
)
def test_long_images_are_not_made_small(size, side, edge, max_size):
    """They are resized by the shorter edge, as others are, as long as they have no more pixels."""
    facts = facts_of(size, [(10, 10, side, side)])
    planned = choose_image_size(facts, FAST, HOUR)
    assert (planned.short_edge, planned.max_size) == (edge, max_size)
    ((width, _),) = np.unique(resized(facts.sizes, edge, max_size), axis=0)
    assert planned.small_side == pytest.approx(side * width / size[0], rel=0.02)


def test_a_few_longer_images_are_made_smaller_than_others():
    facts = facts_of((600, 600), [(0, 0, 30, 30)], 99)
    facts.images.append({**facts_of((60000, 600), [(0, 0, 30, 30)], 1).images[0]})
    facts = DatasetFacts("x_train", "x", ["a"], facts.images)
    size = choose_image_size(facts, FAST, HOUR)
    assert (size.short_edge, size.max_size, size.small_side) == (480, 480, 24)


def test_reasons_are_those_of_what_limits_the_size():
    facts = facts_of((800, 600), MANY_SMALL)
    for machine, budget, expected in (
        (Machine("cpu", 1.0), 360, "6 min of training see 2,400 images; a longer --budget"),
        (Machine("cpu", 1.0, 0.1), 360, "takes no more time than reading the files; a longer"),
        (SLOW, 360, "the smallest, though the time sees them less often than is good; a longer"),
    ):
        assert expected in choose_image_size(facts, machine, budget).reason
    huge = choose_image_size(facts_of((6000, 6000), [(10, 10, 40, 40)]), FAST, HOUR)
    assert huge.reason == "as large as the networks of COCO's models see them"
    tiny = choose_image_size(facts_of((40, 40), [(0, 0, 20, 20)]), FAST, HOUR)
    assert tiny.short_edge == 128
    assert "would leave few cells" in tiny.reason


# ------------------------------------------------------------------ anchors


@pytest.mark.parametrize(
    ("side", "last"), [(4, "p5"), (200, "p5"), (257, "p6"), (512, "p6"), (600, "p7"), (5000, "p7")]
)
def test_levels_end_where_the_largest_objects_are(side, last):
    assert choose_levels(np.full(50, float(side)))[-1] == last


def test_anchors_reach_boxes_that_retinanets_do_not():
    facts = facts_of((320, 320), [(50, 50, 8, 80), (103, 110, 80, 8)])
    size = choose_image_size(facts, FAST, HOUR)
    plan = plan_anchors(facts, size)
    assert plan.fit.after.coverage > plan.fit.before.coverage
    assert plan.fit.after.num_anchors <= 6


def test_objects_that_anchors_do_not_reach_are_told():
    thin = facts_of((500, 400), [(20, y, 450, 2) for y in range(20, 380, 30)])
    (warning,) = plan_for_data(thin, FAST, Wishes(HOUR)).warnings
    assert "of the objects, which are too thin where the shorter edge of images has" in warning
    thick = facts_of((500, 400), [(20, 20, 100, 50)])
    assert plan_for_data(thick, FAST, Wishes(HOUR)).warnings == []


@pytest.mark.parametrize(
    ("most", "kept", "candidates"), [(101, 200, 1000), (200, 300, 1200), (3000, 4500, 18000)]
)
def test_as_many_detections_are_kept_as_images_have_objects(most, kept, candidates):
    values = {x.key: x.value for x in choose_detections(most)}
    assert values == {
        "TEST.DETECTIONS_PER_IMAGE": kept,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": candidates,
    }
    assert choose_detections(100) == []


# ------------------------------------------------------------------ crops and flips


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (["cat", "dog"], "horizontal"),
        (["c", "t", "ch", "th"], "horizontal"),  # abbreviations
        (list("0123456789"), "none"),
        (list("ABCDE"), "none"),
        (["turn_left", "turn_right"], "none"),
        (["TurnRight", "stop"], "none"),
        (["arrows"], "none"),
        (["bright", "leftover"], "horizontal"),
        (["1", "car", "tree"], "horizontal"),
    ],
)
def test_flips_by_the_names_of_classes(names, value):
    choice = choose_flip(names, is_allowed=True)
    assert choice.value == value
    assert choice.reason


def test_no_flip_is_the_users_to_say():
    assert choose_flip(["cat"], is_allowed=False).value == "none"


def views_of(facts):
    size = choose_image_size(facts, FAST, HOUR)
    return {x.key: x.value for x in choose_views(facts, size.short_edge)}


def test_windows_where_images_are_mostly_background():
    views = views_of(facts_of((640, 640), [(10, 10, 48, 48)]))
    assert views == {"INPUT.MIN_SIZE_TRAIN": [320], "INPUT.BOX_CROP": 0.5}


def test_windows_of_long_images_with_few_objects_are_short():
    # Small, they have all of the shorter edge, which is a fifteenth of the image.
    views = views_of(facts_of((6000, 200), [(4000, 60, 80, 50)]))
    assert views == {"INPUT.MIN_SIZE_TRAIN": [192], "INPUT.BOX_CROP": 0.8333}
    assert "INPUT.BOX_CROP" in views_of(facts_of((6000, 200), [(4000, 10, 180, 180)]))


@pytest.mark.parametrize(
    "boxes",
    [[(10, 10, 400, 400)], [(x, y, 48, 48) for x in range(0, 600, 60) for y in range(0, 600, 60)]],
    ids=["large", "many"],
)
def test_squares_at_random_scales_where_objects_fill_images(boxes):
    # 640x480 is 427x320 in evaluation: 4/3 of a square of 320, between 0.6 and 1.5 times this.
    views = views_of(facts_of((640, 480), boxes))
    assert views == {"INPUT.MIN_SIZE_TRAIN": [320], "INPUT.SCALE_JITTER": [0.8, 2.0]}


def test_a_panorama_is_scaled_as_in_evaluation():
    assert views_of(facts_of((3000, 300), [(0, 0, 2000, 290)]))["INPUT.SCALE_JITTER"] == [6.0, 15.0]


# ------------------------------------------------------------------ schedule


def test_time_is_for_steps_and_evaluations():
    # Evaluation: 4 s and 10 images of 0.5 s, of which 5 fit in a tenth of 500 s. Steps of 1.03 s.
    schedule = plan_schedule(1000, 10, 8, 0.1, StepCost(1.0, 0.0, 0.5), 500.0)
    assert schedule.num_evaluations == 5
    assert schedule.iterations == int((500 - START_SECONDS - 5 * 9) / 1.03)
    assert schedule.seconds == pytest.approx(500, abs=2)
    assert schedule.epochs == pytest.approx(schedule.iterations * 8 / 1000)
    assert schedule.learning_rate == 0.1
    assert not schedule.warnings(500.0)


def test_a_long_evaluation_is_done_once():
    schedule = plan_schedule(1000, 1000, 8, 0.1, StepCost(1.0, 0.0, 0.1), 500.0)
    assert schedule.num_evaluations == 1


@pytest.mark.parametrize(
    ("num_images", "batch", "iterations"), [(1, 1, 500), (7, 7, 500), (9, 8, 562), (100, 8, 3750)]
)
def test_few_images_need_not_all_the_time(num_images, batch, iterations):
    assert usual_batch(num_images) == batch
    schedule = plan_schedule(num_images, 1, batch, 0.1, StepCost(0.01, 0.0, 0.01), 1e6)
    assert schedule.iterations == iterations
    assert schedule.is_whole
    assert schedule.seconds < 100


def test_half_the_batch_has_half_the_learning_rate():
    assert plan_schedule(100, 10, 4, 0.1, StepCost(1.0, 0.0, 0.5), 500.0).learning_rate == 0.05
    assert plan_schedule(100, 10, 6, 0.1, StepCost(1.0, 0.0, 0.5), 500.0).learning_rate == 0.075


@pytest.mark.parametrize("budget", [1.0, 20.0])
def test_next_to_no_time_is_a_plan_with_a_warning(budget):
    schedule = plan_schedule(3000, 600, 8, 0.1, StepCost(5.0, 0.0, 0.5), budget)
    assert schedule.iterations == 1
    assert "--budget" in schedule.warnings(budget)[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (45, "45 s"),
        (60, "1 min"),
        (90, "90 s"),
        (360, "6 min"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
    ],
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


# ------------------------------------------------------------------ the whole plan and its text


def test_a_processor_gets_a_small_network_and_a_gpu_or_weights_a_resnet_50():
    def network(device, weights):
        cfg = load_config(base_path(base_of(weights)))
        cfg.merge_from_list(options(choose_network(device, weights)))
        return cfg.MODEL.FPN.BOTTOM_UP, cfg.MODEL.RESNETS.DEPTH

    assert network("cpu", "") == ("build_basic_resnet_backbone", 10)
    assert network("cuda", "") == ("build_resnet_backbone", 50)
    assert network("cpu", "R-50.pkl") == ("build_resnet_backbone", 50)


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (4, 2), (64, 4)])
def test_cores_that_a_process_may_use_load_images(cores, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    values = {x.key: x.value for x in choose_network("cpu", "")}
    assert values["DATALOADER.NUM_WORKERS"] == workers


def test_bfloat16_only_where_it_is_faster():
    assert choose_precision(Machine("cpu", 1.0, bfloat16_gain=1.1)) == []
    assert choose_precision(Machine("cpu", 1.0, bfloat16_gain=1.6))[0].value is True


HOSTILE = {
    "tiny images": facts_of((20, 30), [(1, 1, 5, 5)]),
    "huge images": facts_of((6000, 6000), [(0, 0, 6000, 6000)]),
    "boxes of 4 pixels": facts_of((200, 200), [(7, 9, 4, 4)]),
    "one image": facts_of((640, 480), [(7, 9, 40, 40)], 1),
    "3,000 images": facts_of((640, 480), [(7, 9, 40, 40)], 3000),
    "200 classes": facts_of(
        (640, 480),
        [(i, i, 20, 20) for i in range(200)],
        3,
        [f"class {i}" for i in range(200)],
        list(range(200)),
    ),
    "a line": facts_of((640, 480), [(0, 5, 640, 1)]),
    "beyond the border": facts_of((640, 480), [(-20, -20, 100, 100), (600, 400, 100, 100)]),
}


@pytest.mark.parametrize("weights", ["", "detectron2://R-50.pkl"])
@pytest.mark.parametrize("machine", [FAST, SLOW])
@pytest.mark.parametrize("name", HOSTILE)
def test_any_data_give_a_config_that_can_be_read(name, machine, weights, tmp_path):
    plan = plan_for_data(HOSTILE[name], machine, Wishes(360.0, weights=weights))
    (tmp_path / "base.yaml").write_text(Path(base_path(base_of(weights))).read_text())
    (tmp_path / "config.yaml").write_text(config_text("base.yaml", "Title.", plan.choices))
    cfg = load_config(str(tmp_path / "config.yaml"))
    merged = load_config(base_path(base_of(weights)))
    merged.merge_from_list(options(plan.choices))
    assert cfg == merged
    assert cfg.MODEL.WEIGHTS == weights
    assert 128 <= cfg.INPUT.MIN_SIZE_TEST <= 800
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == len(cfg.MODEL.RETINANET.IN_FEATURES)


def test_the_text_has_the_reasons_as_comments():
    choices = [
        Choice("MODEL.RETINANET.NUM_CLASSES", 2, "short"),
        Choice("SOLVER.MAX_ITER", 7, ""),
        Choice("MODEL.DEVICE", "cpu", "long " * 30),
        Choice("DATASETS.TRAIN", ["name: with # signs"], ""),
    ]
    text = config_text("base.yaml", "Title.", choices)
    assert "    NUM_CLASSES: 2  # short\n" in text
    assert "  MAX_ITER: 7\n" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    content = yaml.safe_load(text)
    assert content["MODEL"] == {"RETINANET": {"NUM_CLASSES": 2}, "DEVICE": "cpu"}
    assert content["DATASETS"]["TRAIN"] == ["name: with # signs"]


# ----------------------------------------------------------------------- targets


def test_predictions_choose_targets_but_of_objects_that_have_no_location_inside():
    assert choose_targets("", small_side=8) == []
    by_iou = options(choose_targets("", small_side=7.9))
    assert dict(zip(by_iou[::2], by_iou[1::2])) == {
        "MODEL.RETINANET.MATCHER_NAME": "IoUMatcher",
        "MODEL.RETINANET.CLS_LOSS_NAME": "FocalLoss",
    }


def test_trained_weights_keep_the_matching_that_they_were_trained_with():
    assert choose_targets("model_final.pth", small_side=2) == []
