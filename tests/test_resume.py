"""Trainings that were interrupted: they end as if they had not been, or say why they cannot."""

import copy
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.engine.hooks import PeriodicWriter

from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.checkpoints.metrics_file import cut_metrics, take_out_metrics
from retinanet_plugin.engine.output_lock import refuse_if_in_use
from retinanet_plugin.engine.run_record import check_run
from retinanet_plugin.errors import UserError
from retinanet_plugin.weights.changed_config import changed_model, changed_values


@pytest.fixture
def cfg(instant_cfg):
    cfg = instant_cfg
    cfg.DATASETS.TEST = ()
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 80)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    return cfg


@pytest.fixture
def said(caplog, monkeypatch):
    """``said()``: what was logged so far."""
    logger = logging.getLogger("detectron2")
    monkeypatch.setattr(logger, "propagate", False)  # or each line would be there twice
    caplog.set_level(logging.INFO, logger="detectron2")
    logger.addHandler(caplog.handler)
    yield lambda: caplog.text
    logger.removeHandler(caplog.handler)


def build(cfg, resume=False):
    """A trainer in a process that begins with other random numbers if it resumes."""
    torch.manual_seed(resume)
    np.random.seed(resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def train(cfg, resume=False):
    trainer = build(cfg, resume)
    trainer.train()
    return trainer


def change_checkpoint(folder, change):
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / "model_final.pth")


@pytest.mark.parametrize(
    ("workers", "kills", "iterations"), [(0, 10, 12), (4, 2, 6)], ids=["no workers", "4 workers"]
)
def test_killed_at_random_moments(workers, kills, iterations, clean_env, tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "benchmarks/kill_and_resume.py"),
            "--workers", str(workers), "--kills", str(kills), "--iterations", str(iterations),
        ],
        env={**clean_env, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "ended equal bit for bit, 0 did not" in done.stdout


@pytest.fixture
def other_training(tmp_path):
    """Another process that holds OUTPUT_DIR as a training does, with a child that it forked."""
    code = (
        "import os, signal, sys\n"
        "from retinanet_plugin.engine.output_lock import only_training_in\n"
        "with only_training_in(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child: print(child, flush=True)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_two_trainings_in_one_folder(cfg, tmp_path, other_training):
    words = rf"in use by another training \(process {other_training.pid} on .*: set another"
    with pytest.raises(UserError, match=words):
        refuse_if_in_use(cfg.OUTPUT_DIR)
    trainer = build(cfg)
    with pytest.raises(UserError, match=words):
        trainer.train()
    assert not list(tmp_path.glob("*.pth"))
    # The system lets go of it, though a process that loads data may live on.
    threading.Timer(0.5, other_training.kill).start()
    refuse_if_in_use(cfg.OUTPUT_DIR, patience_s=60)
    other_training.wait()
    trainer = build(cfg)
    trainer.train()
    assert (tmp_path / "model_final.pth").is_file()


def test_precise_batch_norm_is_exact(cfg, tmp_path):
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 2
    cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER = 1, 1, 3
    whole = train(cfg).model.state_dict()
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    (tmp_path / "model_0000002.pth").unlink()
    resumed = train(cfg, resume=True)
    assert resumed.start_iter == 1
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def noted(folder):
    """What metrics.json has, but for times: iterations, each with the name of a metric."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    times = {"iteration", "time", "data_time", "rank_data_time", "eta_seconds"}
    return sorted((line["iteration"], name) for line in lines for name in {*line} - times)


def test_metrics_are_those_of_a_training_that_was_not_interrupted(
    cfg, digits_entries, tmp_path, monkeypatch
):
    """An evaluation is noted after a later step, as here every third iteration after every second.

    That of the checkpoint's iteration is done again, and the last one alone if all are trained.
    """

    class EverySecond(PeriodicWriter):
        def __init__(self, writers, period):
            super().__init__(writers, 2)

    monkeypatch.setattr("detectron2.engine.defaults.hooks.PeriodicWriter", EverySecond)
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = (digits_entries[1][0],), 3
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 7, 1
    train(cfg)
    whole = noted(tmp_path)
    assert {iteration for iteration, _ in whole} == {1, 2, 3, 5, 6, 7}
    lines = (tmp_path / "metrics.json").read_text()
    for last in (4, 5, 6):
        (tmp_path / "last_checkpoint").write_text(f"model_{last:07d}.pth")
        (tmp_path / "metrics.json").write_text(lines + '{"cut off": ')
        train(cfg, resume=True)
        assert noted(tmp_path) == whole


def test_lines_of_others_stay_in_the_metrics(tmp_path):
    """A line that was not written to its end does not."""
    path = tmp_path / "metrics.json"
    others = '{"of_my_hook": 3.5}\n"text"\n{"iteration": "3"}\nno JSON\n\n'
    path.write_text(others + '{"iteration": 3, "a": 1}\n{"iteration": 2, "a": 1, "b": 2}\n{"of_')
    take_out_metrics(str(path), 2, {"b"})
    assert path.read_text() == others + '{"iteration": 3, "a": 1}\n{"a": 1, "iteration": 2}\n'
    cut_metrics(str(path), 3)
    assert path.read_text() == others + '{"a": 1, "iteration": 2}\n'


def test_new_values_are_used_and_said(cfg, said):
    momentum = momentum_of(train(cfg))
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM = 4, 0.0001, 0.8
    # In a group of their own, biases are at another place in the optimizer.
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.5
    resumed = build(cfg, resume=True)
    assert "resuming with other values:" in said()
    for change in ("BASE_LR 0.1 -> 0.0001", "MAX_ITER 2 -> 4", "WEIGHT_DECAY_BIAS None -> 0.5"):
        assert f"SOLVER.{change}" in said()
    assert "OUTPUT_DIR" not in said().partition("resuming with")[2]
    groups = resumed.optimizer.param_groups
    assert {(group["lr"], group["momentum"]) for group in groups} == {(0.0001, 0.8)}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.0001, 0.5}
    assert momentum_of(resumed).keys() == momentum.keys()
    for name, value in momentum_of(resumed).items():
        assert torch.equal(value, momentum[name]), name


def momentum_of(trainer):
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    state = trainer.optimizer.state
    return {names[p]: state[p]["momentum_buffer"].clone() for p in state}


def test_the_schedule_goes_on_where_it_was(cfg):
    cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = (2,), 3, 1
    train(cfg)
    cfg.SOLVER.MAX_ITER = 4
    assert build(cfg, resume=True).optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    cfg.SOLVER.STEPS = (3,)
    resumed = build(cfg, resume=True)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    cfg.SOLVER.STEPS = ()
    assert build(cfg, resume=True).optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_finished_training_says_so(cfg, said, tmp_path):
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    weights = train(cfg).model.state_dict()
    # Killed between its last periodic checkpoint and the final one.
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train(cfg, resume=True)
    assert "the training is finished after 2 iterations" in said()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.parametrize("has_optimizer", [True, False], ids=["main", "0.6"])
def test_checkpoints_of_detectron2_are_resumed_with_a_warning(cfg, said, tmp_path, has_optimizer):
    momentum = momentum_of(train(cfg))

    def as_detectron2(checkpoint):
        for key in ("config", "class_names", "preprocessing", "versions"):
            checkpoint.pop(key, None)
        del checkpoint["trainer"]["run"]
        if not has_optimizer:
            del checkpoint["trainer"]["_trainer"]

    change_checkpoint(tmp_path, as_detectron2)
    cfg.SOLVER.MAX_ITER = 3
    resumed = build(cfg, resume=True)
    assert "not exactly" in said()
    assert ("and the momentum of" in said()) == (not has_optimizer)
    assert momentum_of(resumed).keys() == (momentum.keys() if has_optimizer else set())
    resumed.train()
    assert resumed.start_iter == 2


def test_the_checkpoint_of_other_images_is_refused(cfg, tmp_path):
    train(cfg)
    change_checkpoint(tmp_path, lambda c: c["trainer"]["run"]["data"].update(num_images=9))
    with pytest.raises(UserError, match=r"9 images, and .* has 8.*MODEL.WEIGHTS .*model_final.pth"):
        build(cfg, resume=True)


@pytest.fixture(scope="module")
def trained():
    """A place for the folder of one training, which many tests change copies of."""
    return {}


def resume_changed(cfg, trained, tmp_path, place, value):
    """Resume a checkpoint in which a part is another one, or missing (None)."""
    if not trained:
        train(cfg)
        trained["checkpoint"] = torch.load(tmp_path / "model_final.pth", weights_only=True)
    checkpoint = copy.deepcopy(trained["checkpoint"])
    *sections, key = place.split(".")
    section = checkpoint
    for name in sections:
        section = section[name]
    if value is None:
        del section[key]
    else:
        section[key] = value
    torch.save(checkpoint, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    return build(cfg, resume=True)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("trainer", None, "it lacks the state 'trainer'"),
        ("trainer", [1], "TypeError"),
        ("trainer", "x", "TypeError"),
        ("trainer.iteration", None, "KeyError: 'iteration'"),
        ("trainer.iteration", "a", "its iteration is 'a'"),
        ("trainer.iteration", -5, "its iteration is -5"),
        ("trainer.iteration", 0, "its iteration is 1, and 0 in its trainer"),
        ("iteration", "a", "its iteration is 'a'"),
        ("trainer.run.seed", None, "KeyError: 'seed'"),
        ("trainer.run.seed", "a", "its seed is 'a'"),
        ("trainer.run", 7, "TypeError"),
        ("trainer.run.data", 7, "TypeError"),
        ("trainer.hooks", {"EvaluationHook": {}}, "KeyError: 'last_evaluated'"),
        ("trainer.hooks", 7, "TypeError"),
        ("trainer._trainer.optimizer", {}, "KeyError: 'state'"),
        ("trainer._trainer", 7, "TypeError"),
        ("config", "{{", "its config is no text"),
    ],
)
def test_parts_of_other_types_are_refused(cfg, trained, tmp_path, place, value, words):
    with pytest.raises(UserError) as refused:
        resume_changed(cfg, trained, tmp_path, place, value)
    sentence = str(refused.value)
    path = tmp_path / "model_final.pth"
    assert sentence.startswith(f"the checkpoint {path} cannot be gone on from ({words}")
    assert f"MODEL.WEIGHTS {path} and another OUTPUT_DIR" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("trainer._trainer", "the momentum of the optimizer"),
        ("trainer.run", "the order of the data"),
        ("trainer.hooks", "what the hooks remember"),
    ],
)
def test_parts_that_are_missing_are_a_warning(cfg, trained, said, tmp_path, place, words):
    assert resume_changed(cfg, trained, tmp_path, place, None).start_iter == 2
    assert f"lacks {words}: this training goes on as well as it can" in said()


class PlainSchedule(Trainer):
    """With a scheduler and a loader of its own."""

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 100)

    @classmethod
    def build_train_loader(cls, cfg):
        return list(itertools.islice(super().build_train_loader(cfg), 4))


def test_own_schedulers_and_loaders_are_said(cfg, said):
    for max_iter in (2, 3):
        cfg.SOLVER.MAX_ITER = max_iter
        trainer = PlainSchedule(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
    assert said().count("StepLR goes on with the learning rates of the checkpoint") == 1
    assert said().count("build_train_loader of PlainSchedule makes a loader of its own") == 2


RUN = {
    "seed": 1,
    "data": {
        "data_sets": ["coins"], "classes": ["a", "b"], "num_images": 8, "files": "f",
        "annotations": "x",
    },
    "optimizer": "SGD",
    "parameters": ["head.weight"],
    "shapes": {"head.weight": [3, 4]},
    "num_processes": 1,
    "images_per_batch": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("shapes", {"head.weight": [6, 4]}, ["head.weight", "(3, 4)", "(6, 4)"]),
        ("shapes", {"head.weight": [3, 4], "more": [1]}, ["more is missing there and (1,)"]),
        ("optimizer", "AdamW", ["the optimizer SGD", "AdamW"]),
        ("data.classes", ["a", "c"], ["the classes a, b", "a, c"]),
        ("data.num_images", 9, ["8 images", "coins has 9"]),
        ("data.files", "g", ["coins has 8, or others"]),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(place, value, words):
    with pytest.raises(UserError) as refused:
        check_run(RUN, _changed(place, value), "output/model_final.pth")
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.endswith("with MODEL.WEIGHTS output/model_final.pth")
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("data.annotations", "y", "the annotations of coins are not those"),
        ("images_per_batch", 4, "goes on with 4"),
    ],
)
def test_what_makes_it_inexact_is_a_warning(place, value, word, said):
    check_run(RUN, copy.deepcopy(RUN), "model_final.pth")
    assert said() == ""
    check_run(RUN, _changed(place, value), "model_final.pth")
    assert word in said()


def _changed(place, value):
    run = copy.deepcopy(RUN)
    *sections, key = place.split(".")
    section = run
    for name in sections:
        section = section[name]
    section[key] = value
    return run


def test_places_of_files_are_no_other_values(cfg):
    before = cfg.dump()
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.WEIGHTS = "elsewhere", 7, "w.pth"
    cfg.DATASETS.COCO_JSON = [("a", "b", "c")]
    assert changed_values(before, cfg) == []
    # A key that there was not yet has done nothing.
    assert changed_values(before.replace("  DECAY_SHARE: 0.3\n", ""), cfg) == []
    cfg.SOLVER.STEPS = (7,)
    assert changed_values(before, cfg) == ["SOLVER.STEPS [] -> [7]"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    assert changed_model(before, cfg) == ["MODEL.FPN.OUT_CHANNELS was 64, is 32"]
    assert changed_model(7, cfg) == changed_model("{{", cfg) == []
