"""Frozen batch norm within the memory, or within the weights, of the convolution before it."""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d

from .convolutions import algorithm_for, conv2d, normalise


class _JoinedConv2d(Conv2d):
    """One of Detectron2's convolutions, which joins its norm as subclasses say."""

    def forward(self, x):
        x = self._convolve_and_normalise(x)
        return x if self.activation is None else self.activation(x)


class InPlaceNormConv2d(_JoinedConv2d):
    """A convolution whose frozen batch norm changes its output in place where gradients are
    recorded. Results are Detectron2's to the last bit.
    """

    def _convolve_and_normalise(self, x):
        x = F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        if self._is_normed_in_place(x):
            return normalise(x, *_scale_and_shift(self.norm))
        return self.norm(x)

    def _is_normed_in_place(self, x):
        return x.requires_grad  # elsewhere Detectron2's norm is another operation


class FastNormConv2d(InPlaceNormConv2d):
    """The same by the algorithms of :mod:`retinanet_plugin.execution.convolutions`.

    Outputs stay the same to the last bit where gradients are recorded, and up to rounding in
    inference, which works in place on a CPU: new memory for an output costs it more than the
    arithmetic. Gradients take the norm's scale from the weight, which saves a pass over the
    gradient of the output.
    """

    def _convolve_and_normalise(self, x):
        geometry = self.stride, self.padding
        is_frozen = torch.is_grad_enabled() and not self.weight.requires_grad
        algorithm = None
        if not is_frozen:
            algorithm = algorithm_for(x, self.weight, *geometry, self.dilation, self.groups)
        if algorithm is None:
            return super()._convolve_and_normalise(x)
        norm = _scale_and_shift(self.norm)
        return conv2d(x, self.weight, self.bias, *geometry, algorithm, *norm)

    def _is_normed_in_place(self, x):
        is_cpu_float32 = x.device.type == "cpu" and x.dtype == torch.float32
        is_inference = not torch.is_grad_enabled() and not torch.jit.is_tracing()
        return x.requires_grad or (is_cpu_float32 and is_inference)


class FoldedConv2d(_JoinedConv2d):
    """A convolution whose weight and bias take its frozen batch norm in, anew in every call.

    ``norm(conv(x, w)) = conv(x, scale * w) + shift`` for the constants scale and shift of each
    channel: no pass over the output, and nothing to keep in step with weights that are trained or
    loaded. Gradients reach ``w`` through ``scale * w``. Results differ by rounding alone.
    """

    def _convolve_and_normalise(self, x):
        scale, shift = _scale_and_shift(self.norm)
        if self.bias is not None:
            shift = shift + self.bias * scale
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def _scale_and_shift(norm):
    """What a FrozenBatchNorm2d multiplies and adds, (D,) each, with Detectron2's arithmetic."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def join_frozen_batch_norms(module, conv_class):
    """Make each of Detectron2's convolutions within ``module`` that has a frozen norm one of
    ``conv_class``. Parameters, buffers and their names stay what they are.
    """
    for conv in module.modules():
        if type(conv) is Conv2d and isinstance(conv.norm, FrozenBatchNorm2d):
            conv.__class__ = conv_class
