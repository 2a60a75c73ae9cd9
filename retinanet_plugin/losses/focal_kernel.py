"""Whether the focal loss can take its Triton kernel: tried, and compared with PyTorch, once."""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..triton_kernels import working_kernel
from .formulas import FocalFormula, QualityFocalFormula, VarifocalFormula


def focal_kernel(pred_logits: Sequence[Tensor], pytorch_pass: Callable) -> ModuleType | None:
    """The module ``focal_triton`` if it takes these logits and gives the right numbers, else None.

    Args:
        pred_logits: of each level, (..., K).
        pytorch_pass: from logits, labels, formula, alpha, a tensor for the gradient, and
            qualities or None, to the loss: what the kernel is compared with.
    """
    if not all(x.is_cuda and x.dtype != torch.float64 for x in pred_logits):
        return None
    for logits in pred_logits:
        kernel = _tried_kernel(logits.device, logits.dtype, pytorch_pass)
        if kernel is None or not kernel.can_run(logits):
            return None
    return kernel


@functools.cache
def _tried_kernel(
    device: torch.device, dtype: torch.dtype, pytorch_pass: Callable
) -> ModuleType | None:
    return working_kernel(
        "the focal loss",
        "losses.focal_triton",
        device,
        lambda kernel: _compare(kernel, device, dtype, pytorch_pass),
    )


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
    rtol = 1e-4 + 2 * torch.finfo(dtype).eps
    soft = torch.tensor([0.8, 0.3, 0, 0, 0], device=device)
    for formula, qualities in (
        *((FocalFormula(gamma), None) for gamma in (0.0, 0.5, 2.0)),
        *((QualityFocalFormula(beta), soft) for beta in (0.0, 1.5, 2.0)),
        (VarifocalFormula(2.0, alpha=0.75), soft),
    ):
        grad, right_grad = torch.empty_like(logits), torch.empty_like(logits)
        loss = kernel.loss_and_grads([logits], [labels], [qualities], formula, 0.25, [grad])
        right_loss = pytorch_pass(logits, labels, formula, 0.25, right_grad, qualities)
        if not (
            torch.allclose(loss, right_loss, rtol=1e-4)
            and torch.allclose(grad.float(), right_grad.float(), rtol=rtol, atol=1e-12)
        ):
            raise ArithmeticError(
                f"of {formula} the kernel gives the loss {loss.item()} and the gradient "
                f"{grad.tolist()}, not {right_loss.item()} and {right_grad.tolist()}"
            )
