"""What a checkpoint says of its run, and whether a run that goes on from it fits."""

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..data.loading.training_order import TrainingLoader
from ..errors import UserError, listed
from ..weights.changed_config import changed_values

logger = logging.getLogger("detectron2.resume")

_MOST_CHANGES = 12


def describe_run(
    cfg: CfgNode, seed: int, model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any
) -> dict[str, Any]:
    """Plain values that go into each checkpoint.

    Args:
        seed: of the order of the data and of the random numbers.
        model: the bare model.
        loader: of the training data.

    Returns:
        dict: ``seed``; ``data``, see
        :func:`retinanet_plugin.data.loading.fingerprint.fingerprint`, None for the loader of
        somebody else; ``optimizer``, its type; ``parameters``, the names of what it trains, in its
        order; ``shapes`` of all parameters by name; ``num_processes``, of the order of the data;
        and ``images_per_batch``.
    """
    has_order = isinstance(loader, TrainingLoader)
    return {
        "seed": seed,
        "data": loader.images.fingerprint if has_order else None,
        "optimizer": _optimizer_name(optimizer),
        "parameters": trained_parameters(model, optimizer),
        "shapes": {name: list(x.shape) for name, x in model.named_parameters()},
        "num_processes": loader.num_streams if has_order else comm.get_world_size(),
        "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
    }


def check_run(saved: dict[str, Any], now: dict[str, Any], path: str) -> None:
    """Refuse to go on with another model, optimizer or data set; warn of what is not exact.

    Args:
        saved, now: of :func:`describe_run`.
        path: of the checkpoint.

    Raises:
        UserError: they do not fit.
    """
    check_shapes(saved["shapes"], now["shapes"], path)
    if saved["optimizer"] != now["optimizer"]:
        raise UserError(
            f"{path} is of a training with the optimizer {saved['optimizer']}, and this one has "
            f"{now['optimizer']}, which cannot use its state: {remedy(path)}"
        )
    if saved["data"] and now["data"]:
        _check_data(saved["data"], now["data"], path)
    before, batch = saved["images_per_batch"], now["images_per_batch"]
    if before != batch:
        logger.warning(
            f"the training had {before} images in a batch (SOLVER.IMS_PER_BATCH) and goes on with "
            f"{batch}: from here on the images come in another order than without the interruption"
        )
    elif saved["num_processes"] != now["num_processes"]:
        logger.info(
            f"the training began with {saved['num_processes']} processes and goes on with "
            f"{now['num_processes']}: its batches stay the same"
        )


def trained_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters of ``optimizer``, in its order."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [name_of[x] for group in optimizer.param_groups for x in group["params"]]


def say_changed_values(saved_config: str, cfg: CfgNode) -> None:
    """One line of the log, if anything differs: see :func:`changed_values`."""
    changes = changed_values(saved_config, cfg)
    if changes:
        logger.warning(f"resuming with other values: {listed(changes, _MOST_CHANGES)}")


def check_shapes(saved: dict[str, Any], now: dict[str, Any], path: str) -> None:
    """Refuse to go on with another model.

    Args:
        saved, now: shapes of parameters by their names.
        path: of the checkpoint.

    Raises:
        UserError: a name or a shape is another one.
    """
    for name in {**saved, **now}:
        before, after = (_shape(shapes.get(name)) for shapes in (saved, now))
        if before != after:
            raise UserError(
                f"{path} is of another model: {name} is {before} there and {after} in the model of "
                f"this config: {remedy(path)}"
            )


def remedy(path: str) -> str:
    """What to do about a checkpoint that does not fit."""
    return (
        "resume with the config and data that it began with, or start a new training in "
        f"another OUTPUT_DIR, with MODEL.WEIGHTS {path}"
    )


def _shape(shape: Any) -> str:
    return "missing" if shape is None else str(tuple(shape))


def _optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """Of PyTorch's class: Detectron2 makes one of its own of it to clip gradients."""
    classes = type(optimizer).__mro__
    return next(
        (c.__name__ for c in classes if c.__module__.startswith("torch.optim")),
        classes[0].__name__,
    )


def _check_data(saved: dict[str, Any], now: dict[str, Any], path: str) -> None:
    if saved["classes"] != now["classes"]:
        raise UserError(
            f"{path} is of a training on the classes {listed(saved['classes'])}, and the data have "
            f"{listed(now['classes'])}: {remedy(path)}"
        )
    names = " and ".join(now["data_sets"])
    if (saved["num_images"], saved["files"]) != (now["num_images"], now["files"]):
        raise UserError(
            f"{path} is of a training on {saved['num_images']:,} images, and {names} has "
            f"{now['num_images']:,}, or others: {remedy(path)}"
        )
    if saved["annotations"] != now["annotations"]:
        logger.warning(
            f"the annotations of {names} are not those that the training began with: it goes on "
            "with the present ones"
        )
