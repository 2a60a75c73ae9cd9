"""A convolution whose output is PyTorch's and whose gradients are an algorithm's."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .plain import is_plain


class Convolution(torch.autograd.Function):
    """``torch.nn.functional.conv2d``, differentiable as often as that is.

    Saves what PyTorch's own convolution saves, in the same order, so that a forward may be repeated
    outside of the context (``torch.utils.checkpoint``).
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        algorithm: ModuleType,
    ) -> Tensor:
        """
        Args:
            input (Tensor): (N, C, H, W), any memory layout.
            weight (Tensor): (D, C, kernel height, kernel width).
            bias (Tensor or None): (D,).
            stride, padding (tuple[int, int]): of height and width.
            algorithm (module): has ``gradients``.

        Returns:
            Tensor: (N, D, output height, output width).
        """
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding, ctx.algorithm = stride, padding, algorithm
        # What conv2d calls; conv2d itself would come back to FastConvolutions.
        return torch.convolution(input, weight, bias, stride, padding, (1, 1), False, (0, 0), 1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Gradients that are differentiated again, or computed by batches, are PyTorch's.
        if torch.is_grad_enabled() or not is_plain(input, weight, grad_output):
            gradients = torch.ops.aten.convolution_backward(
                grad_output, input, weight, [len(weight)], ctx.stride, ctx.padding,
                (1, 1), False, (0, 0), 1, [needs_input, needs_weight, needs_bias],
            )  # fmt: skip
            return (*gradients, None, None, None)
        grad_input, grad_weight = ctx.algorithm.gradients(
            grad_output, input, weight, ctx.stride, needs_input, needs_weight
        )
        grad_bias = grad_output.sum((0, 2, 3)) if needs_bias else None
        return grad_input, grad_weight, grad_bias, None, None, None
