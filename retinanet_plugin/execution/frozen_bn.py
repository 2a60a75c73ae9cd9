"""Frozen batch norm as part of the convolution before it."""
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d


class FoldedConv2d(Conv2d):
    """A convolution whose weight and bias take its frozen batch norm in, anew in every call.

    ``norm(conv(x, w)) = conv(x, scale * w) + shift`` for the constants scale and shift of each
    channel: no pass over the output, and nothing to keep in step with weights that are trained or
    loaded. Gradients reach ``w`` through ``scale * w``. Results differ by rounding alone.
    """

    def forward(self, x):
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        weight = self.weight * scale[:, None, None, None]
        x = F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


def fold_frozen_batch_norm(module):
    """Make each of Detectron2's convolutions within ``module`` that has a frozen norm fold it.

    Parameters, buffers and their names stay what they are.
    """
    for conv in module.modules():
        if type(conv) is Conv2d and isinstance(conv.norm, FrozenBatchNorm2d):
            conv.__class__ = FoldedConv2d
