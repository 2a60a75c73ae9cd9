"""The report of ``python -m retinanet_plugin doctor``."""

import argparse
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou

from retinanet_plugin.__main__ import main
from retinanet_plugin.data.anchor_reach import best_iou, foreground_iou, resized, short_edge
from retinanet_plugin.data.images import decoding
from retinanet_plugin.data.resized_boxes import ResizedBoxes
from retinanet_plugin.report.dataset_report import unreached_warnings


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run_doctor(tmp_path, capsys):
    """``run_doctor(entries, KEY=value)``: exit status, the report, and what is on stderr."""

    def run(entries, *flags, **options):
        keys = {
            "DATASETS.COCO_JSON": list(entries),
            "DATASETS.TRAIN": (entries[0][0],),
            "DATASETS.TEST": (entries[1][0],),
            "OUTPUT_DIR": tmp_path / "output",
            "MODEL.DEVICE": "cpu",
            "MODEL.WEIGHTS": "",
            "MODEL.BACKBONE.FREEZE_AT": 0,
            "MODEL.RESNETS.NORM": "BN",
            "MODEL.RESNETS.DEPTH": 50,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
            "MODEL.FPN.OUT_CHANNELS": 16,
            "SOLVER.BASE_LR": 0.001,
            **{key.replace("__", "."): value for key, value in options.items()},
        }
        opts = [str(x) for pair in keys.items() for x in pair]
        config = str(ROOT / "configs/Base-RetinaNet.yaml")
        status = 0
        try:
            main(["doctor", *flags, "--config-file", config, "--opts", *opts])
        except SystemExit as error:
            status = error.code
        report, on_stderr = capsys.readouterr()
        return status, report, on_stderr

    return run


@pytest.fixture
def bad_entries(digits, digits_entries, tmp_path):
    """The digits with images that are missing, empty and of another size, and a box too wide."""
    train, val = digits_entries
    folder = tmp_path / "train"
    shutil.copytree(digits / "train", folder)
    coco = json.loads((digits / "annotations/train.json").read_text())
    files = [folder / image["file_name"] for image in coco["images"]]
    files[0].unlink()
    files[1].write_bytes(b"")
    coco["images"][2]["width"] += 1
    coco["annotations"][-1]["bbox"][2] = 5000
    path = tmp_path / "train.json"
    path.write_text(json.dumps(coco))
    return [(f"{train[0]}_bad", str(path), str(folder)), val]


def test_a_good_set_has_no_errors_and_many_facts(run_doctor, digits_entries):
    status, report, _ = run_doctor(digits_entries, "--images")
    assert status == 0
    assert re.search(r"^no errors, ", report, re.M)
    for fact in (
        r"MODEL\.DEVICE +cpu",
        r"parameters +\d",
        r"weights\n +MODEL\.WEIGHTS is empty: all weights are new",
        r"has +8 images, \d+ boxes, 0 crowds and ignored boxes, 10 classes",
        r"image files +8 headers read, RGB 8",
        r"resized by +INPUT\.MIN_SIZE_TRAIN 736 \(the middle of 640 to 800\)",
        r"length +90,000 iterations of 16 images, 180,000 epochs over 8 images",
        r"8 decoded; 0 files are bad",
        r"no anchor \(IoU<0\.5\)",
        r"\n  all +\d+ +8 ",
    ):
        assert re.search(fact, report), fact


def test_the_report_fits_on_a_terminal(run_doctor, digits_entries):
    _, report, _ = run_doctor(digits_entries)
    facts = report[report.index("What ") : report.index("no errors")].splitlines()
    names_of_this_test = ("read from", "checkpoints", "evaluation")
    assert (
        max(len(line) for line in facts if not line.strip().startswith(names_of_this_test)) <= 100
    )


def test_a_bad_set_has_all_its_errors_and_the_facts_all_the_same(run_doctor, bad_entries):
    status, report, on_stderr = run_doctor(bad_entries)
    assert status.startswith("error: the doctor found 3 errors")
    assert "Traceback" not in report + on_stderr
    errors = [line for line in report.splitlines() if line.startswith("  error: ")]
    for error, words in zip(errors, ("does not exist", "0 bytes", "in its annotations")):
        assert words in error
        assert "image " in error
    assert re.search(r"^3 errors, ", report, re.M)
    assert re.search(r"  warning: .*5000", report)
    assert re.search(r"bad image files of .*\n(.*\n)?.*: does not exist", report)
    assert "8 headers read, RGB 6, 3 bad" in report
    assert "has          4 images" in report  # val


def test_wrong_values_do_not_hide_what_is_wrong_with_the_data(run_doctor, bad_entries):
    status, report, _ = run_doctor(
        bad_entries, SOLVER__IMS_PER_BATCH=0, MODEL__WEIGHTS="nowhere.pth", TEST__EVAL_PERIOD=-1
    )
    assert status.startswith("error: the doctor found 6 errors")
    for words in ("SOLVER.IMS_PER_BATCH is 0", "TEST.EVAL_PERIOD", "nowhere.pth", "0 bytes"):
        assert re.search(f"  error: .*{words}", report)


def test_what_only_the_data_or_the_network_tell_of_the_config(run_doctor, digits_entries):
    status, report, _ = run_doctor(
        digits_entries,
        TEST__EXPECTED_RESULTS=[["bbox", "AP-zero", 50.0, 1.0]],
        MODEL__RETINANET__IN_FEATURES=["p3", "p4", "p5", "p6"],
        MODEL__ANCHOR_GENERATOR__SIZES=[[16], [32], [64], [128]],
        SOLVER__CLIP_GRADIENTS__ENABLED=True,  # by value
    )
    assert status.startswith("error: the doctor found 2 errors")
    assert "TEST.EXPECTED_RESULTS has AP-zero, which the evaluation" in report
    assert "SOLVER.CLIP_GRADIENTS.CLIP_TYPE value cannot do without" in report


def test_a_model_that_cannot_be_built_leaves_the_data(run_doctor, digits_entries):
    status, report, _ = run_doctor(digits_entries, MODEL__RETINANET__HEAD_NAME="NoHead")
    assert status.startswith("error: the doctor found ")
    assert "NoHead" in report
    assert "has          8 images" in report


def test_ctrl_c_ends_the_decoding_with_what_was_found(run_doctor, digits_entries, monkeypatch):
    def interrupt(function, items, *args):
        yield function(items[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "each_of", interrupt)
    status, report, on_stderr = run_doctor(digits_entries, "--images")
    assert status == 130
    assert "interrupted" in on_stderr
    assert "no errors" in report


def test_a_learning_rate_for_a_larger_batch_is_warned_of(run_doctor, digits_entries):
    _, report, _ = run_doctor(digits_entries, SOLVER__IMS_PER_BATCH=2, SOLVER__BASE_LR=0.01)
    assert re.search(r"  warning: SOLVER\.BASE_LR is 0\.01 .*set SOLVER\.BASE_LR 0\.0013", report)


def test_a_clipped_learning_rate_may_be_high(run_doctor, digits_entries):
    _, report, _ = run_doctor(
        digits_entries, SOLVER__BASE_LR=0.1, SOLVER__CLIP_GRADIENTS__ENABLED=True
    )
    assert "warning: SOLVER.BASE_LR" not in report


@pytest.mark.parametrize(("max_iter", "warns"), [(251, True), (250, False)])
def test_more_than_500_epochs_are_warned_of(run_doctor, digits_entries, max_iter, warns):
    _, report, _ = run_doctor(
        digits_entries, SOLVER__MAX_ITER=max_iter, SOLVER__STEPS=(), SOLVER__WARMUP_ITERS=0
    )
    warning = r"warning: SOLVER\.MAX_ITER is 251, 502 epochs over 8 images: lower it, .*; 25 would"
    assert bool(re.search(warning, report)) == warns
    assert bool(re.search(r"warning: SOLVER\.MAX_ITER", report)) == warns


def test_classes_are_named_of_whose_boxes_anchors_do_not_reach_many(small_cfg):
    is_unreached = [[True] + 9 * [False], [True] + 3 * [False], [True] + 10 * [False]]
    are_reached = ~np.concatenate(is_unreached)
    boxes = ResizedBoxes(
        classes=np.repeat(np.arange(3), [len(x) for x in is_unreached]),
        images=np.zeros(len(are_reached), int),
        areas=np.full(len(are_reached), 49.0),
        are_reached=are_reached,
    )
    facts = argparse.Namespace(name="kitchen", class_names=["cup", "fork", "plate"])
    (warning,) = unreached_warnings(small_cfg, facts, boxes)
    assert warning.startswith(
        "in kitchen no anchor reaches an IoU of 0.5 with 25% of fork, 10% of cup, boxes of a "
        "median size of 7 pixels: choose"
    )
    boxes.are_reached[:] = True
    assert unreached_warnings(small_cfg, facts, boxes) == []


def test_images_that_are_left_out_are_warnings_and_no_part_of_an_epoch(run_doctor, bad_entries):
    status, report, _ = run_doctor(bad_entries, DATASETS__SKIP_BAD_IMAGES=True)
    assert status == 0
    assert re.search(r"  warning: .*0 bytes\): it is left out", report)
    assert "over 5 images" in report


def test_what_of_the_weights_loads_is_said(run_doctor, digits_entries, small_cfg, tmp_path):
    path = str(tmp_path / "weights.pth")
    torch.save({"model": build_model(small_cfg).state_dict()}, path)
    _, report, _ = run_doctor(digits_entries, MODEL__WEIGHTS=path)
    assert re.search(rf"weights\n.*{path}.* of the model's parameters", report)


# ---- anchors ----


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_best_anchor_of_each_shape_is_the_nearest(small_cfg, offset):
    small_cfg.MODEL.ANCHOR_GENERATOR.OFFSET = offset
    model = build_model(small_cfg).eval()
    for height, width in ((200, 333), (97, 64)):
        corners = np.sort(np.random.default_rng(0).random((200, 2, 2)) * (width, height), axis=1)
        boxes = corners.reshape(-1, 4)
        padded = torch.zeros(1, 3, *(-(-x // 32) * 32 for x in (height, width)))
        features = [model.backbone(padded)[name] for name in small_cfg.MODEL.RETINANET.IN_FEATURES]
        anchors = Boxes.cat(model.anchor_generator(features))
        wanted = pairwise_iou(Boxes(torch.tensor(boxes)), anchors).amax(dim=1)
        found = best_iou(boxes, np.tile((width, height), (len(boxes), 1)), model)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_sizes_are_those_that_detectron2_resizes_to(small_cfg):
    small_cfg.INPUT.MIN_SIZE_TRAIN = (100, 300, 200)
    assert short_edge(small_cfg, is_train=True) == 200
    small_cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    small_cfg.INPUT.MIN_SIZE_TRAIN = (100, 400)
    assert short_edge(small_cfg, is_train=True) == 250
    sizes = np.array([(640, 480), (1000, 100), (640, 480)])
    assert resized(sizes, 240, 500).tolist() == [[320, 240], [500, 50], [320, 240]]
    assert resized(sizes, 0, 500).tolist() == sizes.tolist()


@pytest.mark.parametrize(
    ("thresholds", "labels", "iou"),
    [([0.4, 0.5], [0, -1, 1], 0.5), ([0.5], [0, 1], 0.5), ([0.4], [0, -1], None)],
)
def test_the_iou_that_makes_an_anchor_foreground(small_cfg, thresholds, labels, iou):
    small_cfg.MODEL.RETINANET.IOU_THRESHOLDS = thresholds
    small_cfg.MODEL.RETINANET.IOU_LABELS = labels
    assert foreground_iou(small_cfg) == iou
