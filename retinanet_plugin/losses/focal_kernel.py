"""Whether the focal loss can take its Triton kernel: tried, and compared with PyTorch, once."""

import functools
import logging
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from .formulas import FocalFormula, QualityFocalFormula, VarifocalFormula


def focal_kernel(pred_logits: Tensor, pytorch_pass: Callable) -> ModuleType | None:
    """The module ``focal_triton`` if it takes these logits and gives the right numbers, else None.

    Args:
        pred_logits: (..., K).
        pytorch_pass: from logits, labels, formula, alpha, a tensor for the gradient, and
            qualities or None, to the loss: what the kernel is compared with.
    """
    if not pred_logits.is_cuda or pred_logits.dtype == torch.float64:
        return None
    kernel = _tried_kernel(pred_logits.device, pred_logits.dtype, pytorch_pass)
    return kernel if kernel is not None and kernel.can_run(pred_logits) else None


@functools.cache
def _tried_kernel(
    device: torch.device, dtype: torch.dtype, pytorch_pass: Callable
) -> ModuleType | None:
    """The module ``focal_triton``, or None where it does not work; the one wait for the GPU.

    Triton may be missing or too old, or lack the C compiler that it builds its launcher with. It
    does not support GPUs below compute capability 7.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < (7, 0):
        return None
    try:
        from . import focal_triton

        _compare(focal_triton, device, dtype, pytorch_pass)
    except Exception as error:
        _warn_once(repr(error))
        return None
    return focal_triton


def _compare(
    kernel: ModuleType, device: torch.device, dtype: torch.dtype, pytorch_pass: Callable
) -> None:
    """Loss and gradient of five anchors: two foreground, background, ignored; small and big logits.

    Raises:
        ArithmeticError: the kernel's differ from PyTorch's by more than rounding.
    """
    logits = torch.tensor(
        [[-4.6, 0.0, 2.5], [50.0, -50, 0.1], [-3.0, 9, -9], [1.0, -1, 4], [60.0, 7.0, 0]],
        dtype=dtype, device=device,
    )  # fmt: skip
    labels = torch.tensor([0, 1, 3, 3, -1], device=device)
    scale = 2.0**10 if dtype == torch.float16 else 1.0
    rtol = 1e-4 + 2 * torch.finfo(dtype).eps
    soft = torch.tensor([0.8, 0.3, 0, 0, 0], device=device)
    for formula, qualities in (
        *((FocalFormula(gamma), None) for gamma in (0.0, 0.5, 2.0)),
        *((QualityFocalFormula(beta), soft) for beta in (0.0, 1.5, 2.0)),
        (VarifocalFormula(2.0, alpha=0.75), soft),
    ):
        grad, right_grad = torch.empty_like(logits), torch.empty_like(logits)
        loss = kernel.loss_and_grad(logits, labels, formula, 0.25, grad, scale, qualities)
        right_loss = pytorch_pass(logits, labels, formula, 0.25, right_grad, qualities)
        if not (
            torch.allclose(loss, right_loss, rtol=1e-4)
            and torch.allclose(grad.float(), right_grad.float(), rtol=rtol, atol=1e-12)
        ):
            raise ArithmeticError(
                f"of {formula} the kernel gives the loss {loss.item()} and the gradient "
                f"{grad.tolist()}, not {right_loss.item()} and {right_grad.tolist()}"
            )


@functools.cache
def _warn_once(reason: str) -> None:
    logging.getLogger(__name__).warning(
        f"the focal loss takes PyTorch's operations, slower than its Triton kernel: {reason}"
    )
