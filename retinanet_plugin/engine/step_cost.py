"""What training steps and evaluations cost on this machine: measured, not guessed."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from detectron2.utils.events import EventStorage
from torch import nn

from ..data.anchor_reach import resized, short_edge
from ..data.dataset_facts import DatasetFacts
from ..data.loading.test_loader import build_test_loader
from ..data.planning.choice import Choice, Machine, StepCost, options
from ..errors import UserError
from .console_log import quiet
from .trainer import Trainer

_WARM_UP_STEPS = 2  # the first ones allocate memory and choose algorithms
_FEWEST_STEPS, _MOST_STEPS = 3, 20
_MOST_EVALUATED = 8
# Of the first measurements; with slow steps they are not repeated.
_MEASURING_S = 15.0
# The rest is for batches of larger images than those that were measured.
_MEMORY_SHARE = 0.8


def measure_machine(cfg: CfgNode, facts: DatasetFacts, precision: list[Choice]) -> Machine:
    """How fast the machine trains the network of ``cfg``, with and without bfloat16.

    Args:
        cfg: its data sets are registered, and can be read.
        facts: of ``DATASETS.TRAIN``; the sizes of its images are known.
        precision: what switches bfloat16 on.

    Raises:
        UserError: the memory of the device is not enough.
    """
    quick = cfg.clone()
    quick.merge_from_list(options(precision))
    plain, fast = _measure_in_turn([cfg, quick])
    sizes = resized(facts.sizes, short_edge(cfg, is_train=True), cfg.INPUT.MAX_SIZE_TRAIN)
    megapixels = cfg.SOLVER.IMS_PER_BATCH * float(sizes.prod(axis=1).mean()) / 1e6
    computing = [_computing_seconds(each) for each in (plain, fast)]
    return Machine(
        cfg.MODEL.DEVICE,
        seconds_per_megapixel=min(computing) / megapixels,
        loading_seconds=plain.loading_seconds / cfg.SOLVER.IMS_PER_BATCH,
        bfloat16_gain=computing[0] / computing[1],
    )


def _measure_in_turn(cfgs: list[CfgNode]) -> list[StepCost]:
    """Twice each, unless that takes long: another program that wakes up is not to make one of them
    look slow."""

    def measured() -> list[StepCost]:
        costs = [measure_step(cfg, seconds=2.0) for cfg in cfgs]
        found = [cost for cost in costs if cost is not None]
        if len(found) < len(costs):
            raise _no_memory(cfgs[0])
        return found

    start = time.perf_counter()
    costs = measured()
    if time.perf_counter() - start > _MEASURING_S:
        return costs
    return [min(pair, key=_computing_seconds) for pair in zip(costs, measured())]


def _computing_seconds(cost: StepCost) -> float:
    """Of a step, without the loading."""
    return max(cost.seconds - cost.loading_seconds, 1e-6)


def measure_fitting_batch(cfg: CfgNode) -> tuple[int, StepCost]:
    """The batch of ``cfg``, or the next half of it whose steps leave a fifth of the memory free.

    Raises:
        UserError: the memory of the device is not enough for one image.
    """
    cfg = cfg.clone()
    while True:
        cost = measure_step(cfg)
        if cost is not None and _memory_share(cfg.MODEL.DEVICE) <= _MEMORY_SHARE:
            return cfg.SOLVER.IMS_PER_BATCH, cost
        if cfg.SOLVER.IMS_PER_BATCH == 1:
            raise _no_memory(cfg)
        cfg.SOLVER.IMS_PER_BATCH //= 2


def measure_step(cfg: CfgNode, seconds: float = 8.0) -> StepCost | None:
    """Train for some steps as ``cfg`` says, and evaluate some images; nothing is kept.

    Args:
        cfg: its data sets are registered, and can be read.
        seconds: that the steps may take, beside the first ones.

    Returns:
        None if the memory of the device is not enough.
    """
    cfg = cfg.clone()
    with quiet(), tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
        try:
            trainer = Trainer(cfg)
            steps, loading = _times_of_steps(trainer, seconds)
            evaluation = _seconds_of_evaluation(cfg, trainer.model)
            return StepCost(statistics.median(steps), statistics.median(loading), evaluation)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None


def _times_of_steps(trainer: Trainer, seconds: float) -> tuple[list[float], list[float]]:
    """Of each step, and of the loading in it."""
    times: list[float] = []
    with EventStorage(0) as storage:
        for trainer.iter in range(_WARM_UP_STEPS):
            trainer.run_step()
        while len(times) < _FEWEST_STEPS or (sum(times) < seconds and len(times) < _MOST_STEPS):
            trainer.iter += 1
            times.append(_seconds_of(trainer.run_step, trainer.cfg.MODEL.DEVICE))
        loading = [value for value, _ in storage.history("data_time").values()]
    return times, loading[-len(times) :]


def _seconds_of_evaluation(cfg: CfgNode, model: nn.Module) -> float:
    """Of an image: detection and, if they are computed, the losses, each with its loading."""
    batches = iter(build_test_loader(cfg, cfg.DATASETS.TEST[0]))
    times = []
    with inference_context(model), torch.no_grad(), contextlib.suppress(StopIteration):
        for _ in range(_MOST_EVALUATED):
            times.append(_seconds_of(lambda: model(next(batches)), cfg.MODEL.DEVICE))
    passes = 2 if cfg.TEST.VAL_LOSS else 1
    return statistics.median(times) * passes


def _seconds_of(run: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _memory_share(device: str) -> float:
    """The largest share of a GPU's memory that was taken so far; 0 on a CPU."""
    if device == "cpu":
        return 0.0
    total = torch.cuda.get_device_properties(device).total_memory
    share = torch.cuda.max_memory_reserved(device) / total
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return share


def _no_memory(cfg: CfgNode) -> UserError:
    return UserError(
        f"the memory of {cfg.MODEL.DEVICE} is not enough for {cfg.SOLVER.IMS_PER_BATCH} images of "
        f"{short_edge(cfg, is_train=True)} pixels: end other programs that use it"
    )
