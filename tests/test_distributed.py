"""Several processes that Detectron2 launches: failures are told once.

They are forked from a server that has imported everything, which takes seconds less than starting
Python for each.
"""

import copy
import functools
import math
import multiprocessing
import os
import signal

import pytest
import torch
from conftest import ROOT
from detectron2.engine import launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.multiprocessing import start_processes

import train_net
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.checks import startup_checks
from retinanet_plugin.engine.checks.device_checks import check_trained, without_gradient
from retinanet_plugin.errors import UserError

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
multiprocessing.set_forkserver_preload(
    ["retinanet_plugin.engine", "retinanet_plugin.data.digits", "pytest"]
)
_start = functools.partial(start_processes, start_method="forkserver")


# ------------------------------------------------------------------ a training that fails


def _main_that_fails(way, args):
    """``train_net.main`` on CPUs, which fails in iteration 1; in a process of its own."""
    torch.set_num_threads(1)
    run_step = Trainer.run_step

    def fail(trainer):
        if trainer.iter == 1 and way == "all":
            raise UserError("a mistake of all processes")
        if trainer.iter == 1 and comm.get_rank() == 1:
            if way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            torch.nn.init.constant_(trainer.model.module.head.bbox_pred.bias, math.nan)
        run_step(trainer)

    Trainer.run_step = fail
    return train_net.main(args)


@pytest.mark.skipif(
    "has_gpu" not in launch.__globals__["_distributed_worker"].__code__.co_varnames,
    reason="Detectron2 0.6 launches processes on GPUs alone",
)
@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("all", "a mistake of all processes"),
        ("nan", "loss_box_reg is nan in process 1 in iteration 1: the weights were not finite"),
        ("killed", "a process of the training was ended from outside"),
    ],
    ids=["all", "nan", "killed"],
)
def test_a_failure_is_told_once(way, said, digits_entries, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(launch.__globals__["mp"], "start_processes", _start)
    monkeypatch.setattr(train_net, "main", functools.partial(_main_that_fails, way))
    for check in ("check_devices", "check_processes"):  # which refuse CPUs
        monkeypatch.setattr(startup_checks, check, lambda cfg, args: None)
    train = digits_entries[0]
    opts = [
        *("DATASETS.COCO_JSON", str([list(train)]), "DATASETS.TRAIN", str((train[0],))),
        *("DATASETS.TEST", "()", "INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.MAX_ITER", "3"),
        *("OUTPUT_DIR", str(tmp_path)),
    ]
    processes = ["--num-gpus", "2", "--dist-url", "auto"]
    with pytest.raises(SystemExit) as end:
        train_net.run(["--config-file", INSTANT, *processes, "--opts", *opts])
    console = capfd.readouterr()
    told = str(end.value)  # which Python prints, with exit status 1
    assert told.startswith(f"error: {said}"), told + console.err
    assert "\n" not in told
    assert said not in console.out + console.err
    assert "Traceback" not in console.out + console.err
    assert not multiprocessing.active_children()


# ------------------------------------------------------------------ weights that no loss reaches


def test_weights_without_a_gradient(small_cfg):
    model = build_model(small_cfg)
    statistics = copy.deepcopy(model.state_dict())
    assert without_gradient(model) == ([], [])
    assert model.training
    assert all(torch.equal(x, statistics[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    small_cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    small_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256]]
    model = build_model(small_cfg)
    assert without_gradient(model) == (["top_block.p7.weight", "top_block.p7.bias"], ["p7"])
    check_trained(small_cfg, model)
    small_cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True  # by value: PyTorch wants one of each
    with pytest.raises(UserError, match=r"2 parameters .*, or set SOLVER"):
        check_trained(small_cfg, model)
    small_cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p7"]  # p7 is made of p6
    check_trained(small_cfg, build_model(small_cfg))
