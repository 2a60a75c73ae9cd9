"""How backbone and head are run: precision, memory layout, algorithms of a CPU, compilation."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from .bfloat16 import has_bfloat16
from .cpu_conv import fast_convolutions

_IN_FLOAT32 = (
    "the model computes in float32, in spite of MODEL.RETINANET.BFLOAT16: this device has no "
    "instructions for bfloat16, which would be slower"
)


@dataclass(frozen=True)
class Execution:
    """How backbone and head run in training and inference; changes no weights and renames none.

    ``bfloat16``: convolutions, under :class:`torch.autocast`, read images, features and weights
    that are rounded to bfloat16 (8 significant bits) and return bfloat16; so do their gradients.
    Weights and their gradients are kept in float32, and what follows the head computes in float32.
    Unlike float16, bfloat16 has the range of float32: no loss scaling is needed. A device without
    instructions for it, which would only be slower, computes in float32.

    ``channels_last``: images, features and weights of convolutions lie in memory as (N, H, W, C).
    Other kernels then add the same numbers in another order: results differ by rounding alone.
    The head's outputs become views (N, Hi, Wi, A, K) in one piece.

    ``fast_cpu_conv``: on a CPU in float32, where they are faster than PyTorch's, convolutions of
    inference, and the gradients of those of training, take other algorithms, see
    :class:`retinanet_plugin.execution.cpu_conv.FastConvolutions`. Losses stay the same to the
    last bit; gradients and detections differ by rounding alone. Compiled code does not take them.

    ``compile``: :meth:`torch.nn.Module.compile` fuses the steps between convolutions of backbone
    and head, which changes results by more than the tolerances that this package keeps otherwise,
    see ``docs/performance.md``. Image sizes are variables of the compiled code. Of several
    processes, gradients are exchanged after the backward pass and not during it.
    """

    bfloat16: bool = False
    channels_last: bool = False
    fast_cpu_conv: bool = True
    compile: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Execution":
        retinanet = cfg.MODEL.RETINANET
        if retinanet.BFLOAT16 and not has_bfloat16(torch.device(cfg.MODEL.DEVICE)):
            log_first_n(logging.INFO, _IN_FLOAT32, name="detectron2.execution")
        return cls(
            bfloat16=retinanet.BFLOAT16,
            channels_last=retinanet.CHANNELS_LAST,
            fast_cpu_conv=retinanet.FAST_CPU_CONV,
            compile=retinanet.COMPILE,
        )

    def lay_out(self, model: nn.Module) -> None:
        """Lay the weights of ``model`` out in memory as they are used."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)

    @contextmanager
    def context(self, images: Tensor, *modules: nn.Module) -> Iterator[Tensor]:
        """Run what is called within as the fields say.

        Args:
            images (Tensor): (N, 3, H, W).
            modules (nn.Module): those that are called within, all training or none.

        Yields:
            Tensor: ``images`` in the memory layout that the modules are to be given.
        """
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self._precision(images.device), self._algorithms(images, modules):
            yield images

    def _precision(self, device: torch.device) -> AbstractContextManager:
        if self.bfloat16 and has_bfloat16(device):
            return torch.autocast(device.type, torch.bfloat16)
        # Not autocast(enabled=False), which would end the autocast of a caller.
        return nullcontext()

    def _algorithms(self, images: Tensor, modules: tuple[nn.Module, ...]) -> AbstractContextManager:
        if self.compile:
            return _compiled(modules)
        return fast_convolutions(images, modules) if self.fast_cpu_conv else nullcontext()


def _compiled(modules: tuple[nn.Module, ...]) -> AbstractContextManager:
    """A context in which ``modules`` run compiled; compiles those that are not yet."""
    for module in modules:
        # Lazily, since a copied or loaded module is not compiled. With dynamic=True one graph
        # serves many sizes of images.
        if module._compiled_call_impl is None:
            module.compile(dynamic=True)
    stack = ExitStack()
    # Cut up for DistributedDataParallel, the graph of an FPN would be compiled for each height.
    stack.enter_context(torch._dynamo.config.patch(optimize_ddp=False))
    # Sizes of levels that happen to be equal are no rule.
    stack.enter_context(torch.fx.experimental._config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
    return stack
