"""Batch norms that are constants, folded into the convolutions before them."""

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
