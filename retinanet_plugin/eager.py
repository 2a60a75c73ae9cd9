"""Whether operations run on plain tensors as they are called: where fast paths may be taken."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def is_eager(*tensors: Tensor) -> bool:
    """Whether ``tensors`` are ordinary ones, and nothing but autograd watches or records what is
    done with them.

    Not so: subclasses, tensors of ``torch.func`` and of batched or forward-mode differentiation,
    and whatever is traced, exported, compiled or runs under a dispatch mode (fake tensors, counters
    of operations). There an algorithm of one's own has to stand back for PyTorch's operations.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
    ) and all(
        type(x) in (Tensor, Parameter)
        and torch._C._has_storage(x)  # not so: torch.autograd.grad(is_grads_batched=True)
        and forward_ad.unpack_dual(x).tangent is None
        for x in tensors
    )


def values_at_hand(tensor: Tensor) -> bool:
    """Whether Python can read the values now: no device would wait, no program is recorded."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    # Fake tensors are of a subclass; those that torch.vmap maps over stand for many.
    plain = type(tensor) is Tensor and not torch._C._functorch.is_batchedtensor(tensor)
    return plain and tensor.device.type == "cpu" and not recorded


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is active, which forbids to change buffers."""
    return torch._C._are_functorch_transforms_active()


def is_recomputed() -> bool:
    """Whether a backward is running, so that a forward is one that ``torch.utils.checkpoint``
    repeats, and is to count nothing twice. Not told within ``torch.compile``."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
