"""What is found before training: values, keys that do not go together, folders, classes."""

import argparse
import json
import logging

import pytest
from conftest import ROOT
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

import train_net
from retinanet_plugin.commands.arguments import read_config
from retinanet_plugin.config import load_config
from retinanet_plugin.engine import argument_parser, setup_config
from retinanet_plugin.engine.checks.config_checks import config_errors, config_warnings
from retinanet_plugin.engine.checks.output_dir import check_output_dir
from retinanet_plugin.errors import UserError

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
RGB_MEAN = "[123.675, 116.28, 103.53]"


def config(*opts):
    return load_config(INSTANT, ["MODEL.DEVICE", "cpu", *map(str, opts)])


# ------------------------------------------------------------------ values

WRONG = [
    ("SOLVER.MAX_ITER", 0),
    ("SOLVER.MAX_ITER", -1),
    ("SOLVER.IMS_PER_BATCH", 0),
    ("SOLVER.BASE_LR", 0.0),
    ("SOLVER.BASE_LR", "1e400"),
    ("SOLVER.MOMENTUM", 1.5),
    ("SOLVER.WEIGHT_DECAY", -0.1),
    ("SOLVER.GAMMA", 0.0),
    ("SOLVER.STEPS", "(5, 3)"),
    ("SOLVER.STEPS", "('a',)"),
    ("SOLVER.WARMUP_ITERS", -1),
    ("SOLVER.WARMUP_METHOD", "exp"),
    ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
    ("SOLVER.DECAY_SHARE", 0.0),
    ("SOLVER.CHECKPOINT_PERIOD", 0),
    ("SOLVER.CHECKPOINT_MAX_TO_KEEP", -1),
    ("SOLVER.BIAS_LR_FACTOR", -1.0),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0),
    ("SOLVER.AMP.ENABLED", True),
    ("SOLVER.REFERENCE_WORLD_SIZE", -1),
    ("DATALOADER.SAMPLER_TRAIN", "Sampler"),
    ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"),  # needs a key that is not there
    ("MODEL.RETINANET.IOU_LABELS", "[0, 0, 0]"),
    ("MODEL.RETINANET.IOU_LABELS", "[1, -1, 0]"),
    ("MODEL.RETINANET.IOU_LABELS", "[0, 1, -1]"),
    ("INPUT.MIN_SIZE_TRAIN", "()"),
    ("INPUT.MIN_SIZE_TRAIN", "(0.5,)"),
    ("INPUT.MAX_SIZE_TRAIN", 0),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "random"),
    ("INPUT.RANDOM_FLIP", "both"),
    ("TEST.EVAL_PERIOD", -1),
    ("VIS_PERIOD", -1),
]
WRONG_IN_EVALUATION_TOO = [
    ("DATALOADER.NUM_WORKERS", -1),
    ("DATALOADER.NUM_WORKERS", 1000),
    ("CUDNN_BENCHMARK", None),
    ("MODEL.DEVICE", ""),
    ("MODEL.MASK_ON", True),
    ("MODEL.KEYPOINT_ON", True),
    ("MODEL.LOAD_PROPOSALS", True),
    ("MODEL.PIXEL_MEAN", "[1.0]"),
    ("MODEL.PIXEL_MEAN", "['r', 'g', 'b']"),
    ("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"),
    ("MODEL.PIXEL_STD", "[0.229, 0.224, 0.225]"),
    ("MODEL.BACKBONE.FREEZE_AT", 9),
    ("MODEL.RESNETS.NORM", "GNN"),
    ("MODEL.FPN.NORM", "GNN"),
    ("MODEL.FPN.FUSE_TYPE", "max"),
    ("MODEL.RETINANET.NUM_CLASSES", 0),
    ("MODEL.RETINANET.NUM_CONVS", -1),
    ("MODEL.RETINANET.SCORE_THRESH_TEST", 1.5),
    ("MODEL.RETINANET.NMS_THRESH_TEST", -0.1),
    ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 0),
    ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", 1.5),
    ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", -0.1),
    ("MODEL.RETINANET.IOU_LOSS_WEIGHT", -1.0),
    ("MODEL.RETINANET.IOU_LOSS_WEIGHT", "1e400"),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(1.0,)"),
    ("MODEL.RETINANET.IGNORE_IOA_THRESH", 2.0),
    ("MODEL.RETINANET.IN_FEATURES", "[]"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "[[0], [32], [64]]"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "[[1e39], [32], [64]]"),  # infinite in float32
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[]]"),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1e308]]"),
    ("INPUT.FORMAT", "BRG"),
    ("INPUT.FORMAT", "YUV-BT.601"),  # floats, which no weights can take
    ("INPUT.MAX_SIZE_TEST", 0),
    ("DATASETS.TRAIN", "(3,)"),
    ("DATASETS.TEST", None),
    ("TEST.AUG.ENABLED", True),
    ("TEST.DETECTIONS_PER_IMAGE", 0),
    ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP']]"),
    ("TEST.EXPECTED_RESULTS", "[['box', 'AP', 38.5, 0.2]]"),
    ("TEST.EXPECTED_RESULTS", "[['bbox', 'APP', 38.5, 0.2]]"),
    ("SEED", 2**32),
]


@pytest.mark.parametrize(("key", "value"), WRONG + WRONG_IN_EVALUATION_TOO)
def test_a_wrong_value_is_one_sentence_with_its_key(key, value):
    cfg = config(key, value)
    (error,) = config_errors(cfg)
    assert key in error
    assert ": " in error  # the remedy
    assert "\n" not in error
    in_evaluation = config_errors(cfg, training=False)
    assert in_evaluation == ([error] if (key, value) in WRONG_IN_EVALUATION_TOO else [])


def test_norms_are_listed():
    (error,) = config_errors(config("MODEL.FPN.NORM", "Bn"))
    assert "write '' for none, or one of BN, FrozenBN, GN, SyncBN" in error


def test_whole_numbers_are_floats_where_floats_are_meant(tmp_path):
    path = tmp_path / "whole.yaml"
    path.write_text(f"_BASE_: {INSTANT}\nSOLVER:\n  BASE_LR: 1\n")
    cfg = load_config(str(path), ["MODEL.RETINANET.FOCAL_LOSS_GAMMA", "2"])
    for value, wanted in ((cfg.SOLVER.BASE_LR, 1.0), (cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA, 2.0)):
        assert (value, type(value)) == (wanted, float)


def test_a_config_that_was_written_has_no_warnings_of_its_own(tmp_path):
    path = tmp_path / "config.yaml"
    cfg = config("SOLVER.WARMUP_ITERS", 0)
    path.write_text(cfg.dump())
    assert config_warnings(load_config(str(path))) == config_warnings(cfg) == []


def test_all_wrong_values_are_found_at_once():
    errors = config_errors(config("SOLVER.MAX_ITER", 0, "TEST.EVAL_PERIOD", -1, "SEED", 2**40))
    assert [error.split()[0] for error in errors] == ["SEED", "SOLVER.MAX_ITER", "TEST.EVAL_PERIOD"]


MULTI_STEP = ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")
CROP = ("INPUT.CROP.ENABLED", True)
QUALITY_LOSS = ("MODEL.RETINANET.CLS_LOSS_NAME", "QualityFocalLoss")
JITTER = ("INPUT.SCALE_JITTER", "[0.5, 2.0]")


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["INPUT.FORMAT", "RGB"], ["INPUT.FORMAT is RGB", "in the order of BGR"]),
        (["MODEL.PIXEL_MEAN", RGB_MEAN], ["INPUT.FORMAT is BGR", "in the order of RGB"]),
        (["INPUT.FORMAT", "L"], ["MODEL.PIXEL_MEAN has 3 values", "1 channels"]),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], ["INPUT.MIN_SIZE_TRAIN is"]),
        ([*JITTER, "INPUT.MIN_SIZE_TRAIN", "(0,)"], ["INPUT.MIN_SIZE_TRAIN (0,), the edge of"]),
        ([*CROP, "INPUT.CROP.TYPE", "x"], ["INPUT.CROP.TYPE is 'x'"]),
        ([*CROP, "INPUT.CROP.SIZE", "[1.5, 0.5]"], ["INPUT.CROP.SIZE is [1.5, 0.5]"]),
        ([*CROP, "INPUT.CROP.TYPE", "absolute"], ["INPUT.CROP.SIZE is [0.9, 0.9]", "whole"]),
        (
            [*CROP, "INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", "[9, 5]"],
            ["smaller first"],
        ),
        (
            # Detectron2's fails after the last iteration; that of 0.6 does not have it.
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.WARMUP_ITERS", 0],
            ["SOLVER.LR_SCHEDULER_NAME is "],
        ),
        (["SOLVER.REFERENCE_WORLD_SIZE", 3], ["SOLVER.IMS_PER_BATCH is 2", "WORLD_SIZE 3"]),
        (["SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0], ["SOLVER.MOMENTUM is 0"]),
        ([*MULTI_STEP, "SOLVER.STEPS", "(1, 2)"], ["SOLVER.STEPS", "SOLVER.MAX_ITER, 2"]),
        (["TEST.EARLY_STOP_PATIENCE", 3], ["PATIENCE is 3 but nothing is evaluated"]),
        (
            ["SOLVER.WEIGHT_AVERAGE.NAME", "swa", "SOLVER.WEIGHT_AVERAGE.PERIOD", 90001],
            ["START is 0.0 and PERIOD 90001, so that no weights are averaged by SOLVER.MAX_ITER"],
        ),
        (
            ["SOLVER.WEIGHT_AVERAGE.NAME", "ema", "TEST.PRECISE_BN.ENABLED", True],
            ["TEST.PRECISE_BN.ENABLED is True but SOLVER.WEIGHT_AVERAGE.NAME ema"],
        ),
        (
            ["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 38.5, 0.2]]", "DATASETS.TEST", "()"],
            ["TEST.EXPECTED_RESULTS", "0 data sets"],
        ),
    ],
)
def test_keys_that_do_not_go_together(opts, words):
    (error, *_) = config_errors(config(*opts))
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["SOLVER.WARMUP_ITERS", 9], ["SOLVER.WARMUP_ITERS is 9, above SOLVER.MAX_ITER 2"]),
        (["SOLVER.BASE_LR", 50.0], ["SOLVER.BASE_LR is 50.0", "diverges"]),
        (
            ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.02],
            ["SOLVER.BASE_LR is 0.02, a rate of SGD", "AdamW"],
        ),
        (
            ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.001, "SOLVER.NESTEROV", True],
            ["SOLVER.NESTEROV is True but SOLVER.OPTIMIZER AdamW"],
        ),
        (
            [*QUALITY_LOSS, "MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS", "auto"],
            ["FOCAL_LOSS_ALPHA_PER_CLASS is auto", "QualityFocalLoss, which does not read it"],
        ),
        ([*MULTI_STEP, "SOLVER.STEPS", "(1, 9)"], ["never reaches 9"]),
        (
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupStableDecayLR", "SOLVER.WARMUP_ITERS", 2],
            ["SOLVER.WARMUP_ITERS is 2 of 2 iterations, over the last 30% of which the rate falls"],
        ),
        (["INPUT.MAX_SIZE_TRAIN", 100], ["above INPUT.MAX_SIZE_TRAIN 100"]),
        (["INPUT.MIN_SIZE_TEST", 9999], ["above INPUT.MAX_SIZE_TEST"]),
        (["INPUT.MIN_SIZE_TEST", 20], ["INPUT.MIN_SIZE_TEST is 20", "less than 32"]),
        (["INPUT.MIN_SIZE_TRAIN", "(20, 800)"], ["INPUT.MIN_SIZE_TRAIN is (20, 800)"]),
        (["TEST.EVAL_PERIOD", 9], ["TEST.EVAL_PERIOD is 9, above SOLVER.MAX_ITER 2"]),
        (["MODEL.RETINANET.SCORE_THRESH_TEST", 0.9], ["SCORE_THRESH_TEST is 0.9", "AP"]),
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.ATSS_TOPK", 5],
            ["does not read regions to ignore, MODEL.RETINANET.ATSS_TOPK: set"],
        ),
        (["INPUT.MIN_SIZE_TRAIN", "(0,)"], ["INPUT.MIN_SIZE_TRAIN has 0"]),
        ([*JITTER, "INPUT.MIN_SIZE_TRAIN", "(0, 96)"], ["(0, 96), of which", "reads 96 alone"]),
        ([*JITTER, "INPUT.MIN_SIZE_TRAIN", "(20,)"], ["INPUT.MIN_SIZE_TRAIN is (20,)"]),
        (["MODEL.RPN.NMS_THRESH", 0.5], ["does not read MODEL.RPN.NMS_THRESH"]),
        (["DATASETS.TRAIN", "('a', 'a')"], ["DATASETS.TRAIN has a 2 times"]),
        (["DATASETS.TRAIN", "('a',)", "DATASETS.TEST", "('a',)"], ["a is in DATASETS.TRAIN and"]),
        (["TEST.EVAL_PERIOD", 1, "DATASETS.TEST", "()"], ["DATASETS.TEST is empty"]),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], ["REPEAT_THRESHOLD is 0.0"]),
        (
            ["MODEL.WEIGHTS", "detectron2://ImageNetPretrained/torchvision/R-50.pkl"],
            ["torchvision", "INPUT.FORMAT RGB"],
        ),
    ],
)
def test_what_is_probably_not_meant(opts, words):
    cfg = config("SOLVER.WARMUP_ITERS", 0, *opts)
    assert config_errors(cfg) == []
    (warning,) = config_warnings(cfg)
    assert all(word in warning for word in words), warning


def test_squares_at_random_scales_have_no_longest_side():
    opts = ["SOLVER.WARMUP_ITERS", 0, *JITTER, "INPUT.MAX_SIZE_TRAIN", 100]
    assert config_warnings(config(*opts)) == []


def test_values_that_are_unusual_and_right():
    cfg = config(
        *("SOLVER.WEIGHT_DECAY_NORM", None, "SOLVER.BIAS_LR_FACTOR", None),
        *("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1e400", "INPUT.MIN_SIZE_TEST", 0, "SEED", -1),
        *("MODEL.RETINANET.FOCAL_LOSS_ALPHA", -1.0, "INPUT.RANDOM_FLIP", "none"),
        *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        *("DATALOADER.REPEAT_THRESHOLD", 0.5, "DATASETS.COCO_JSON", None),
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupStableDecayLR", "SOLVER.DECAY_SHARE", 1.0),
    )
    assert config_errors(cfg) == []


# ------------------------------------------------------------------ OUTPUT_DIR


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("", "OUTPUT_DIR is ''"),
        ("~/output", "only a shell replaces the ~"),
        ("$HOME/output", "only a shell replaces the $"),
        ("{tmp}/file", "no folder"),
        ("{tmp}/file/below/it", "{tmp}/file is there and no folder"),
        ("{tmp}/dangling/output", "no folder"),
        ("{tmp}/used", "log.txt in it is a folder"),
        ("/proc/none/output", "OUTPUT_DIR /proc/none/output cannot be written"),
        ("{tmp}/" + "x" * 300, "cannot be written"),
        ("{tmp}/a\0b", "a\\x00b' cannot be written"),
    ],
)
def test_folders_that_cannot_be_written(tmp_path, folder, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "used/log.txt").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        check_output_dir(folder.format(tmp=tmp_path))
    assert words.format(tmp=tmp_path) in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_that_can_be_written_are_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (".", "new/and/below", str(tmp_path), str(tmp_path / "new"), "s3://bucket/x"):
        check_output_dir(folder)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ the order, and what is shown


@pytest.fixture
def data(digits_entries):
    """Options that train and evaluate on the digits."""
    train, val = digits_entries
    return [
        *("DATASETS.COCO_JSON", str([list(train), list(val)])),
        *("DATASETS.TRAIN", str((train[0],)), "DATASETS.TEST", str((val[0],))),
    ]


def test_nothing_is_fetched_before_all_else_is_right(data, monkeypatch):
    fetch = PathManager.get_local_path

    def refuse(path, **options):
        assert not path.startswith("detectron2://")
        return fetch(path, **options)

    monkeypatch.setattr(PathManager, "get_local_path", refuse)
    weights = ["MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"]
    for key, value in (
        ("SOLVER.MAX_ITER", "0"),
        ("OUTPUT_DIR", "~/output"),
        ("MODEL.RETINANET.HEAD_NAME", "Head"),
        ("MODEL.RETINANET.NUM_CLASSES", "3"),
    ):
        opts = [*data, "OUTPUT_DIR", "x://output", *weights, "MODEL.DEVICE", "cpu", key, value]
        with pytest.raises(SystemExit, match=key):
            train_net.run(["--config-file", INSTANT, "--opts", *opts])


def test_a_run_to_resume_that_is_not_there_is_warned_of(data, capsys, tmp_path):
    opts = [*data, "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "none.pth"]
    with pytest.raises(SystemExit):
        train_net.run(["--config-file", INSTANT, "--resume", "--opts", *opts])
    assert (
        f"WARNING: --resume was given but OUTPUT_DIR {tmp_path} has no" in capsys.readouterr().out
    )


def test_warnings_are_shown_before_training(data, capsys, tmp_path):
    opts = [*data, "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "SOLVER.WARMUP_ITERS", "9"]
    with pytest.raises(SystemExit):
        train_net.run(["--config-file", INSTANT, "--opts", *opts, "MODEL.WEIGHTS", "none.pth"])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "SOLVER.WARMUP_ITERS" in x]
    assert "WARNING" in line
    assert not logging.getLogger("detectron2").handlers


# ------------------------------------------------------------------ the number of classes


@pytest.fixture
def left_out(tmp_path):
    """A config file without the number of classes."""
    content = load_config(INSTANT)
    del content.MODEL.RETINANET["NUM_CLASSES"]
    path = tmp_path / "left_out.yaml"
    path.write_text(content.dump())
    return str(path)


KEY = "MODEL.RETINANET.NUM_CLASSES"


def test_classes_are_taken_from_the_data_and_said_once(left_out, data, capsys):
    args = argument_parser().parse_args(["--config-file", left_out, "--opts", *data])
    assert setup_config(args).MODEL.RETINANET.NUM_CLASSES == 10
    assert setup_config(args).MODEL.RETINANET.NUM_CLASSES == 10  # as another process does
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{KEY} is left out of the config: 10, the categories of test_classes" in line
    args = argparse.Namespace(config_file=left_out, opts=data)
    assert read_config(args).MODEL.RETINANET.NUM_CLASSES == 10
    assert get_cfg().MODEL.RETINANET.NUM_CLASSES == 80


def test_a_number_that_is_given_stays(left_out, data):
    args = argument_parser().parse_args(["--config-file", left_out, "--opts", *data, KEY, "80"])
    assert setup_config(args).MODEL.RETINANET.NUM_CLASSES == 80


def test_data_that_do_not_tell_leave_the_default(left_out, tmp_path):
    (tmp_path / "broken.json").write_text(json.dumps({"images": []}))
    entries = [["untold", str(tmp_path / "broken.json"), str(tmp_path)]]
    for name in ("untold", "registered_nowhere"):
        opts = ["DATASETS.COCO_JSON", str(entries), "DATASETS.TRAIN", str((name,))]
        args = argparse.Namespace(config_file=left_out, opts=[*opts, "DATASETS.TEST", "()"])
        assert read_config(args).MODEL.RETINANET.NUM_CLASSES == 80
