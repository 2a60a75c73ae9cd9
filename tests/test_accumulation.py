"""A batch in parts gives the step of the whole batch; several processes give that of one."""

import copy
import functools
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

from retinanet_plugin.engine.accumulation import AccumulatingTrainer

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
