"""Whether this machine has the devices that a run asks for, and its processes go together."""

import argparse
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ...errors import UserError
from ...execution.cuda_graphs import check_cuda_graphs
from .. import torchrun


def num_processes(args: argparse.Namespace) -> int:
    """How many processes train together."""
    if torchrun.is_torchrun():
        return torchrun.num_processes()
    return int(max(1, args.num_gpus) * args.num_machines)


def check_devices(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse ``MODEL.DEVICE`` and ``--num-gpus`` that this machine does not have.

    Raises:
        UserError: there is no such device, or not so many.
    """
    name, found = cfg.MODEL.DEVICE, torch.cuda.device_count()
    if torchrun.is_torchrun() and (args.num_gpus, args.num_machines) != (1, 1):
        raise UserError(
            "torchrun starts the processes, as many as its --nproc-per-node and --nnodes say: "
            "leave out --num-gpus and --num-machines"
        )
    try:
        device = torch.device(name)
        if device.type != "cuda":  # which is only counted: each process is to start it by itself
            torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"MODEL.DEVICE is {name}, which PyTorch cannot use here: set it to cuda or cpu"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is {name} but PyTorch finds no CUDA device here: "
            "add --opts MODEL.DEVICE cpu, or install a PyTorch build that fits the GPU's driver"
        )
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UserError(
            f"MODEL.DEVICE is {name} but PyTorch finds {found} CUDA devices here, counted from 0: "
            "set MODEL.DEVICE to one of them"
        )
    if args.num_gpus > max(1, found):
        raise UserError(
            f"--num-gpus is {args.num_gpus} but PyTorch finds {found} CUDA devices "
            f"here: lower --num-gpus, or start processes on the CPU with {_torchrun(args.num_gpus)}"
        )


def check_processes(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        UserError: they cannot share a batch, a device or CUDA graphs.
    """
    processes = num_processes(args)
    if args.eval_only:
        return
    batch, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:  # of which it is the batch
        batch = batch * processes // cfg.SOLVER.REFERENCE_WORLD_SIZE
    if batch % (processes * parts):
        shared = f"{processes} processes" + (f" and {parts} parts" if parts > 1 else "")
        key = " (or lower SOLVER.ACCUMULATE_STEPS)" if parts > 1 else ""
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which {shared} cannot share evenly: choose a "
            f"multiple of {processes * parts}{key}"
        )
    check_cuda_graphs(cfg, processes)
    if processes == 1 or cfg.MODEL.DEVICE == "cuda":
        return
    if cfg.MODEL.DEVICE != "cpu" or not torchrun.is_torchrun():
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE} but {processes} processes are to train, each "
            "on a GPU of its own: set MODEL.DEVICE cuda, or for processes on the CPU set it to cpu "
            f"and start them with {_torchrun(processes)}"
        )
    if torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is cpu but the {processes} processes exchange gradients between GPUs, "
            "since there are some: set MODEL.DEVICE cuda, or hide the GPUs with "
            "CUDA_VISIBLE_DEVICES="
        )


def _torchrun(processes: int) -> str:
    return f"torchrun --standalone --nproc-per-node {processes} train_net.py ..."


def check_trained(cfg: CfgNode, model: Any) -> None:
    """Refuse levels of a RetinaNet that no loss reaches, where each parameter needs a gradient.

    Raises:
        UserError: parameters of the backbone get no gradient from the levels of the head.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE != "value":
        return
    idle, unused = without_gradient(model)
    if idle:
        raise UserError(
            f"MODEL.RETINANET.IN_FEATURES is {cfg.MODEL.RETINANET.IN_FEATURES}, with which "
            f"{len(idle)} parameters of the backbone get no gradient ({idle[0]} is the first), and "
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE value cannot do without: add "
            f"{', '.join(unused) or 'their levels'} with sizes of anchors, or set "
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm"
        )


def without_gradient(model: Any) -> tuple[list[str], list[str]]:
    """Names of the backbone's parameters that no loss depends on, and of features that none reads.

    None of the model's own is changed: no gradient, no statistics.

    Args:
        model: the bare model; one that names backbone and levels otherwise than RetinaNet is not
            looked at.
    """
    used = getattr(model, "in_features", None) or getattr(model, "head_in_features", None) or []
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module) or not used:
        return [], []
    parameters = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    if not parameters:
        return [], []
    was_training = backbone.training
    backbone.eval()  # batch norms take no statistics of it
    size = max(64, getattr(backbone, "size_divisibility", 0))
    channels = len(model.pixel_mean)
    features = backbone(torch.zeros(1, channels, size, size, device=model.device))
    backbone.train(was_training)
    total = sum(features[name].sum() for name in used)
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    idle = [name for name, gradient in zip(parameters, gradients) if gradient is None]
    return idle, [name for name in features if name not in used]
