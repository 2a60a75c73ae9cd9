"""How backbone and head are run: precision, memory layout, algorithms, compilation."""

import functools
from contextlib import nullcontext

import torch
from detectron2.config import configurable
from torch import nn

from ..errors import UserError
from .convolutions import FastConvolutions
from .frozen_bn import (
    FastNormConv2d,
    FoldedConv2d,
    InPlaceNormConv2d,
    join_frozen_batch_norms,
)


class Execution(nn.Module):
    """Runs backbone and head in training and inference; has no weights and renames none.

    ``bfloat16``: convolutions, under :class:`torch.autocast`, read images, features and weights
    that are rounded to bfloat16 (8 significant bits) and return bfloat16; so do their gradients.
    Weights and their gradients are kept in float32, and what follows the head computes in float32.
    Unlike float16, bfloat16 has the range of float32: no loss scaling is needed.

    ``channels_last``: images, features and weights of convolutions lie in memory as (N, H, W, C).
    Other kernels then add the same numbers in another order: results differ by rounding alone.
    The head's outputs become views (N, Hi, Wi, A, K) in one piece.

    ``fold_frozen_bn``: convolutions take their frozen batch norm in, see
    :class:`retinanet_plugin.execution.frozen_bn.FoldedConv2d`. Results differ by rounding alone.

    ``fast_cpu_conv``: on a CPU in float32, convolutions of inference, and the gradients of those of
    training, take faster algorithms than PyTorch's, see
    :class:`retinanet_plugin.execution.convolutions.FastConvolutions`. Losses stay the same to the
    last bit; gradients and detections differ by rounding alone. Compiled code does not take them.

    ``compiled``: :func:`torch.compile` fuses the steps between convolutions, which changes results
    by more than the tolerances that this package keeps otherwise, see ``docs/performance.md``.
    Image sizes are variables of the compiled code. Of several processes, gradients are exchanged
    after the backward pass and not during it.
    """

    @configurable
    def __init__(
        self,
        *,
        bfloat16=False,
        channels_last=False,
        fold_frozen_bn=False,
        fast_cpu_conv=True,
        compiled=False,
    ):
        """
        Args:
            bfloat16, channels_last, fold_frozen_bn, fast_cpu_conv, compiled (bool): see the class.

        Raises:
            UserError: ``compiled``, but this PyTorch has no compiler.
        """
        super().__init__()
        if compiled and not hasattr(torch, "compile"):
            raise UserError(
                "MODEL.RETINANET.COMPILE is True, which needs torch.compile of PyTorch 2.0 or "
                f"newer, and this is {torch.__version__}: update it, or set the key to False"
            )
        self.bfloat16 = bfloat16
        self.channels_last = channels_last
        self.fold_frozen_bn = fold_frozen_bn
        self.fast_cpu_conv = fast_cpu_conv
        self.compiled = compiled

    @classmethod
    def from_config(cls, cfg):
        retinanet = cfg.MODEL.RETINANET
        return {
            "bfloat16": retinanet.BFLOAT16,
            "channels_last": retinanet.CHANNELS_LAST,
            "fold_frozen_bn": retinanet.FOLD_FROZEN_BN,
            "fast_cpu_conv": retinanet.FAST_CPU_CONV,
            "compiled": retinanet.COMPILE,
        }

    def extra_repr(self):
        return (
            f"bfloat16={self.bfloat16}, channels_last={self.channels_last}, "
            f"fold_frozen_bn={self.fold_frozen_bn}, fast_cpu_conv={self.fast_cpu_conv}, "
            f"compiled={self.compiled}"
        )

    def prepare(self, model):
        """Lay the weights of ``model`` out as they are used, and join its frozen batch norms."""
        join_frozen_batch_norms(model.backbone, self._norm_conv_class())
        if self.channels_last:
            model.to(memory_format=torch.channels_last)

    def forward(self, backbone, head, in_features, images):
        """
        Args:
            backbone (Backbone): images to a dict of features (N, C, Hi, Wi).
            head (nn.Module): see :class:`retinanet_plugin.head.RetinaNetHead`.
            in_features (list[str]): names of the L features that the head reads.
            images (Tensor): (N, 3, H, W).

        Returns:
            tuple[list[Tensor], list[Tensor], list[Tensor]]: L features (N, C, Hi, Wi) and the
            head's outputs, class logits (N, A*K, Hi, Wi) and box deltas (N, A*4, Hi, Wi).
        """
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        run = _compiled_network() if self.compiled else _network
        with self._precision(images.device.type), self._algorithms():
            return run(backbone, head, in_features, images)

    def _precision(self, device_type):
        # Not autocast(enabled=False), which would end the autocast of a caller.
        if self.bfloat16:
            return torch.autocast(device_type, torch.bfloat16)
        return nullcontext()

    def _algorithms(self):
        return FastConvolutions() if self._is_fast_cpu_conv() else nullcontext()

    def _norm_conv_class(self):
        if self.fold_frozen_bn:
            return FoldedConv2d
        return FastNormConv2d if self._is_fast_cpu_conv() else InPlaceNormConv2d

    def _is_fast_cpu_conv(self):
        return self.fast_cpu_conv and not self.compiled


def _network(backbone, head, in_features, images):
    features = backbone(images)
    features = [features[name] for name in in_features]
    return (features, *head(features))


@functools.cache
def _compiled_network():
    # A function and not a module, and not kept by a model: parameters keep their names, and a
    # model can be copied and pickled. With dynamic=True one graph serves many sizes of images.
    compiled = torch.compile(_network, dynamic=True)
    # Cut up for DistributedDataParallel, the graph of an FPN would be compiled for each height.
    return torch._dynamo.config.patch(optimize_ddp=False)(compiled)
