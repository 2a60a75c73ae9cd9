"""A step that failed is kept, and runs again as it ran."""

import json
import logging

import pytest
import torch
from detectron2.engine import SimpleTrainer

from retinanet_plugin.__main__ import main
from retinanet_plugin.commands.replay import load
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.failures.training_step import run_again, statistics
from retinanet_plugin.errors import UserError


@pytest.fixture
def trainer_of(instant_cfg, tmp_path):
    """``trainer_of(change)``: a trainer of a changed config that has not begun; its third step is
    the last."""

    def build(change):
        cfg = instant_cfg
        cfg.DATASETS.TEST = ()
        cfg.SOLVER.MAX_ITER = 3
        cfg.OUTPUT_DIR = str(tmp_path / "output")
        change(cfg)
        return Trainer(cfg)

    logging.getLogger("detectron2.engine.train_loop").setLevel(logging.CRITICAL)
    yield build
    logging.getLogger("detectron2.engine.train_loop").setLevel(logging.NOTSET)


@pytest.fixture
def trainer(trainer_of):
    return trainer_of(lambda cfg: None)


@pytest.fixture
def fails(monkeypatch):
    """``fails(error)``: the third step does, after its backward; ``fails.losses`` are its own."""
    write_metrics = SimpleTrainer._write_metrics

    def call(error):
        def check(self, losses, *args, **kwargs):
            if self.iter == 2:
                call.losses = {name: float(loss) for name, loss in losses.items()}
                raise error
            write_metrics(self, losses, *args, **kwargs)

        monkeypatch.setattr(SimpleTrainer, "_write_metrics", check)

    return call


def error_of(trainer):
    with pytest.raises(UserError) as raised:
        trainer.train()
    return str(raised.value)


def test_a_step_runs_again_bit_for_bit(trainer, fails, tmp_path, capsys):
    fails(FloatingPointError("Loss became infinite or NaN"))
    folder = f"{tmp_path}/output/failure-000002"
    message = error_of(trainer)
    assert "in iteration 2: lower SOLVER.BASE_LR (the rate was 3.33e-05)" in message
    assert f"python -m retinanet_plugin replay {folder}" in message

    model, step = load(folder)
    assert type(model) is type(trainer.model)
    report = run_again(model, step, backward=True)
    assert report.losses == fails.losses
    summary = json.loads((tmp_path / "output/failure-000002/summary.json").read_text())
    assert summary["iteration"] == 2
    assert summary["losses"] == fails.losses
    assert summary["levels"] == report.levels
    assert summary["gradient_norm"] == report.gradient_norm > 0
    assert summary["weights_not_finite"] == []
    assert len(summary["images"]) == len(summary["images_of_the_step_before"]) == 2
    for image, x in zip(summary["images"], step.inputs):
        assert image["file_name"] == x["file_name"]
        assert image["boxes"] == x["instances"].gt_boxes.tensor.tolist()
        assert image["classes"] == x["instances"].gt_classes.tolist()

    capsys.readouterr()
    main(["replay", folder])
    printed = capsys.readouterr().out
    for name in ("the batch", "norm of the gradient", "logits", *step.names()):
        assert name in printed
    assert f"{report.losses['loss_cls']:.6g}" in printed


def test_a_step_of_all_parts_runs_again_as_its_iteration(trainer_of, fails, tmp_path):
    """The IoU branch is a third output of the head; ATSS stands in for TaskAlignedMatcher in these
    three iterations, and their targets are others; pictures are put into the event storage."""

    def change(cfg):
        cfg.MODEL.RETINANET.IOU_BRANCH = True
        cfg.MODEL.RETINANET.MATCHER_NAME = "TaskAlignedMatcher"
        cfg.MODEL.RETINANET.TASK_ALIGNED_ATSS_SHARE = 1.0
        cfg.VIS_PERIOD = 1

    trainer = trainer_of(change)
    fails(FloatingPointError("Loss became infinite or NaN"))
    assert "in iteration 2: lower SOLVER.BASE_LR" in error_of(trainer)
    model, step = load(f"{tmp_path}/output/failure-000002")
    report = run_again(model, step, backward=True)
    assert report.losses == fails.losses
    assert report.losses.keys() == {"loss_cls", "loss_box_reg", "loss_iou"}
    assert len(report.levels) == len(model.in_features)
    step.iteration = 3  # which TaskAlignedMatcher matches
    assert run_again(model, step).losses["loss_cls"] != fails.losses["loss_cls"]


def test_weights_that_are_not_finite(trainer, tmp_path):
    with torch.no_grad():
        trainer.model.head.cls_score.weight[0] = float("nan")
    message = error_of(trainer)
    assert "loss_cls is nan in iteration 0: the weights that were loaded are not finite" in message
    assert "(head.cls_score.weight)" in message
    model, step = load(str(tmp_path / "output/failure-000000"))
    report = run_again(model, step)
    assert report.not_finite() == ["loss_cls"]
    assert report.levels[0]["logits"]["not_finite"] > 0
    assert report.levels[0]["deltas"]["not_finite"] == 0


def test_an_image_that_alone_gives_a_loss_that_is_not_finite(trainer, tmp_path, capsys):
    def spoil(model, args):
        for x in args[0][1:]:
            x["image"] = x["image"].float()
            x["image"][0, 5, 5] = float("nan")

    trainer.model.register_forward_pre_hook(spoil)
    message = error_of(trainer)
    _, step = load(str(tmp_path / "output/failure-000000"))
    assert f"{step.names()[1]} alone gives that" in message
    main(["replay", str(tmp_path / "output/failure-000000")])
    assert f"not finite by itself: {step.names()[1]}" in capsys.readouterr().out


def test_out_of_memory(trainer, fails, tmp_path):
    fails(
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    )
    message = error_of(trainer)
    assert "memory ran out in iteration 2, of 2 images of up to 160 x 160 pixels" in message
    assert "can't allocate memory): lower SOLVER.IMS_PER_BATCH" in message
    assert (tmp_path / "output/failure-000002/summary.json").exists()


def test_other_errors_are_left_alone(trainer, fails, tmp_path):
    fails(IndexError("a fault"))
    with pytest.raises(IndexError, match="a fault"):
        trainer.train()
    assert not list((tmp_path / "output").glob("failure-*"))


def test_a_step_that_cannot_be_kept(trainer, fails, tmp_path):
    fails(FloatingPointError("Loss became infinite or NaN"))
    (tmp_path / "output/failure-000002").write_text("")
    message = error_of(trainer)
    assert "lower SOLVER.BASE_LR" in message
    assert "the step could not be kept: " in message


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.yaml: give a folder failure-ITERATION"):
        load(str(tmp_path))


def test_statistics_of_finite_values():
    inf = float("inf")
    values = torch.tensor([1.0, 2.0, 6.0, inf])
    assert statistics(values) == {"min": 1, "max": 6, "mean": 3, "not_finite": 0.25}
    assert statistics(values[3:])["mean"] is None
