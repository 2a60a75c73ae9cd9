"""Steps whose batch is computed in parts, with the memory of one: ``SOLVER.ACCUMULATE_STEPS``."""

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.engine.defaults import create_ddp_model
from detectron2.engine.hooks import PreciseBN
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..losses.normalizer import NormalizedLosses
from .bare_model import bare_model
from .checks.device_checks import without_gradient
from .failures.own_losses import OwnLosses

_Batch = list[dict[str, Any]]


class AccumulatingTrainer(OwnLosses):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer``, with the gradients of parts added up.

    A step is one of the optimizer, of a whole batch, and so are iterations, the schedule, the
    logged losses and checkpoints. The weights become those that the batch gives at once, up to
    rounding, where an image does not change what is computed of others: with frozen or group norm,
    and images of one size or parts that are padded alike.
    """

    def __init__(
        self,
        model: Any,
        data_loader: Any,
        optimizer: Optimizer,
        num_parts: int,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """
        Args:
            model: a :class:`NormalizedLosses`, also within a DistributedDataParallel.
            data_loader: of the batches of this process, in lists that ``num_parts`` divides.
            grad_scaler: None: without mixed precision.
        """
        super().__init__(model, data_loader, optimizer)
        self.num_parts = num_parts
        self.grad_scaler = grad_scaler

    def run_step(self) -> None:
        model = bare_model(self.model)
        assert isinstance(model, NormalizedLosses)
        assert model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        *first, last = _parts(batch, self.num_parts)
        with model.accumulating() as complete_batch:
            totals: dict[str, Tensor] = {}
            for part in first:
                with self._without_exchange():
                    losses = self._losses(part)
                    self._backward(losses)
                totals = _added(totals, losses)
            losses = self._losses(last)
            factor = complete_batch()
        # Before the last part's backward, in which processes exchange their gradients.
        gradients = [x.grad for x in model.parameters() if x.grad is not None]
        torch._foreach_mul_(gradients, factor)
        self._backward({name: loss * factor for name, loss in losses.items()})
        totals = {name: total * factor for name, total in _added(totals, losses).items()}
        self._write_metrics(totals, data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        scaler = {} if self.grad_scaler is None else {"grad_scaler": self.grad_scaler.state_dict()}
        return {**super().state_dict(), **scaler}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _losses(self, part: _Batch) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, torch.float16, enabled=self.grad_scaler is not None):
            return self.model(part)

    def _backward(self, losses: dict[str, Tensor]) -> None:
        total = sum(losses.values(), torch.zeros(()))
        (self.grad_scaler.scale(total) if self.grad_scaler else total).backward()

    def _without_exchange(self) -> Any:
        is_shared = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if is_shared else nullcontext()


class _AMPStep(OwnLosses, AMPTrainer):
    """Detectron2's step in mixed precision."""


class PreciseBNOfParts(PreciseBN):
    """Detectron2's ``PreciseBN`` with the memory of a part of a batch.

    Its statistics are of the same images, each of those that were computed with it in training.
    """

    def __init__(
        self, period: int, model: Any, loader: Iterable[_Batch], num_iter: int, num_parts: int
    ) -> None:
        """
        Args:
            model: see :class:`AccumulatingTrainer`, which also says what ``num_parts`` is.
            num_iter: batches, as of ``PreciseBN``.
        """
        super().__init__(period, model, _in_parts(loader, num_parts), num_iter * num_parts)

    def update_stats(self) -> None:
        if self._disabled:
            return
        model = bare_model(self._model)
        assert isinstance(model, NormalizedLosses)
        with model.accumulating():  # its moving average is of whole batches
            super().update_stats()


def _parts(batch: _Batch, num_parts: int) -> list[_Batch]:
    size = len(batch) // num_parts
    return [batch[i : i + size] for i in range(0, len(batch), size)]


def _in_parts(batches: Iterable[_Batch], num_parts: int) -> Iterator[_Batch]:
    for batch in batches:
        yield from _parts(batch, num_parts)


def _added(totals: dict[str, Tensor], losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() + totals.get(name, 0.0) for name, loss in losses.items()}


def build_step(
    cfg: CfgNode, model: nn.Module, data_loader: Any, optimizer: Optimizer
) -> SimpleTrainer:
    """What a trainer calls for each step, as ``cfg`` says; of several processes, they are one.

    Args:
        model: the bare model.
    """
    options: dict[str, Any] = {"broadcast_buffers": False}
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        options["device_ids"] = None
    if comm.get_world_size() > 1 and without_gradient(model)[0]:
        options["find_unused_parameters"] = True  # processes would wait for their gradients
    wrapped = create_ddp_model(model, **options)
    amp = cfg.SOLVER.AMP.ENABLED
    if cfg.SOLVER.ACCUMULATE_STEPS == 1:
        return (_AMPStep if amp else OwnLosses)(wrapped, data_loader, optimizer)
    scaler = torch.amp.GradScaler() if amp else None
    return AccumulatingTrainer(wrapped, data_loader, optimizer, cfg.SOLVER.ACCUMULATE_STEPS, scaler)
