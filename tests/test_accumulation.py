"""A batch in parts gives the step of the whole batch; several processes give that of one."""

import argparse
import copy
import functools
import itertools
import multiprocessing
import os

import pytest
import torch
from conftest import make_batch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from torch import distributed
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from retinanet_plugin.engine.accumulation import AccumulatingTrainer, PreciseBNOfParts
from retinanet_plugin.engine.checks import device_checks
from retinanet_plugin.engine.checks.config_checks import config_errors
from retinanet_plugin.errors import UserError

multiprocessing.set_forkserver_preload(
    ["retinanet_plugin.engine", "retinanet_plugin.data.digits", "pytest"]
)
_start = functools.partial(start_processes, start_method="forkserver")
NUM_BOXES = (2, 0, 3, 1)  # of the images of the batch


@pytest.fixture
def batch():
    """Four images of one size, so that the parts of a batch are padded as the batch is."""
    return make_batch(5, NUM_BOXES, sizes=((96, 128),) * 4)


@pytest.fixture
def model(small_cfg):
    """With group norm in the FPN and frozen batch norms below it."""
    small_cfg.MODEL.FPN.NORM = "GN"
    return build_model(small_cfg)


def after_steps(model, batch, num_parts, num_steps=2, grad_scaler=None):
    """The weights and the logged losses."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [batch] * num_steps
    if num_parts == 1 and grad_scaler is None:
        trainer = SimpleTrainer(model, batches, optimizer)
    else:
        trainer = AccumulatingTrainer(model, batches, optimizer, num_parts, grad_scaler)
    logged = []
    trainer._write_metrics = lambda losses, seconds: logged.append(
        {name: float(loss) for name, loss in losses.items()}
    )
    for _ in batches:
        trainer.run_step()
    return model.state_dict(), logged


def assert_alike(found, expected, tolerance=1e-5, next_to_nothing=1e-9):
    """Each tensor is the same up to a share of its norm."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).norm()
        assert difference <= tolerance * value.double().norm() + next_to_nothing, name


@pytest.mark.parametrize("num_parts", [4])
def test_a_batch_in_parts_is_the_batch(model, batch, num_parts):
    """Weights, momentum, moving average and logged losses, after steps that differ in both."""
    weights, losses = after_steps(model, batch, 1)
    in_parts, losses_in_parts = after_steps(model, batch, num_parts)
    assert_alike(in_parts, weights)
    for found, expected in zip(losses_in_parts, losses):
        assert found == pytest.approx(expected, rel=1e-5)
    assert abs(weights["loss_normalizer"] - 100) > 1


def test_a_batch_in_parts_in_mixed_precision(model, batch):
    """The scale of the losses is taken out again, and grows as Detectron2's does."""
    batch = make_batch(5, (1, 2), sizes=((32, 32),) * 2)
    scaler = torch.amp.GradScaler("cpu", 2.0**10, growth_interval=1)
    scaled, losses = after_steps(model, batch, 2, 1, scaler)
    plain, expected = after_steps(model, batch, 1, 1)
    assert_alike(scaled, plain, 5e-3, next_to_nothing=1e-5)
    assert losses[0] == pytest.approx(expected[0], rel=5e-3)
    assert scaler.get_scale() == 2.0**11


def test_a_weight_of_the_whole_batch_is_refused(small_cfg, batch):
    small_cfg.MODEL.RETINANET.BBOX_REG_LOSS_WEIGHTING = "score"
    with pytest.raises(ValueError, match="loss_box_reg is divided by a weight of the whole batch"):
        after_steps(build_model(small_cfg), batch, 2)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("MODEL.META_ARCHITECTURE", "RetinaNet", "Detectron2's own, divides the losses of each"),
        ("MODEL.RETINANET.CUDA_GRAPH", True, "graphs write over gradients"),
        ("MODEL.RETINANET.BBOX_REG_LOSS_WEIGHTING", "score", "whose sum over the batch is not"),
    ],
)
def test_what_parts_cannot_do_is_refused_in_a_sentence(small_cfg, key, value, words):
    small_cfg.MODEL.DEVICE = "cuda" if key.endswith("GRAPH") else "cpu"
    small_cfg.merge_from_list([key, value])
    assert not any("ACCUMULATE_STEPS" in error for error in config_errors(small_cfg))
    small_cfg.SOLVER.ACCUMULATE_STEPS = 2
    (error,) = (x for x in config_errors(small_cfg) if "ACCUMULATE_STEPS" in x)
    assert error.startswith(f"SOLVER.ACCUMULATE_STEPS is 2 but {key}")
    assert words in error


def test_parts_of_unequal_size_are_refused(small_cfg, monkeypatch):
    monkeypatch.setattr(device_checks, "num_processes", lambda args: 2)
    small_cfg.SOLVER.IMS_PER_BATCH, small_cfg.SOLVER.ACCUMULATE_STEPS = 20, 4
    with pytest.raises(UserError) as refused:
        device_checks.check_processes(small_cfg, argparse.Namespace(eval_only=False))
    assert str(refused.value) == (
        "SOLVER.IMS_PER_BATCH is 20, which 2 processes and 4 parts cannot share evenly: choose a "
        "multiple of 8 (or lower SOLVER.ACCUMULATE_STEPS)"
    )


def test_precise_batch_norm_of_parts(small_cfg, batch):
    """The images of the batches, as many at a time as a step computes; no step is taken."""
    small_cfg.MODEL.RESNETS.NORM = "BN"
    model = build_model(small_cfg)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    images = []
    model.backbone.bottom_up.stem.conv1.norm.register_forward_pre_hook(
        lambda module, inputs: images.append(inputs[0].transpose(0, 1).flatten(1))
    )
    PreciseBNOfParts(0, model, itertools.cycle([batch, batch[::-1]]), 2, 4).update_stats()
    assert seen == [1] * 8
    norm = model.backbone.bottom_up.stem.conv1.norm
    torch.testing.assert_close(norm.running_mean, torch.cat(images, 1).mean(1))
    torch.testing.assert_close(norm.running_var, torch.cat(images, 1).var(1, unbiased=False))
    assert model.loss_normalizer == 100  # it is of whole batches


def test_precise_batch_norm_without_batch_norm(model):
    batches = iter([["an image"] * 4])
    PreciseBNOfParts(0, model, batches, 2, 4).update_stats()
    assert len(list(batches)) == 1  # none was taken


# ------------------------------------------------------------------ several processes


def _worker(rank, folder, size):
    """Gradients of this process's share of the batch, averaged by PyTorch; in three ways."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous{size}", rank=rank, world_size=size
    )
    model, batch = torch.load(os.path.join(folder, "input.pt"), weights_only=False)
    share = batch[rank * len(batch) // size : (rank + 1) * len(batch) // size]
    found = {}
    for way in ("synced", "stock", "in parts"):
        of_way = copy.deepcopy(model)
        of_way.sync_loss_normalizer = way != "stock"
        # As Detectron2's create_ddp_model(model, broadcast_buffers=False) does.
        parallel = DistributedDataParallel(of_way, broadcast_buffers=False)
        if way != "in parts":
            sum(parallel(share).values()).backward()
        elif size == 2:
            optimizer = torch.optim.SGD(of_way.parameters(), lr=0.0)
            trainer = AccumulatingTrainer(parallel, [share], optimizer, 2)
            trainer._write_metrics = lambda losses, seconds: None
            trainer.run_step()
        found[way] = _gradients(of_way), of_way.loss_normalizer
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def _gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _alone(model, batch):
    model = copy.deepcopy(model)
    sum(model(batch).values()).backward()
    return _gradients(model), model.loss_normalizer


@pytest.mark.parametrize("size", [2, 4])
def test_processes_have_the_gradients_of_one(model, batch, tmp_path, size):
    """Of 4 processes one has no box at all: it must not keep the others waiting."""
    torch.save((model, batch), tmp_path / "input.pt")
    whole, average = _alone(model, batch)
    num = len(batch) // size
    alone = [_alone(model, batch[i : i + num]) for i in range(0, len(batch), num)]
    means = {name: sum(of[name] for of, _ in alone) / size for name in whole}

    _start(_worker, args=(str(tmp_path), size), nprocs=size)
    for rank in range(size):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for way in ("synced", "in parts") if size == 2 else ("synced",):
            gradients, synced = found[way]
            assert synced == pytest.approx(float(average), rel=1e-6), way
            assert_alike(gradients, whole)
        gradients, own = found["stock"]  # and its own average
        assert own == alone[rank][1]
        assert_alike(gradients, means)
