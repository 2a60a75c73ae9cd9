"""The trainer in one process of Python: what it puts around the model stays out of checkpoints."""

import argparse
import logging
import shlex
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase

from retinanet_plugin.engine import Trainer, command_line, log_end
from retinanet_plugin.engine.failures import writers
from retinanet_plugin.errors import UserError
from retinanet_plugin.execution.cuda_graphs import CudaGraphs


@pytest.fixture
def cfg(instant_cfg):
    cfg = instant_cfg
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.001  # so that there is something to evaluate
    return cfg


@pytest.fixture
def captured(monkeypatch):
    """CUDA graphs on the CPU: the steps that are captured, which then run as they are."""
    steps = []

    def capture(step, sample, **kwargs):
        steps.append(step)
        return step

    def graphs(model):
        return CudaGraphs(model, capture)

    monkeypatch.setattr("retinanet_plugin.engine.trainer.check_cuda_graphs", lambda *_: None)
    monkeypatch.setattr("retinanet_plugin.engine.trainer.CudaGraphs", graphs)
    return steps


def test_training_through_cuda_graphs(cfg, captured, tmp_path):
    plain = Trainer(cfg).model.state_dict()
    cfg.MODEL.RETINANET.CUDA_GRAPH = True
    trainer = Trainer(cfg)
    assert isinstance(trainer.model, CudaGraphs)
    trainer.resume_or_load(resume=False)
    trainer.train()  # evaluates at its end
    assert captured
    assert trainer.model.training
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert saved.keys() == plain.keys()  # of the bare model
    assert any(not torch.equal(saved[name], plain[name]) for name in plain)

    # The run goes on from there, and the model can be evaluated as it is.
    cfg.SOLVER.MAX_ITER += 1
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == cfg.SOLVER.MAX_ITER - 1
    weights = resumed.model.model.state_dict()
    assert all(torch.equal(saved[name], weights[name]) for name in saved)
    bare = Trainer.build_model(cfg)
    DetectionCheckpointer(bare).load(str(tmp_path / "model_final.pth"))
    found, expected = (Trainer.test(cfg, model)["bbox"] for model in (resumed.model, bare))
    assert found == pytest.approx(expected, nan_ok=True)
    resumed.train()


def test_results_that_are_missed_are_one_sentence(cfg, caplog):
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 99.0, 0.5], ["bbox", "AP50", 50.0, 50.0]]
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    with pytest.raises(UserError, match=r"EXPECTED_RESULTS are missed on .* and not 99, up to 0.5"):
        trainer.train()


def test_the_last_line_says_what_there_is_and_what_to_do_next(cfg, tmp_path, caplog):
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)
    with caplog.at_level(logging.INFO, "detectron2"):
        log_end(cfg, {"bbox": {"AP": 62.94}}, "model_final.pth")
    (line,) = caplog.messages
    done, command = line.split("; where it fails: ")
    assert done == f"done: AP 62.9 on {name}, weights in model_final.pth"
    results = f"{tmp_path}/inference/{name}/coco_instances_results.json"
    assert shlex.split(command) == [
        "python", "-m", "retinanet_plugin", "report", "--truth", metadata.json_file,
        "--images", metadata.image_root, "--results", results, "--output", f"{tmp_path}/report",
    ]  # fmt: skip


def test_a_checkpoint_can_be_used_by_what_the_last_lines_say(cfg, tmp_path, caplog):
    weights = tmp_path / "model_final.pth"
    weights.touch()
    with caplog.at_level(logging.INFO, "detectron2"):
        log_end(cfg, None, str(weights))
    _, detect, export = caplog.messages
    images = MetadataCatalog.get(cfg.DATASETS.TEST[0]).image_root
    wanted = f"retinanet_plugin predict {weights} {images} --output {tmp_path}/predictions"
    assert wanted in detect
    assert f"retinanet_plugin export onnx {weights} {tmp_path}/model.onnx" in export


@pytest.mark.parametrize(("last", "averaged", "better"), [(62.9, 63.1, 1), (62.9, 62.8, 0)])
def test_the_last_lines_take_the_averaged_weights_if_they_are_better(
    cfg, tmp_path, caplog, last, averaged, better
):
    files = [str(tmp_path / f"model_final{end}.pth") for end in ("", "_averaged")]
    for file in files:
        Path(file).touch()
    results = {"bbox": {"AP": last}, "averaged": {"bbox": {"AP": averaged}}}
    with caplog.at_level(logging.INFO, "detectron2"):
        log_end(cfg, results, files[0])
    done, detect, export = caplog.messages
    assert f"weights in {files[0]}; averaged weights: AP {averaged}, in {files[1]}; where" in done
    folder = tmp_path / "inference" / (cfg.DATASETS.TEST[0] + ["", "_averaged"][better])
    assert f"{folder}/coco_instances_results.json" in done
    assert f"predict {files[better]} " in detect
    assert f"export onnx {files[better]} " in export


def test_the_last_line_names_an_average_that_was_not_evaluated(cfg, tmp_path, caplog):
    (tmp_path / "model_final_averaged.pth").touch()
    with caplog.at_level(logging.INFO, "detectron2"):
        log_end(cfg, None, "model_final.pth")
    average = tmp_path / "model_final_averaged.pth"
    assert caplog.messages == [f"done: weights in model_final.pth; averaged weights in {average}"]


def test_the_last_line_names_weights_that_are_there(cfg, tmp_path, caplog):
    """A training that is asked for less than was done has nothing to save."""
    cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = (), 3, 2
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    cfg.SOLVER.MAX_ITER = 1
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    caplog.clear()
    with caplog.at_level(logging.INFO, "detectron2"):
        trainer.train()
    assert f"done: weights in {tmp_path}/model_0000001.pth" in caplog.messages


def test_the_last_line_where_no_file_has_the_truth(cfg, caplog):
    """As of data that are registered in Python."""
    cfg.DATASETS.TEST = ("made_by_a_function",)
    MetadataCatalog.get("made_by_a_function").evaluator_type = "coco"
    with caplog.at_level(logging.INFO, "detectron2"):
        log_end(cfg, {"bbox": {"AP": 62.94}}, "model_final.pth")
    MetadataCatalog.remove("made_by_a_function")
    assert caplog.messages == ["done: AP 62.9 on made_by_a_function, weights in model_final.pth"]


def test_the_last_line_of_a_model_that_detects_nothing(cfg, caplog):
    with caplog.at_level(logging.INFO, "detectron2"):
        log_end(cfg, {"bbox": {"AP": float("nan")}}, "model_final.pth")  # as COCO's has it
    name = cfg.DATASETS.TEST[0]
    assert caplog.messages == [f"done: no detections on {name}, weights in model_final.pth"]


@pytest.mark.parametrize("eval_only", [True, False])
def test_an_evaluation_leaves_the_config_of_the_training(cfg, tmp_path, monkeypatch, eval_only):
    path = tmp_path / "config.yaml"
    path.write_text("of the training")
    monkeypatch.setattr(command_line, "default_setup", lambda *_: path.write_text("of this run"))
    command_line.set_up(cfg, argparse.Namespace(eval_only=eval_only))
    assert path.read_text() == ("of the training" if eval_only else "of this run")


def test_metrics_that_cannot_be_written(cfg, tmp_path, monkeypatch):
    cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER = (), 1
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    said = []
    monkeypatch.setattr(writers.logger, "warning", said.append)
    trainer = Trainer(cfg)
    trainer.train()
    assert len(said) == 1
    assert "metrics.json in" in said[0]
    assert "No space left on device" in said[0]
    assert (tmp_path / "model_final.pth").exists()


class FailingTwice(HookBase):
    def after_step(self):
        raise OSError(28, "No space left on device")

    def after_train(self):
        raise ZeroDivisionError


def test_what_failed_first_counts(cfg):
    cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER = (), 1
    trainer = Trainer(cfg)
    trainer.register_hooks([FailingTwice()])
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
