"""The optimizers that a config can ask for: SGD or AdamW, with smaller rates in earlier stages."""

import copy
from typing import Any

import torch
from detectron2 import solver as stock
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ..errors import UserError

# Stages of a bottom-up network that MODEL.BACKBONE.FREEZE_AT counts: the stem, res2, ..., res5.
_NUM_STAGES = 5


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's optimizer, or another one over its groups of parameters, clipped as it clips.

    Args:
        cfg: its ``SOLVER.OPTIMIZER``, and ``SOLVER.LAYER_DECAY``: see :func:`with_layer_decay`.

    Raises:
        UserError: there is no such optimizer; see :func:`with_layer_decay`.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD" and solver.LAYER_DECAY == 1:
        return stock.build_optimizer(cfg, model)
    optimizers: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
        "AdamW": (torch.optim.AdamW, {}),
    }
    if solver.OPTIMIZER not in optimizers:
        raise UserError(
            f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}: choose one of {', '.join(optimizers)}"
        )
    kind, arguments = optimizers[solver.OPTIMIZER]
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    if solver.LAYER_DECAY < 1:
        groups = with_layer_decay(groups, model, solver.BASE_LR, solver.LAYER_DECAY)
    return maybe_add_gradient_clipping(cfg, kind)(
        groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **arguments
    )


def with_layer_decay(
    groups: list[dict[str, Any]], model: nn.Module, base_lr: float, decay: float
) -> list[dict[str, Any]]:
    """Split groups so that earlier stages of the bottom-up network learn at smaller rates.

    FPN and head keep their rate, ``res5`` has ``decay`` times that, and so on down to the stem with
    ``decay`` to the fifth: the layer-wise decay of BEiT (Bao et al., arXiv 2106.08254, appendix H)
    with stages for layers, as of ConvNeXt (Liu et al., arXiv 2201.03545, appendix A.3).

    Args:
        groups: of ``get_default_optimizer_params``.
        base_lr: of groups that have none.
        decay: from above 0 to 1.

    Raises:
        UserError: the network does not say which stages it has.
    """
    stage_of = _stages(model)
    split: dict[tuple[int, int], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            stage = stage_of.get(parameter, _NUM_STAGES + 1)
            lr = group.get("lr", base_lr) * decay ** (_NUM_STAGES + 1 - stage)
            empty = {**group, "params": [], "lr": lr}
            split.setdefault((number, stage), empty)["params"].append(parameter)
    return list(split.values())


def _stages(model: nn.Module) -> dict[nn.Parameter, int]:
    """The stage, from 1, of each parameter of the bottom-up network: the one that it freezes with.

    Raises:
        UserError: it has no ``freeze``.
    """
    bottom_up: Any = getattr(model.backbone, "bottom_up", None)
    if not hasattr(bottom_up, "freeze"):
        raise UserError(
            f"SOLVER.LAYER_DECAY needs the stages of a network under an FPN, which "
            f"{type(bottom_up or model.backbone).__name__} does not name: set it to 1.0"
        )
    stages: dict[nn.Parameter, int] = {}
    for stage in range(1, _NUM_STAGES + 1):
        frozen = copy.deepcopy(bottom_up)
        frozen.freeze(stage)
        free = {name for name, x in frozen.named_parameters() if x.requires_grad}
        for name, parameter in bottom_up.named_parameters():
            if name not in free:
                stages.setdefault(parameter, stage)
    return stages
