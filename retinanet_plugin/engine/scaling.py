"""Learning rate and schedule for another batch than they were written for, when asked for."""

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from ..config import flattened
from .checks.config_values import lookup
from .console_log import quiet

logger = logging.getLogger("detectron2.trainer")

# Where 0 would turn off what was asked for.
_FEWEST = (
    "TEST.EVAL_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.MAX_ITER",
    "SOLVER.WEIGHT_AVERAGE.PERIOD",
)


def scaled_config(cfg: CfgNode, num_processes: int) -> CfgNode:
    """``cfg`` with rate, warm-up, schedule and periods for the batch that there is.

    ``SOLVER.REFERENCE_WORLD_SIZE`` keeps the images of each process, as Detectron2 does, so that
    the batch grows with the processes. ``SOLVER.REFERENCE_IMS_PER_BATCH`` keeps
    ``SOLVER.IMS_PER_BATCH``. Both scale as Detectron2 does: the rate with the batch (Goyal et al.,
    *Accurate, Large Minibatch SGD*, arXiv 1706.02677, section 2.1), iterations against it.

    Args:
        num_processes: that train together.
    """
    solver = cfg.SOLVER
    if solver.REFERENCE_IMS_PER_BATCH:
        scaled = cfg.clone()
        scaled.defrost()
        # The same rule, with images in the place of processes.
        reference = scaled.SOLVER.REFERENCE_IMS_PER_BATCH
        scaled.SOLVER.IMS_PER_BATCH = scaled.SOLVER.REFERENCE_WORLD_SIZE = reference
        scaled = _scaled(scaled, solver.IMS_PER_BATCH)
        scaled.SOLVER.REFERENCE_WORLD_SIZE = 0
        scaled.SOLVER.REFERENCE_IMS_PER_BATCH = solver.IMS_PER_BATCH
        why = f"the batch is {solver.IMS_PER_BATCH} and SOLVER.REFERENCE_IMS_PER_BATCH {reference}"
    else:
        scaled = _scaled(cfg.clone(), num_processes)
        why = (
            f"there are {num_processes} processes and SOLVER.REFERENCE_WORLD_SIZE is "
            f"{solver.REFERENCE_WORLD_SIZE}"
        )
    changes = [
        f"{key} {_short(lookup(cfg, key))} -> {_short(value)}"
        for key, value in flattened(scaled)
        if value != lookup(cfg, key) and ".REFERENCE_" not in key
    ]
    if changes:
        logger.info(f"{why}: {', '.join(changes)}")
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


def _scaled(cfg: CfgNode, num_processes: int) -> CfgNode:
    with quiet():  # its line lacks what was before, and half of the keys
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_processes)
    scaled.defrost()
    shrunk = cfg.SOLVER.IMS_PER_BATCH / scaled.SOLVER.IMS_PER_BATCH
    average = scaled.SOLVER.WEIGHT_AVERAGE  # which Detectron2 does not have
    average.PERIOD = round(average.PERIOD * shrunk)
    for key in _FEWEST:
        if lookup(cfg, key) and not lookup(scaled, key):
            scaled.merge_from_list([key, 1])
    return scaled


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
