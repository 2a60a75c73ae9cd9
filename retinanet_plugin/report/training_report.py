"""What a config amounts to: machine, model and schedule, in lines of text."""

import importlib
import math
import platform

import detectron2
import numpy as np
import PIL
import torch
from detectron2.config import CfgNode
from torch import nn

from .tables import facts

# Detectron2's RetinaNets are trained with this learning rate on batches of this size.
_REFERENCE_LR, _REFERENCE_BATCH = 0.01, 16
_MANY_EPOCHS, _USUAL_EPOCHS = 500, 50


def describe_machine(cfg: CfgNode) -> list[str]:
    """Versions, and what ``MODEL.DEVICE`` is here."""
    package = importlib.import_module("..", __package__)
    return facts(
        [
            ("retinanet_plugin", f"{package.__version__}, Detectron2 {detectron2.__version__}"),
            ("PyTorch", f"{torch.__version__}, NumPy {np.__version__}, Pillow {PIL.__version__}"),
            ("Python", f"{platform.python_version()} on {platform.platform()}"),
            ("MODEL.DEVICE", f"{cfg.MODEL.DEVICE}: {_device(str(cfg.MODEL.DEVICE))}"),
        ]
    )


def describe_model(cfg: CfgNode, model: nn.Module | None) -> list[str]:
    """Names of the parts and the size.

    Args:
        cfg: of the model.
        model: None: it could not be built.
    """
    retinanet = cfg.MODEL.RETINANET
    pairs = [
        ("META_ARCHITECTURE", str(cfg.MODEL.META_ARCHITECTURE)),
        ("BACKBONE", _backbone(cfg)),
        ("head and matcher", f"{retinanet.HEAD_NAME}, {retinanet.MATCHER_NAME}"),
        ("losses", f"{retinanet.CLS_LOSS_NAME}, {retinanet.BBOX_REG_LOSS_TYPE}"),
        ("NUM_CLASSES", str(retinanet.NUM_CLASSES)),
    ]
    if model is not None:
        pairs.append(("parameters", _parameters(model)))
    return facts(pairs)


def describe_schedule(cfg: CfgNode, num_images: int | None) -> list[str]:
    """Batches, epochs, learning rate.

    Args:
        cfg: of the training.
        num_images: that are trained on; None: not known.
    """
    solver = cfg.SOLVER
    length = f"{solver.MAX_ITER:,} iterations of {solver.IMS_PER_BATCH} images"
    if num_images:
        length += f", {_epochs(cfg, solver.MAX_ITER, num_images)} over {num_images:,} images"
    pairs = [
        ("length", length),
        ("BASE_LR", f"{solver.BASE_LR:g}; {_linear_rule(cfg)}"),
        ("warm-up", f"{solver.WARMUP_ITERS:,} iterations, from {_first_lr(cfg):.2g}"),
        ("schedule", _schedule(cfg, num_images)),
        ("checkpoints", f"every {solver.CHECKPOINT_PERIOD:,} iterations, in {cfg.OUTPUT_DIR}"),
        ("evaluation", _evaluation(cfg)),
    ]
    return facts(pairs)


def length_warnings(cfg: CfgNode, num_images: int | None) -> list[str]:
    """A sentence if each image is seen absurdly often; see :func:`describe_schedule`."""
    seen = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    if not num_images or seen <= _MANY_EPOCHS * num_images:
        return []
    wanted = math.ceil(_USUAL_EPOCHS * num_images / cfg.SOLVER.IMS_PER_BATCH)
    return [
        f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER:,}, "
        f"{_epochs(cfg, cfg.SOLVER.MAX_ITER, num_images)} over {num_images:,} images: lower it, "
        f"with SOLVER.STEPS; {wanted:,} would be {_USUAL_EPOCHS} epochs"
    ]


def learning_rate_warnings(cfg: CfgNode) -> list[str]:
    """A sentence if the learning rate is far above Detectron2's for this batch, unclipped."""
    wanted = _wanted_lr(cfg)
    if cfg.SOLVER.BASE_LR <= 5 * wanted or cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return []
    return [
        f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR:g} with SOLVER.IMS_PER_BATCH "
        f"{cfg.SOLVER.IMS_PER_BATCH}, {cfg.SOLVER.BASE_LR / wanted:.0f} times what Detectron2's "
        f"RetinaNets have for such a batch: if the losses grow, set SOLVER.BASE_LR {wanted:.2g}"
    ]


def _device(name: str) -> str:
    if not name.startswith("cuda"):
        threads = torch.get_num_threads()
        return f"{platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here"
    found = torch.cuda.get_device_properties(torch.device(name))
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _backbone(cfg: CfgNode) -> str:
    name, bottom_up = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.BOTTOM_UP
    parts = [name]
    if "fpn_p3p7" in name:
        parts.append(bottom_up)
    if "resnet" in parts[-1]:
        parts.append(f"depth {cfg.MODEL.RESNETS.DEPTH}, {cfg.MODEL.RESNETS.NORM}")
    return f"{', '.join(parts)}, FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT}"


def _parameters(model: nn.Module) -> str:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total = sum(size for size, _ in sizes)
    trained = sum(size for size, requires_grad in sizes if requires_grad)
    return f"{total / 1e6:.1f} million, {trained / 1e6:.1f} million of them trained"


def _epochs(cfg: CfgNode, iterations: int, num_images: int) -> str:
    epochs = iterations * cfg.SOLVER.IMS_PER_BATCH / num_images
    return f"{epochs:,.3g} epochs" if epochs < 1000 else f"{epochs:,.0f} epochs"


def _wanted_lr(cfg: CfgNode) -> float:
    return _REFERENCE_LR * cfg.SOLVER.IMS_PER_BATCH / _REFERENCE_BATCH


def _linear_rule(cfg: CfgNode) -> str:
    if cfg.SOLVER.OPTIMIZER != "SGD":
        return f"of {cfg.SOLVER.OPTIMIZER}, whose rates are not those of SGD"
    if not cfg.MODEL.WEIGHTS:
        return (
            f"from random weights (Detectron2 has {_wanted_lr(cfg):.2g} to go on from trained ones)"
        )
    reference = f"Detectron2's RetinaNets have {_REFERENCE_LR} for {_REFERENCE_BATCH} images"
    if cfg.SOLVER.IMS_PER_BATCH == _REFERENCE_BATCH:
        return reference
    return f"{reference}, hence {_wanted_lr(cfg):.2g} for {cfg.SOLVER.IMS_PER_BATCH}"


def _first_lr(cfg: CfgNode) -> float:
    return float(cfg.SOLVER.BASE_LR * cfg.SOLVER.WARMUP_FACTOR)


def _schedule(cfg: CfgNode, num_images: int | None) -> str:
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupStableDecayLR":
        return f"{solver.LR_SCHEDULER_NAME}, falls to 0 in the last {100 * solver.DECAY_SHARE:g}%"
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        return str(solver.LR_SCHEDULER_NAME)
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    if not steps:
        return f"{solver.LR_SCHEDULER_NAME}, constant: no step of STEPS is reached"
    at = ", ".join(
        f"{step:,}" + (f" ({_epochs(cfg, step, num_images)})" if num_images else "")
        for step in steps
    )
    return f"{solver.LR_SCHEDULER_NAME}, times {solver.GAMMA:g} at {at}"


def _evaluation(cfg: CfgNode) -> str:
    if not cfg.DATASETS.TEST:
        return "none: DATASETS.TEST is empty"
    names = ", ".join(cfg.DATASETS.TEST)
    period = cfg.TEST.EVAL_PERIOD
    when = f"every {period:,} iterations" if period else "after the last iteration"
    return f"of {names} {when}"
