"""Whether this machine has the devices that a run asks for, and its processes go together."""

import argparse
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ...errors import UserError
from ...execution.cuda_graphs import check_cuda_graphs


def num_processes(args: argparse.Namespace) -> int:
    """How many processes train together, one a GPU."""
    return int(max(1, args.num_gpus) * args.num_machines)


def check_devices(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse ``MODEL.DEVICE`` and ``--num-gpus`` that this machine does not have.

    Raises:
        UserError: there is no such device, or not so many.
    """
    name, found = cfg.MODEL.DEVICE, torch.cuda.device_count()
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
            "here: lower --num-gpus (Detectron2 trains on the CPU in one process)"
        )


def check_processes(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        UserError: they cannot share a batch, a device or CUDA graphs.
    """
    processes = num_processes(args)
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {processes} processes "
            "cannot share evenly: choose a multiple of their number"
        )
    if args.eval_only:
        return
    check_cuda_graphs(cfg, processes)
    if processes > 1 and cfg.MODEL.DEVICE != "cuda":
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE} but {processes} processes are to train, each "
            "on a GPU of its own: set MODEL.DEVICE cuda, or train with --num-gpus 1"
        )


def check_trained(cfg: CfgNode, model: Any, processes: int) -> None:
    """Refuse levels of a RetinaNet that no loss reaches, where each parameter needs a gradient.

    Args:
        model: of ``cfg``; one that names backbone and levels otherwise than RetinaNet is not looked
            at.
        processes: that train together; they wait for all gradients of each other.

    Raises:
        UserError: parameters of the backbone get no gradient from the levels of the head.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if processes > 1:
        harm, way_out = "several processes would wait for it", "train with --num-gpus 1"
    elif clip.ENABLED and clip.CLIP_TYPE == "value":
        harm = "SOLVER.CLIP_GRADIENTS.CLIP_TYPE value cannot do without"
        way_out = "set SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm"
    else:
        return
    used = getattr(model, "in_features", None) or getattr(model, "head_in_features", None) or []
    idle, unused = _without_gradient(model, used)
    if idle:
        raise UserError(
            f"MODEL.RETINANET.IN_FEATURES is {list(used)}, with which {len(idle)} parameters of "
            f"the backbone get no gradient ({idle[0]} is the first): {harm}: add "
            f"{', '.join(unused) or 'their levels'} with sizes of anchors, or {way_out}"
        )


def _without_gradient(model: Any, used: list[str]) -> tuple[list[str], list[str]]:
    """Names of the backbone's parameters that ``used`` features do not depend on; other features.

    None of the model's own is changed: no gradient, no statistics.
    """
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
