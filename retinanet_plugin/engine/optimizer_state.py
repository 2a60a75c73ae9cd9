"""What the optimizer of a resumed training had gathered, at the rates of the present config."""

import logging
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.solver import LRMultiplier
from torch import nn

from ..errors import UserError
from .run_record import check_shapes, remedy, trained_parameters

logger = logging.getLogger("detectron2.resume")


def load_optimizer_state(
    step: SimpleTrainer,
    saved: dict[str, Any],
    saved_names: list[str] | None,
    model: nn.Module,
    path: str,
) -> None:
    """Give the optimizer of a step what it had gathered (momentum), and the step its other states.

    Args:
        step: of the present config.
        saved: a ``state_dict`` of a step with an optimizer of the same type.
        saved_names: the parameters in that optimizer's order; None: it does not say, and the order
            is that of now. Other values of the config can put them into another order.
        model: the bare model.
        path: of the checkpoint.

    Raises:
        UserError: ``saved_names`` is None, and it fits the model in no way.
    """
    optimizer, now = step.optimizer, step.state_dict()
    if saved_names is None:
        _check_fits(saved["optimizer"], optimizer, model, path)
    fitted = _fitted(saved["optimizer"], saved_names, optimizer, model)
    # Without mixed precision before, there is no scale of the gradients to load.
    step.load_state_dict({**now, **saved, "optimizer": fitted})


def continue_schedule(scheduler: Any, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """Set the learning rates that the present schedule has for an iteration."""
    if isinstance(scheduler, LRMultiplier):
        scheduler.last_epoch = iteration
        rates = scheduler.get_lr()
    else:
        logger.warning(
            f"{type(scheduler).__name__} goes on with the learning rates of the checkpoint, "
            "whatever SOLVER.BASE_LR is now: it is no LRMultiplier of Detectron2"
        )
        rates = scheduler.get_last_lr()
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate


def _fitted(
    saved: dict[str, Any],
    saved_names: list[str] | None,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
) -> dict[str, Any]:
    """A ``state_dict`` for ``optimizer``, with its own learning rates and decay."""
    names = trained_parameters(model, optimizer)
    place = {name: i for i, name in enumerate(names)}
    saved_names = saved_names or names
    return {
        "state": {
            place[saved_names[i]]: state
            for i, state in saved["state"].items()
            if saved_names[i] in place  # else it is frozen now
        },
        "param_groups": optimizer.state_dict()["param_groups"],
    }


def _check_fits(
    saved: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module, path: str
) -> None:
    """
    Raises:
        UserError: another number of parameters, or one of another shape.
    """
    shapes = {name: x.shape for name, x in model.named_parameters()}
    names = trained_parameters(model, optimizer)
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if count != len(names):
        raise UserError(
            f"{path} is of a training of {count} parameters, and this model trains {len(names)}: "
            f"{remedy(path)}"
        )
    for i, state in saved["state"].items():
        momentum = state.get("momentum_buffer")
        if momentum is not None:
            check_shapes({names[i]: list(momentum.shape)}, {names[i]: shapes[names[i]]}, path)
