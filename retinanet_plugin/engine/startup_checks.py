"""What is checked before a model is trained or evaluated, so that a mistake costs seconds."""

import argparse
import os

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
)
from detectron2.utils.file_io import PathManager

from ..config import check_config
from ..data.checks import check_datasets
from ..errors import UserError, registered
from ..execution.cuda_graphs import CudaGraphs, check_cuda_graphs

# Frozen layers of random weights learn nothing, and such a training soon ends in NaN.
_FROM_RANDOM_WEIGHTS = (
    "train from random weights with MODEL.WEIGHTS '' MODEL.BACKBONE.FREEZE_AT 0 "
    "MODEL.RESNETS.NORM BN"
)


def check_before_training(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Find what would fail, or train something else than meant, before any long work starts.

    Args:
        cfg: of :func:`retinanet_plugin.engine.setup_config`.
        args: of :func:`retinanet_plugin.engine.argument_parser`.

    Raises:
        UserError: from the config, the devices, the data sets, the weights or the model.
    """
    check_config(cfg)
    num_processes = max(1, args.num_gpus) * args.num_machines
    _check_devices(cfg.MODEL.DEVICE, args)
    _check_processes(cfg, num_processes, args.eval_only)
    check_datasets(cfg, args.eval_only)
    # A run that is resumed reads its own checkpoint, wherever its first weights are by now.
    resumes = args.resume and PathManager.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if not resumes:
        check_weights(cfg.MODEL.WEIGHTS, required=args.eval_only)
    check_model(cfg)


def check_model(cfg: CfgNode) -> None:
    """Build the model and drop it: that takes a second, and its parts say what does not fit.

    Raises:
        UserError: a part is not registered, or cannot be built with these keys.
    """
    model = cfg.MODEL
    build = registered(META_ARCH_REGISTRY, model.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    registered(BACKBONE_REGISTRY, model.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    anchor_generator = model.ANCHOR_GENERATOR.NAME
    registered(ANCHOR_GENERATOR_REGISTRY, anchor_generator, "MODEL.ANCHOR_GENERATOR.NAME")
    try:
        built = build(cfg)
    except UserError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        # What Detectron2's own parts raise.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        raise UserError(
            f"the model cannot be built from the keys under MODEL ({reason}): correct them"
        ) from error
    if model.RETINANET.CUDA_GRAPH:
        CudaGraphs(built)  # refuses parts that a graph cannot hold


def check_weights(path: str, required: bool = False) -> None:
    """Refuse weights that are not there.

    Args:
        path: ``MODEL.WEIGHTS``; "" is none.
        required: whether none would be a mistake.

    Raises:
        UserError: the file does not exist or cannot be fetched, or none is given but required.
    """
    if not path:
        if required:
            raise UserError(
                "MODEL.WEIGHTS is empty, which would evaluate random weights: set it to a trained "
                "model, such as OUTPUT_DIR/model_final.pth"
            )
        return
    try:
        # Files of the web are fetched into the cache, once and not by every process.
        found = PathManager.isfile(PathManager.get_local_path(path))
    except OSError as error:
        raise UserError(
            f"MODEL.WEIGHTS {path} cannot be fetched ({error}): download the file and set "
            f"MODEL.WEIGHTS to its path, or {_FROM_RANDOM_WEIGHTS}"
        ) from error
    if not found:
        raise UserError(
            f"the weights file {path} does not exist: correct MODEL.WEIGHTS, or "
            f"{_FROM_RANDOM_WEIGHTS}"
        )


def _check_devices(name: str, args: argparse.Namespace) -> None:
    """Refuse ``MODEL.DEVICE`` and ``--num-gpus`` that this machine does not have."""
    found = torch.cuda.device_count()
    try:
        device = torch.device(name)
        if device.type != "cuda":  # which is only counted: each process is to start it by itself
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"MODEL.DEVICE is {name}, which PyTorch cannot use here ({reason}): set it to cuda or "
            "cpu"
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


def _check_processes(cfg: CfgNode, num_processes: int, eval_only: bool) -> None:
    """Refuse what several processes cannot do together."""
    if cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {num_processes} processes "
            "cannot share evenly: choose a multiple of their number"
        )
    if eval_only:
        return
    check_cuda_graphs(cfg, num_processes)
    if num_processes > 1 and cfg.MODEL.DEVICE != "cuda":
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE} but {num_processes} processes are to train, each "
            "on a GPU of its own: set MODEL.DEVICE cuda, or train with --num-gpus 1"
        )
