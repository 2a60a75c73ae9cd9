"""Rate, schedule and periods for another batch than the config is for; what the log says of it."""

import pytest
from conftest import ROOT
from detectron2.engine import DefaultTrainer

from retinanet_plugin.config import load_config
from retinanet_plugin.engine import scaling
from retinanet_plugin.engine.checks import config_checks
from retinanet_plugin.engine.checks.config_checks import check_values, config_errors
from retinanet_plugin.engine.scaling import scaled_config
from retinanet_plugin.errors import UserError

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")


def config(**solver):
    """For 16 images a step, in which nothing is scaled by itself."""
    cfg = load_config(INSTANT, ["MODEL.DEVICE", "cpu"])
    cfg.TEST.EVAL_PERIOD = 50
    cfg.SOLVER.update(
        IMS_PER_BATCH=16, BASE_LR=0.01, MAX_ITER=1000, STEPS=(600, 800), WARMUP_ITERS=100,
        CHECKPOINT_PERIOD=200, LR_SCHEDULER_NAME="WarmupMultiStepLR",
    )  # fmt: skip
    cfg.SOLVER.WEIGHT_AVERAGE.update(NAME="swa", START=0.4, PERIOD=100)
    cfg.SOLVER.update(**solver)
    return cfg


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(scaling.logger, "info", lines.append)
    return lines


def test_a_quarter_of_the_batch_by_hand(said):
    """In any number of processes."""
    scaled = scaled_config(config(IMS_PER_BATCH=4, REFERENCE_IMS_PER_BATCH=16), num_processes=2)
    solver, average = scaled.SOLVER, scaled.SOLVER.WEIGHT_AVERAGE
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (4, 0.01 / 4)
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (4000, (2400, 3200), 400)
    assert (solver.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (800, 200)
    assert (average.START, average.PERIOD) == (0.4, 400)
    (line,) = said
    why, _, changes = line.partition(": ")
    assert why == "the batch is 4 and SOLVER.REFERENCE_IMS_PER_BATCH 16"
    assert set(changes.replace("(600, 800)", "a").replace("(2400, 3200)", "b").split(", ")) == {
        "SOLVER.BASE_LR 0.01 -> 0.0025",
        "SOLVER.CHECKPOINT_PERIOD 200 -> 800",
        "SOLVER.MAX_ITER 1000 -> 4000",
        "SOLVER.STEPS a -> b",
        "SOLVER.WARMUP_ITERS 100 -> 400",
        "SOLVER.WEIGHT_AVERAGE.PERIOD 100 -> 400",
        "TEST.EVAL_PERIOD 50 -> 200",
    }


def test_twice_the_processes_is_detectron2s_rule(said):
    cfg = config(REFERENCE_WORLD_SIZE=8)
    scaled, expected = scaled_config(cfg, 16), DefaultTrainer.auto_scale_workers(cfg, 16)
    assert scaled.SOLVER.IMS_PER_BATCH == 32
    expected.SOLVER.WEIGHT_AVERAGE = scaled.SOLVER.WEIGHT_AVERAGE  # which Detectron2 lacks
    assert scaled == expected
    assert scaled.SOLVER.WEIGHT_AVERAGE.PERIOD == 50
    (line,) = said
    assert line.startswith("there are 16 processes and SOLVER.REFERENCE_WORLD_SIZE is 8: ")
    assert "SOLVER.IMS_PER_BATCH 16 -> 32" in line


@pytest.mark.parametrize(
    ("solver", "num"),
    [({}, 4), ({"REFERENCE_WORLD_SIZE": 4}, 4), ({"REFERENCE_IMS_PER_BATCH": 16}, 4)],
    ids=["not asked for", "the processes of reference", "the batch of reference"],
)
def test_nothing_is_scaled(said, solver, num):
    cfg = config(**solver)
    cfg.freeze()
    scaled = scaled_config(cfg, num)
    assert (scaled, said) == (cfg, [])
    assert scaled.is_frozen()


def test_a_period_is_not_turned_off():
    """As 0 would; what was off stays so."""
    cfg = config(REFERENCE_WORLD_SIZE=1, CHECKPOINT_PERIOD=3)
    cfg.SOLVER.WEIGHT_AVERAGE.update(PERIOD=2)
    scaled = scaled_config(cfg, 16)
    assert scaled.SOLVER.CHECKPOINT_PERIOD == scaled.SOLVER.WEIGHT_AVERAGE.PERIOD == 1
    cfg.TEST.EVAL_PERIOD = 0
    assert scaled_config(cfg, 16).TEST.EVAL_PERIOD == 0


def test_two_references_are_refused():
    (error,) = config_errors(config(REFERENCE_WORLD_SIZE=2, REFERENCE_IMS_PER_BATCH=8))
    assert error.endswith("which scale the same keys: set one of them to 0")


def test_a_mistake_of_scaled_values_says_that_they_are():
    cfg = config(IMS_PER_BATCH=32, REFERENCE_IMS_PER_BATCH=16, STEPS=(600, 999))
    words = r"^as scaled by SOLVER.REFERENCE_IMS_PER_BATCH 16, SOLVER.STEPS is \(300, 500\) and has"
    with pytest.raises(UserError, match=words):
        check_values(cfg)


def test_a_warning_of_scaled_values_says_that_they_are(monkeypatch):
    warnings = []
    monkeypatch.setattr(config_checks.logger, "warning", warnings.append)
    check_values(config(REFERENCE_WORLD_SIZE=1, BASE_LR=1.0), num_processes=16)
    said = "as scaled by SOLVER.REFERENCE_WORLD_SIZE 1, SOLVER.BASE_LR is 16.0"
    assert any(warning.startswith(said) for warning in warnings), warnings
