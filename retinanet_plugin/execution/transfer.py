"""From the host's memory to the device of a model, without waiting where that is possible."""

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def tensor_to_device(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``. From the host's memory to a GPU the host does not wait for the copy if
    the memory is pinned."""
    # Not from a GPU to the host, which would read the memory before the copy is there.
    non_blocking = x.device.type == "cpu" and device.type == "cuda"
    return x.to(device, non_blocking=non_blocking)


def instances_to_device(instances: Instances, device: torch.device) -> Instances:
    """``instances`` with all fields on ``device``; see :func:`tensor_to_device`."""
    moved = Instances(instances.image_size)
    for name, value in instances.get_fields().items():
        moved.set(name, _to_device(value, device))
    return moved


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return tensor_to_device(value, device)
    if type(value) is Boxes:  # whose `to` takes a device alone
        return Boxes(tensor_to_device(value.tensor, device))
    return value.to(device) if hasattr(value, "to") else value
