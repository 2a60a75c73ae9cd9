"""The network, and where its weights come from."""

import os

from .choice import Choice, Machine, with_reason

FROM_SCRATCH, FROM_WEIGHTS = "from_scratch.yaml", "from_weights.yaml"
# Worth its rounding, from which nothing was seen to suffer.
_LEAST_GAIN = 1.15
# Of networks that take as long, the one that learned most in minutes: see docs/new.md.
_SMALL = [
    Choice("MODEL.FPN.BOTTOM_UP", "build_basic_resnet_backbone", ""),
    Choice("MODEL.RESNETS.DEPTH", 10, ""),
    Choice("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, ""),
    Choice("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, ""),
    Choice("MODEL.FPN.OUT_CHANNELS", 64, ""),
    Choice("MODEL.RETINANET.NUM_CONVS", 1, ""),
]
_FEW_CORES, _MOST_WORKERS = 2, 4
# What switches bfloat16 on; both together were faster than one.
PRECISION = [
    Choice("MODEL.RETINANET.BFLOAT16", True, ""),
    Choice("MODEL.RETINANET.CHANNELS_LAST", True, ""),
]
# For batches of eight images: AdamW's, and SGD's.
_LEARNING_RATE = {FROM_SCRATCH: 0.002, FROM_WEIGHTS: 0.005}


def base_of(weights: str) -> str:
    """The config that a plan builds on, of the files in ``bases/``."""
    return FROM_WEIGHTS if weights else FROM_SCRATCH


def base_path(name: str) -> str:
    """Where :func:`base_of` is."""
    return os.path.join(os.path.dirname(__file__), "bases", name)


def learning_rate_of_8(weights: str) -> float:
    """For batches of eight images."""
    return _LEARNING_RATE[base_of(weights)]


def choose_network(device: str, weights: str) -> list[Choice]:
    """Device, weights and width.

    Args:
        device: ``cpu`` or ``cuda``.
        weights: a file or URL that Detectron2 reads; "": none.
    """
    choices = [
        Choice("MODEL.DEVICE", device, "the machine this was planned on"),
        Choice("DATALOADER.NUM_WORKERS", _num_workers(), ""),
    ]
    if weights:
        return [*choices, Choice("MODEL.WEIGHTS", weights, "training starts from these")]
    if device != "cpu":
        return choices
    reason = "a small network, of which a processor trains thousands of steps in minutes"
    return [*choices, *with_reason(_SMALL, reason)]


def _num_workers() -> int:
    """Processes that load images: none where two cores are busy with the steps."""
    # Those that this process may use, where the system says so: containers have few of many.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if not cores or cores <= _FEW_CORES else min(_MOST_WORKERS, cores // 2)


def choose_precision(machine: Machine) -> list[Choice]:
    """bfloat16 where it was measured to be faster."""
    if machine.bfloat16_gain < _LEAST_GAIN:
        return []
    return with_reason(PRECISION, f"steps were {machine.bfloat16_gain:.1f} times faster so")
