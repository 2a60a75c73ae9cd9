"""Several processes: gradients are the mean of what each process alone would have."""

import copy
import os

import pytest
import torch
from conftest import make_batch
from detectron2.modeling import build_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from retinanet_plugin.engine.checks.device_checks import check_trained
from retinanet_plugin.errors import UserError


def _gradients(model, batch):
    sum(model(batch).values()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def _worker(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model, batches = torch.load(os.path.join(folder, "input.pt"), weights_only=False)
    # As Detectron2's create_ddp_model(model, broadcast_buffers=False) does.
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    sum(parallel(batches[rank]).values()).backward()
    state = ({n: p.grad for n, p in model.named_parameters()}, model.loss_normalizer)
    torch.save(state, os.path.join(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


def test_two_processes_share_gradients_and_keep_their_own_average(small_cfg, tmp_path):
    model = build_model(small_cfg)
    # One of the processes has no box at all: it must not keep the other waiting.
    batches = [make_batch(5, num_boxes=(3, 4)), make_batch(5, num_boxes=(0, 0))]
    torch.save((model, batches), tmp_path / "input.pt")
    alone = [copy.deepcopy(model) for _ in batches]
    expected = [_gradients(m, batch) for m, batch in zip(alone, batches)]

    torch.multiprocessing.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        gradients, normalizer = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert normalizer == alone[rank].loss_normalizer
        for name in gradients:
            mean = (expected[0][name] + expected[1][name]) / 2
            assert (gradients[name] - mean).norm() <= 1e-4 * mean.norm() + 1e-8, name


def test_weights_that_others_would_wait_for_in_vain(small_cfg):
    model = build_model(small_cfg)
    statistics = copy.deepcopy(model.state_dict())
    check_trained(model)
    assert model.training
    assert all(torch.equal(x, statistics[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    small_cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    small_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256]]
    with pytest.raises(UserError, match=r"2 parameters .*top_block\.p7\.weight.*: add p7"):
        check_trained(build_model(small_cfg))
    small_cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p7"]  # p7 is made of p6
    check_trained(build_model(small_cfg))
