"""Batch norms that are constants, folded into the convolutions before them."""

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_norms(model: nn.Module) -> None:
    """Change ``model``, in evaluation on a CPU, so that its convolutions are its norms too.

    ``w * x`` and then ``scale * y + shift`` is ``(scale * w) * x + shift``: outputs differ by
    rounding alone, and a pass over the memory of every feature is saved. Only Detectron2's own
    convolutions with plain or frozen batch norms change.
    """
    for conv in model.modules():
        if type(conv) is not Conv2d:
            continue
        norm = conv.norm
        if not isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d) or norm.running_mean is None:
            continue
        weight, bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        with torch.no_grad():
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        conv.norm = None
