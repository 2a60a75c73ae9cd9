"""Values that only Detectron2 can judge: each is tried by itself, in the default config.

Which names of samplers, schedules or norms there are depends on the version of Detectron2.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy
from detectron2.layers import get_norm
from detectron2.solver import build_optimizer
from PIL import Image

from ...config import load_config
from ..console_log import quiet
from ..learning_rate import build_lr_scheduler
from .config_values import lookup

_Probe = Callable[[CfgNode], Any]


def num_channels(cfg: CfgNode) -> int:
    """How many channels an image of ``INPUT.FORMAT`` has.

    Raises:
        Exception: what Detectron2 raises; TypeError for floats, which it reads but does not train.
    """
    image = convert_PIL_to_numpy(Image.new("RGB", (8, 8)), cfg.INPUT.FORMAT)
    if image.dtype != np.uint8:
        raise TypeError(f"pixels are {image.dtype}")
    return int(image.shape[2])


def _build_resize(cfg: CfgNode) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (8, 16)  # what each way of sampling accepts
    build_augmentation(cfg, is_train=True)


def _build_crop(cfg: CfgNode) -> None:
    T.RandomCrop(cfg.INPUT.CROP.TYPE, (1, 1))


def _build_solver(cfg: CfgNode) -> Any:
    return build_lr_scheduler(cfg, build_optimizer(cfg, torch.nn.Linear(1, 1)))


def _last_rate(cfg: CfgNode) -> None:
    """The rate that is asked for once the last iteration is done, before model_final is saved."""
    scheduler = _build_solver(cfg)
    scheduler.last_epoch = cfg.SOLVER.MAX_ITER
    scheduler.get_lr()


def _build_loader(cfg: CfgNode) -> None:
    cfg.DATALOADER.NUM_WORKERS = 0
    image = {"width": 8, "height": 8, "annotations": [{"category_id": 0}]}
    # As many as a sampler of a small share of the images needs.
    build_detection_train_loader(cfg, dataset=[image] * 10000, mapper=lambda image: image)


def _build_clipping(cfg: CfgNode) -> None:
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    build_optimizer(cfg, torch.nn.Linear(1, 1))


# Those of the installed Detectron2 are offered; "" is none.
_NORMS = ("BN", "FrozenBN", "GN", "SyncBN", "LN")

_ALWAYS: tuple[tuple[str, _Probe], ...] = (
    ("INPUT.FORMAT", num_channels),
    ("MODEL.RESNETS.NORM", lambda cfg: get_norm(cfg.MODEL.RESNETS.NORM, 32)),
    ("MODEL.FPN.NORM", lambda cfg: get_norm(cfg.MODEL.FPN.NORM, 32)),
    ("MODEL.RETINANET.NORM", lambda cfg: get_norm(cfg.MODEL.RETINANET.NORM, 32)),
)
_IN_TRAINING: tuple[tuple[str, _Probe], ...] = (
    ("INPUT.RANDOM_FLIP", _build_resize),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", _build_resize),
    ("INPUT.CROP.TYPE", _build_crop),
    ("SOLVER.LR_SCHEDULER_NAME", _build_solver),
    ("SOLVER.WARMUP_METHOD", _build_solver),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", _build_clipping),
    ("DATALOADER.SAMPLER_TRAIN", _build_loader),
)


def probe_errors(cfg: CfgNode, training: bool = True) -> Iterator[str]:
    """A sentence for each key with a value that this Detectron2 does not accept.

    Args:
        cfg: with values that :func:`retinanet_plugin.engine.checks.config_values.value_errors`
            accepts.
        training: whether the keys that only training reads count, too.
    """
    default = load_config("")
    for key, probe in _ALWAYS + (_IN_TRAINING if training else ()):
        tried = default.clone()
        usual, value = lookup(tried, key), lookup(cfg, key)
        # Some samplers have keys of their own, which no default config has.
        tried.DATALOADER = cfg.DATALOADER.clone()
        tried.defrost()
        section, _, name = key.rpartition(".")
        lookup(tried, section)[name] = value
        if _refusal(probe, tried):
            right = f"a name such as {usual!r}"
            if key.endswith(".NORM"):
                right = f"'' for none, or one of {', '.join(_known_norms())}"
            yield f"{key} is {value!r}, which this Detectron2 does not offer: write {right}"


def solver_errors(cfg: CfgNode, training: bool = True) -> Iterator[str]:
    """A sentence if Detectron2 makes no optimizer and schedule of the keys under ``SOLVER``."""
    if not training:
        return
    if reason := _refusal(_build_solver, cfg):
        yield (
            "the optimizer and its schedule cannot be built from the keys under SOLVER "
            f"({reason}): correct them"
        )
    elif reason := _refusal(_last_rate, cfg):
        yield (
            f"SOLVER.LR_SCHEDULER_NAME is {cfg.SOLVER.LR_SCHEDULER_NAME}, which in this Detectron2 "
            f"fails at the end of the training ({reason}): choose another, such as WarmupCosineLR"
        )


def _known_norms() -> list[str]:
    return [name for name in _NORMS if not _refusal(partial(get_norm, out_channels=32), name)]


def _refusal(probe: Callable[[Any], Any], tried: Any) -> str:
    """Why Detectron2 refuses what is ``tried``, in a line; empty: it does not."""
    try:
        with quiet():
            probe(tried)
    except (AssertionError, AttributeError, ArithmeticError, LookupError, TypeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    except (OSError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""
