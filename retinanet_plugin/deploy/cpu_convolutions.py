"""Convolutions of a model that detects on a CPU: with the norms behind them, and by oneDNN."""

from typing import cast

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_norms(model: nn.Module) -> None:
    """Change ``model``, in evaluation on a CPU, so that its convolutions are its norms too.

    ``w * x`` and then ``scale * y + shift`` is ``(scale * w) * x + shift``: outputs differ by
    rounding alone, and a pass over the memory of every feature is saved. Only Detectron2's own
    convolutions with plain or frozen batch norms change.
    """
    for conv in model.modules():
        if type(conv) is Conv2d and _is_constant(conv.norm):
            _fold(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, conv.norm))


def dilate_pointwise(model: nn.Module, dilation: int = 2) -> None:
    """Change ``model`` so that 1x1 convolutions are computed by oneDNN in threads of their own.

    A kernel of one pixel has no neighbours to keep apart: results are those of dilation 1. But
    PyTorch, where it computes with one thread, gives 1x1 convolutions that are neither strided nor
    dilated to a matrix product, which takes 2.3 times as long (AMD EPYC, Zen 5, channels last).
    """
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1):
            conv.dilation = (dilation, dilation)


def _is_constant(norm: object) -> bool:
    if isinstance(norm, nn.BatchNorm2d):
        return norm.running_mean is not None
    return isinstance(norm, FrozenBatchNorm2d)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    weight, bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        cast(Tensor, norm.running_mean),
        cast(Tensor, norm.running_var),
        norm.eps,
        norm.weight,
        norm.bias,
    )
    conv.weight = nn.Parameter(weight.detach())
    conv.bias = nn.Parameter(bias.detach())
    conv.norm = None  # type: ignore[assignment]
