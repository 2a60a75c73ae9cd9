"""When a convolution may take an algorithm of this folder: plain tensors, eager mode."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def is_plain(*tensors: Tensor) -> bool:
    """Whether tensors are ordinary float32 values in a CPU's memory, and nothing but autograd
    watches what is done with them."""
    return _is_eager() and all(
        type(x) in (Tensor, Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and x.numel() > 0
        # A batch of gradients (is_grads_batched) says "cpu", but has none of its kernels.
        and torch._C._dispatch_keys(x).has(torch._C.DispatchKey.CPU)
        for x in tensors
    )


def _is_eager() -> bool:
    """Whether operations run at once, as they are called, for their values alone: not under
    autocast, traced, exported or compiled, in a transform of ``torch.func``, under a dispatch mode
    (fake tensors, counters of operations), or for forward-mode differentiation."""
    return not (
        torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )
