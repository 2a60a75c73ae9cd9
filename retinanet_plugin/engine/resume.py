"""What a checkpoint says of its training, and whether a training that goes on fits it."""

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
    _check_shapes(saved["shapes"], now["shapes"], path)
    if saved["optimizer"] != now["optimizer"]:
        raise UserError(
            f"{path} is of a training with the optimizer {saved['optimizer']}, and this one has "
            f"{now['optimizer']}, which cannot use its state: {_remedy(path)}"
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


def fitted_optimizer_state(
    saved: dict[str, Any],
    saved_names: list[str] | None,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
) -> dict[str, Any]:
    """What a parameter had gathered (momentum), with the learning rate and decay of ``optimizer``.

    Args:
        saved: a ``state_dict`` of an optimizer of the same type.
        saved_names: the parameters in its order, None for that of ``optimizer``. Other values of
            the config can put them into another order.

    Returns:
        dict: for ``optimizer.load_state_dict``.
    """
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


def check_foreign_optimizer_state(
    saved: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module, path: str
) -> None:
    """Refuse the state of an optimizer that fits the model in no way; its names are not known.

    Raises:
        UserError: another number of parameters, or one of another shape.
    """
    shapes = {name: x.shape for name, x in model.named_parameters()}
    names = trained_parameters(model, optimizer)
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if count != len(names):
        raise UserError(
            f"{path} is of a training of {count} parameters, and this model trains {len(names)}: "
            f"{_remedy(path)}"
        )
    for i, state in saved["state"].items():
        momentum = state.get("momentum_buffer")
        if momentum is not None:
            _check_shapes({names[i]: list(momentum.shape)}, {names[i]: shapes[names[i]]}, path)


def trained_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters of ``optimizer``, in its order."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [name_of[x] for group in optimizer.param_groups for x in group["params"]]


def say_changed_values(saved_config: str, cfg: CfgNode) -> None:
    """One line of the log, if anything differs: see :func:`changed_values`."""
    changes = changed_values(saved_config, cfg)
    if changes:
        logger.warning(f"resuming with other values: {listed(changes, _MOST_CHANGES)}")


def _check_shapes(saved: dict[str, Any], now: dict[str, Any], path: str) -> None:
    for name in {**saved, **now}:
        before, after = (_shape(shapes.get(name)) for shapes in (saved, now))
        if before != after:
            raise UserError(
                f"{path} is of another model: {name} is {before} there and {after} in the model of "
                f"this config: {_remedy(path)}"
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
            f"{listed(now['classes'])}: {_remedy(path)}"
        )
    names = " and ".join(now["data_sets"])
    if (saved["num_images"], saved["files"]) != (now["num_images"], now["files"]):
        raise UserError(
            f"{path} is of a training on {saved['num_images']:,} images, and {names} has "
            f"{now['num_images']:,}, or others: {_remedy(path)}"
        )
    if saved["annotations"] != now["annotations"]:
        logger.warning(
            f"the annotations of {names} are not those that the training began with: it goes on "
            "with the present ones"
        )


def _remedy(path: str) -> str:
    return (
        "resume with the config and data that it began with, or start a new training in "
        f"another OUTPUT_DIR, with MODEL.WEIGHTS {path}"
    )
