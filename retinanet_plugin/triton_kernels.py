"""Triton kernels that take the place of PyTorch's operations on a GPU: tried, and compared with
them, once."""

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType

import torch


def working_kernel(
    what: str, name: str, device: torch.device, compare: Callable[[ModuleType], None]
) -> ModuleType | None:
    """The module of a kernel, or None, after one warning, where it does not work.

    Triton may be missing or too old, or lack the C compiler that it builds its launcher with. It
    does not support GPUs below compute capability 7. This waits for the GPU: keep the result.

    Args:
        what: it computes, for the warning.
        name: of the module in this package, such as ``losses.focal_triton``.
        device: where it is to run.
        compare: runs it, and raises an ArithmeticError where its numbers are wrong.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < (7, 0):
        return None
    try:
        module = importlib.import_module(f"{__package__}.{name}")
        compare(module)
    except Exception as error:
        _warn_once(what, repr(error))
        return None
    return module


@functools.cache
def _warn_once(what: str, reason: str) -> None:
    logging.getLogger(__name__).warning(
        f"{what} takes PyTorch's operations, slower than its Triton kernel: {reason}"
    )
