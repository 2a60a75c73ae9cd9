"""A training that watches itself: what it says, when it ends, and that it changes nothing."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import build_model
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import EventStorage, get_event_storage
from torch import distributed
from torch.multiprocessing import start_processes

from retinanet_plugin.data.loading.mapper import RetinaNetMapper
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.validation import DetectionCounter, share_reached, validation_losses
from retinanet_plugin.engine.watch import EarlyStop, EvaluationHook


@pytest.fixture
def cfg(instant_cfg):
    cfg = instant_cfg
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.001
    cfg.SEED = 1
    return cfg


def trained(cfg, *, seed=1):
    trainer = Trainer(cfg)
    trainer.seed = seed
    torch.manual_seed(0)
    trainer.model.load_state_dict(build_model(cfg).state_dict())
    trainer.train()
    return trainer


@pytest.fixture
def said():
    """The messages of Detectron2's log."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("detectron2")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(handler)


def metrics_of(cfg):
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
        return [json.loads(line) for line in file]


def test_each_evaluation_is_a_line_and_metrics(cfg, said):
    cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER = 2, 4
    trained(cfg)
    name = cfg.DATASETS.TEST[0]
    lines = [line for line in said if line.startswith(f"{name}: ")]
    assert [line.split(",")[0].rpartition(" ")[0] for line in lines] == 2 * [
        f"{name}: 400 detections in 4",
        f"{name}: losses of validation: total_loss",
    ]
    assert "top score 0." in lines[0]
    assert "; anchors reach " in lines[0]
    rows = [row for row in metrics_of(cfg) if "num_detections" in row]
    assert [row["iteration"] for row in rows] == [1, 4]
    for row in rows:
        assert row["num_detections"] == 400
        assert 0 < row["top_score"] < 1
        assert 0 < row["share_reached_by_anchors"] <= 1
        total = row["val_loss_cls"] + row["val_loss_box_reg"]
        assert row["val_total_loss"] == pytest.approx(total)


def test_watching_changes_no_weight(cfg):
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER = 1, 3
    watched = trained(cfg).model.state_dict()
    cfg.TEST.EVAL_PERIOD, cfg.TEST.VAL_LOSS = 0, False
    unwatched = trained(cfg).model.state_dict()
    assert all(torch.equal(watched[name], unwatched[name]) for name in unwatched)


def inputs_of(cfg):
    """The inputs of the training losses on the test set."""
    mapper = RetinaNetMapper(cfg, True, augmentations=build_augmentation(cfg, is_train=False))
    return [mapper(record) for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])]


def test_validation_losses_are_those_of_training_over_all_foreground_anchors(cfg):
    cfg.MODEL.RESNETS.NORM = "FrozenBN"  # the same in training and in inference
    model = build_model(cfg)
    inputs = inputs_of(cfg)
    sums, num_foreground = {"val_loss_cls": 0.0, "val_loss_box_reg": 0.0}, 0
    for x in inputs:
        with torch.no_grad(), EventStorage():
            losses = model.train()([x])
            num_foreground += get_event_storage().latest()["num_pos_anchors"][0]
        for name, loss in losses.items():
            sums[f"val_{name}"] += float(loss * model.loss_normalizer)
    model.eval()
    found = validation_losses(cfg, model, cfg.DATASETS.TEST[0])
    for name, total in sums.items():
        assert found[name] == pytest.approx(total / num_foreground, rel=1e-5)


def test_validation_leaves_a_model_as_it_was(cfg):
    cfg.MODEL.RESNETS.NORM = "BN"
    model = build_model(cfg).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    validation_losses(cfg, model, cfg.DATASETS.TEST[0])
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


def validated_in_two_processes(rank, cfg, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    found = validation_losses(cfg, build_model(cfg), cfg.DATASETS.TEST[0])
    counter = DetectionCounter()
    counter.reset()
    scores = Instances((9, 9), scores=torch.tensor([0.1, 0.5 + rank / 4]))
    counter.process([{}], [{"instances": scores}])
    counter.evaluate()
    found |= vars(counter)
    torch.save(found, f"{folder}/{rank}.pt")


def test_processes_share_the_work_and_know_the_same(cfg, tmp_path):
    torch.manual_seed(0)
    expected = validation_losses(cfg, build_model(cfg), cfg.DATASETS.TEST[0])
    expected |= {"num_images": 2, "num_detections": 4, "top_score": 0.75}
    start_processes(
        validated_in_two_processes, args=(cfg, str(tmp_path)), nprocs=2, start_method="fork"
    )
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected)


def test_a_test_set_without_annotations_has_no_losses(cfg, request):
    name, model = request.node.name, build_model(cfg)
    records = [{**x, "annotations": []} for x in DatasetCatalog.get(cfg.DATASETS.TEST[0])]
    DatasetCatalog.register(name, lambda: records)
    try:
        assert validation_losses(cfg, model, name) == {}
        assert share_reached(cfg, model, name) is None
    finally:
        DatasetCatalog.remove(name)


def test_share_that_anchors_reach(cfg):
    model = build_model(cfg)
    images = model.preprocess_image(inputs_of(cfg)[:1])
    anchors = model.anchor_generator(
        [images.tensor[:, :, ::s, ::s] for s in model.anchor_generator.strides]
    )
    best = [
        pairwise_iou(x["instances"].gt_boxes, type(anchors[0]).cat(anchors)).max(dim=1).values
        for x in inputs_of(cfg)  # all of one size
    ]
    expected = (torch.cat(best) >= 0.5).float().mean()
    assert share_reached(cfg, model, cfg.DATASETS.TEST[0]) == pytest.approx(float(expected))


# ------------------------------------------------------------------ when it is evaluated


class FakeTrainer:
    """What hooks read of a trainer."""

    def __init__(self, max_iter, start_iter=0):
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter


def run(hook, max_iter, start_iter=0):
    """Train with the hook; returns the iteration after which it ended early, or None."""
    trainer = hook.trainer = FakeTrainer(max_iter, start_iter)
    with EventStorage(start_iter) as trainer.storage:
        try:
            hook.before_train()
            for trainer.iter in range(start_iter, max_iter):
                trainer.storage.iter = trainer.iter
                hook.after_step()
            trainer.iter += 1
        except EarlyStop:
            return trainer.iter
        finally:
            hook.after_train()
    return None


def evaluations(aps, **kwargs):
    """A hook whose evaluations give ``aps``, one after the other; and at what iterations."""
    at, left = [], list(aps)

    def evaluate():
        at.append(get_event_storage().iter)
        random.random(), torch.rand(1), np.random.rand()
        return {"bbox": {"AP": left.pop(0)}}

    return EvaluationHook(2, evaluate, **kwargs), at


def test_evaluations_are_periodic_and_draw_no_random_numbers():
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1]
    hook, at = evaluations([1.0, 2.0, 3.0])
    assert run(hook, 6) is None
    assert at == [1, 3, 5]
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()


def test_early_stop_counts_evaluations_without_a_better_ap():
    better = []
    hook, at = evaluations([5.0, 4.0, 6.0, 6.0, 5.0, 9.0], patience=2, on_better=better.append)
    assert run(hook, 20) == 9
    assert at == [1, 3, 5, 7, 9]
    assert better == [5.0, 6.0]


def test_without_detections_the_ap_is_0():
    hook, _ = evaluations([float("nan")] * 3 + [1.0], patience=2)
    assert run(hook, 20) == 5
    hook, _ = evaluations([float("nan"), 1.0, 2.0, 3.0], patience=1)
    assert run(hook, 8) is None


def test_an_evaluation_that_was_due_at_the_checkpoint_is_done_when_resumed():
    hook, at = evaluations([5.0, 4.0, 3.0, 2.0])
    run(hook, 4)  # evaluates after 2 and 4 iterations
    before_the_second = {**hook.state_dict(), "last_evaluated": 2}
    hook, at = evaluations([5.0, 4.0, 3.0])
    hook.load_state_dict(before_the_second)
    run(hook, 8, start_iter=4)
    assert at == [3, 5, 7]
    hook, at = evaluations([4.0, 3.0])
    hook.load_state_dict({**before_the_second, "last_evaluated": 4})
    run(hook, 8, start_iter=4)
    assert at == [5, 7]


def test_an_early_stop_is_remembered():
    hook, _ = evaluations([5.0, 4.0], patience=1)
    assert run(hook, 20) == 3
    resumed, at = evaluations([], patience=1)
    resumed.load_state_dict(hook.state_dict())
    assert run(resumed, 20, start_iter=4) == 4
    assert at == []


def test_a_failed_last_iteration_is_not_evaluated():
    hook, at = evaluations([])
    hook.trainer = FakeTrainer(6, start_iter=5)
    hook.after_train()
    assert at == []


def test_a_new_training_does_not_compare_with_an_earlier_one(cfg, tmp_path):
    cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER = 1, 1
    torch.save({"model": {}, "best_metric": 100.0}, tmp_path / "model_best.pth")
    trained(cfg)  # without resume_or_load, as in a script of one's own
    assert (tmp_path / "earlier-1" / "model_best.pth").exists()
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["best_metric"] < 100
    assert best["model"]


def test_a_training_that_ends_early_can_be_used_and_is_not_resumed(cfg, said, tmp_path):
    cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER, cfg.TEST.EARLY_STOP_PATIENCE = 1, 20, 2
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.SOLVER.BASE_LR = 1e-12  # no evaluation is better than the first
    trainer = trained(cfg)
    assert any("The training ends early, after iteration 2" in line for line in said)
    assert trainer.iter == 2
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 2
    assert (tmp_path / "model_best.pth").exists()
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert any("The training ends early, after iteration 2" in line for line in said)
    assert resumed.iter == 2
