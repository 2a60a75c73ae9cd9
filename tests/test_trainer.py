"""The trainer in one process of Python: what it puts around the model stays out of checkpoints."""

import pytest
import torch
from conftest import ROOT
from detectron2.checkpoint import DetectionCheckpointer

from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.engine import Trainer
from retinanet_plugin.execution.cuda_graphs import CudaGraphs

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")


@pytest.fixture
def cfg(digits_entries, tmp_path):
    register_coco_json(digits_entries)
    (train, *_), (val, *_) = digits_entries
    cfg = load_config(INSTANT)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (val,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.001  # so that there is something to evaluate
    cfg.OUTPUT_DIR = str(tmp_path)
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
