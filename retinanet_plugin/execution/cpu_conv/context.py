"""Which convolutions take an algorithm of this folder, and which stay PyTorch's."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import pointwise, winograd
from .convolution import Convolution
from .plain import is_plain

ALGORITHMS = (pointwise, winograd)


# Whether the algorithms are faster than PyTorch's convolutions on this processor. PyTorch's are
# near the peak of processors with AVX-512, where nothing is left to gain (measured: 0.98 times the
# speed of a backward pass); of those with AVX2 they are not (1.4 times). Others were not measured.
PROCESSOR_GAINS = torch.backends.cpu.get_cpu_capability() == "AVX2"


def fast_convolutions(images: Tensor, modules: Iterable[nn.Module]) -> AbstractContextManager:
    """The context in which ``modules`` run on ``images`` (N, 3, H, W): :class:`FastConvolutions`
    where it pays, else none."""
    if not (PROCESSOR_GAINS and is_plain(images)):
        return nullcontext()
    is_training = any(module.training for module in modules)
    return FastConvolutions(fast_outputs=not is_training and not torch.is_grad_enabled())


class FastConvolutions(TorchFunctionMode):
    """Within this context, ``conv2d`` takes the algorithm that is fastest for its shape.

    That is Winograd's for large 3x3 convolutions and a matrix product for 1x1 convolutions. It is
    taken for plain float32 tensors on a CPU in eager mode alone: not by tensors of other types,
    under autocast, in transforms of ``torch.func`` and forward-mode differentiation, under
    dispatch modes (fake tensors, counters of operations), or while a model is traced, exported or
    compiled. There a convolution is PyTorch's. Modules, parameters and hooks stay what they are.

    Where gradients are recorded, only they take the algorithm, also after the context was left, and
    outputs stay PyTorch's to the last bit: rounding in them could turn a ReLU on or off that is
    nearly at 0, which changes gradients far more than the rounding of gradients does.
    """

    def __init__(self, fast_outputs: bool) -> None:
        """``fast_outputs``: whether outputs take the algorithm where no gradient is recorded; they
        must not where the same forward may be repeated with gradients, as checkpointing does."""
        super().__init__()
        self.fast_outputs = fast_outputs

    def __torch_function__(
        self,
        func: Callable,
        types: tuple[type, ...],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.conv2d:
            return self._conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        geometry = _pair(stride), _pair(padding)
        operands = [x for x in (input, weight, bias) if x is not None]
        algorithm = None
        if groups == 1 and _pair(dilation) == (1, 1) and is_plain(*operands):
            algorithm = algorithm_for(input, weight, bias, *geometry)
        if algorithm is not None:
            if not torch.is_grad_enabled():
                if self.fast_outputs:
                    return algorithm.convolve(input, weight, bias, geometry[0])
            elif any(x.requires_grad for x in operands):
                return Convolution.apply(input, weight, bias, *geometry, algorithm)
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def algorithm_for(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any
) -> ModuleType | None:
    """The module that convolves input (N, C, H, W) with weight (D, C, h, w) and bias (D,) faster
    than PyTorch does; None: PyTorch is faster, or has to say that the shapes do not fit."""
    if input.dim() != 4 or weight.dim() != 4 or input.shape[1] != weight.shape[1]:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    for algorithm in ALGORITHMS:
        if algorithm.is_faster(input, weight, stride, padding):
            return algorithm
    return None


def _pair(value: Any) -> tuple[int, ...] | None:
    """Two Python numbers; None for other things, such as the padding "same"."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, (tuple, list)) else None
