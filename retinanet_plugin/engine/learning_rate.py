"""The learning rate over a training: Detectron2's schedules, and one that stays and then falls."""

from detectron2 import solver as stock
from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import ParamScheduler
from torch.optim import Optimizer

STABLE_DECAY = "WarmupStableDecayLR"


class StableDecayParamScheduler(ParamScheduler):
    """1 until the last share of a training, in which it falls to 0 on a line.

    Averages of the weights at a constant rate gain what a falling rate gains (Sandler et al.,
    *Training trajectories, mini-batch losses and the curious role of the learning rate*,
    arXiv 2301.02312), but the last weights are those that detectors are taken from. The schedule is
    that of Haegele et al., *Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations*, arXiv 2405.18392, section 3.

    Attributes:
        decay_share: of the training, from above 0 to 1.
    """

    def __init__(self, decay_share: float) -> None:
        self.decay_share = decay_share

    def __call__(self, where: float) -> float:
        return min(1.0, max(0.0, 1.0 - where) / self.decay_share)


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """Detectron2's schedule, or ``SOLVER.LR_SCHEDULER_NAME WarmupStableDecayLR``.

    Args:
        cfg: ``SOLVER.DECAY_SHARE`` is of the iterations, the last ones, in which the rate falls to
            0. Warm-up is Detectron2's, and ``SOLVER.RESCALE_INTERVAL`` where it has that key.
        optimizer: whose groups are scheduled.

    Raises:
        ValueError: Detectron2's, of a schedule that it does not know.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != STABLE_DECAY:
        return stock.build_lr_scheduler(cfg, optimizer)
    rescaled = {"rescale_interval": True} if solver.get("RESCALE_INTERVAL") else {}
    multiplier = WarmupParamScheduler(
        StableDecayParamScheduler(solver.DECAY_SHARE),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        **rescaled,
    )
    return LRMultiplier(optimizer, multiplier, solver.MAX_ITER)
