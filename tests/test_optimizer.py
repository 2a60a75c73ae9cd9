"""Optimizers and schedules: which parameters get which rates, and when; resumed exactly."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler as stock_lr_scheduler
from detectron2.solver import build_optimizer as stock_optimizer
from detectron2.utils.env import seed_all_rng

from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.learning_rate import StableDecayParamScheduler, build_lr_scheduler
from retinanet_plugin.engine.optimizer import build_optimizer, with_layer_decay
from retinanet_plugin.errors import UserError


def rates(model, optimizer):
    """Learning rate and weight decay by the names of parameters."""
    of = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: of[p] for name, p in model.named_parameters() if p in of}


@pytest.fixture
def model(small_cfg):
    return build_model(small_cfg)


def test_the_default_is_detectron2s(small_cfg, model):
    mine, stock = build_optimizer(small_cfg, model), stock_optimizer(small_cfg, model)
    assert type(mine) is type(stock)
    assert mine.state_dict() == stock.state_dict()
    assert mine.defaults == stock.defaults


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_earlier_stages_have_smaller_rates(small_cfg, model, name):
    small_cfg.SOLVER.update(OPTIMIZER=name, LAYER_DECAY=0.5, BASE_LR=0.32, WEIGHT_DECAY=0.05)
    small_cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    optimizer = build_optimizer(small_cfg, model)
    assert isinstance(optimizer, getattr(torch.optim, name))
    rate = {name: lr for name, (lr, _) in rates(model, optimizer).items()}
    bottom_up = "backbone.bottom_up."
    assert rate["head.cls_score.weight"] == rate["backbone.fpn_lateral3.weight"] == 0.32
    assert rate["head.cls_score.bias"] == 0.64
    assert rate[f"{bottom_up}res5.0.conv1.weight"] == pytest.approx(0.16)
    assert rate[f"{bottom_up}res3.0.conv1.weight"] == pytest.approx(0.04)
    assert rate[f"{bottom_up}stem.conv1.weight"] == pytest.approx(0.01)
    trained = [name for name, x in model.named_parameters() if x.requires_grad]
    assert set(rate) == set(trained)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trained)  # each once


def test_norms_keep_their_weight_decay(small_cfg):
    small_cfg.MODEL.RETINANET.NORM = "GN"
    small_cfg.SOLVER.update(
        OPTIMIZER="AdamW", LAYER_DECAY=0.5, WEIGHT_DECAY=0.05, WEIGHT_DECAY_NORM=0.0
    )
    model = build_model(small_cfg)
    decay = {name: x for name, (_, x) in rates(model, build_optimizer(small_cfg, model)).items()}
    assert decay["head.cls_subnet.1.weight"] == 0
    assert decay["head.cls_subnet.0.weight"] == 0.05


def test_stages_of_a_network_of_timm(small_cfg):
    pytest.importorskip("timm")
    small_cfg.MODEL.FPN.BOTTOM_UP = "build_timm_backbone"
    small_cfg.MODEL.TIMM.NAME = "resnet10t"
    small_cfg.MODEL.BACKBONE.FREEZE_AT = 0
    model = build_model(small_cfg)
    groups = with_layer_decay([{"params": list(model.parameters())}], model, 1.0, 0.5)
    of = {p: group["lr"] for group in groups for p in group["params"]}
    net = model.backbone.bottom_up.net
    assert of[net.layer4[0].conv1.weight] == 1 / 2
    assert of[net.layer1[0].conv1.weight] == 1 / 16
    assert of[net.conv1[0].weight] == 1 / 32
    assert of[model.head.cls_score.weight] == 1


def rate_of_iterations(cfg, build):
    """The learning rate of each iteration."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    schedule, found = build(cfg, optimizer), []
    for _ in range(cfg.SOLVER.MAX_ITER):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_schedules_of_detectron2_are_its_own(small_cfg, name):
    small_cfg.SOLVER.update(LR_SCHEDULER_NAME=name, MAX_ITER=30, STEPS=(20, 25), WARMUP_ITERS=5)
    mine = rate_of_iterations(small_cfg, build_lr_scheduler)
    assert mine == rate_of_iterations(small_cfg, stock_lr_scheduler)


def test_a_rate_that_stays_and_then_falls_to_0(small_cfg):
    small_cfg.SOLVER.update(LR_SCHEDULER_NAME="WarmupStableDecayLR", BASE_LR=0.8, MAX_ITER=10)
    small_cfg.SOLVER.update(DECAY_SHARE=0.4, WARMUP_ITERS=2, WARMUP_FACTOR=0.5)
    expected = [0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2]
    assert rate_of_iterations(small_cfg, build_lr_scheduler) == pytest.approx(expected)
    assert StableDecayParamScheduler(0.4)(1.3) == 0  # after the last iteration
    small_cfg.SOLVER.update(DECAY_SHARE=1.0, WARMUP_ITERS=0)
    expected = [0.8 * (1 - i / 10) for i in range(10)]
    assert rate_of_iterations(small_cfg, build_lr_scheduler) == pytest.approx(expected)


def test_the_fall_begins_after_a_warm_up_that_shifts_it(small_cfg):
    """As a key of newer versions of Detectron2 has it."""
    if "RESCALE_INTERVAL" not in small_cfg.SOLVER:
        pytest.skip("Detectron2 0.6 has no such key")
    small_cfg.SOLVER.update(LR_SCHEDULER_NAME="WarmupStableDecayLR", BASE_LR=1.0, MAX_ITER=10)
    small_cfg.SOLVER.update(DECAY_SHARE=0.8, WARMUP_ITERS=5, WARMUP_FACTOR=0.5)
    small_cfg.SOLVER.RESCALE_INTERVAL = True
    rates = rate_of_iterations(small_cfg, build_lr_scheduler)
    assert rates == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_errors_are_sentences(small_cfg, model):
    small_cfg.SOLVER.OPTIMIZER = "Lion"
    with pytest.raises(UserError, match=r"SOLVER.OPTIMIZER is 'Lion': choose one of SGD, AdamW"):
        build_optimizer(small_cfg, model)
    model.backbone = torch.nn.Identity()
    with pytest.raises(UserError, match=r"LAYER_DECAY needs the stages .* Identity does not name"):
        with_layer_decay([], model, 1.0, 0.5)


def test_a_training_with_all_of_them_is_resumed_exactly(instant_cfg, tmp_path):
    cfg = instant_cfg
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.update(
        OPTIMIZER="AdamW", LAYER_DECAY=0.7, BASE_LR=1e-3, MAX_ITER=3, CHECKPOINT_PERIOD=2
    )
    cfg.SOLVER.update(LR_SCHEDULER_NAME="WarmupStableDecayLR", DECAY_SHARE=0.9)

    def weights_after_training(resume):
        seed_all_rng(1)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer.model.state_dict()

    whole = weights_after_training(resume=False)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    resumed = weights_after_training(resume=True)
    assert all(torch.equal(resumed[key], x) for key, x in whole.items())
