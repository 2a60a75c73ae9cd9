"""Dense tensors in chunks that stay in a processor's cache, whatever their memory layout."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Values of a chunk: on a CPU 2**17 float32 for a thread, which stay in its cache; a GPU wants few
# large kernels.
CHUNK_SIZE = {"cpu": 1 << 17, "cuda": 1 << 24}


def chunks(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Split tensors so that parts of the first one stay in the cache.

    Parts are cut in the memory order of the first tensor, whose last dimension is not cut.

    Args:
        tensors: the first one, (..., K); the others, (...) or (..., K), are cut as it is.

    Yields:
        a view of each tensor.
    """
    first = tensors[0]
    size = CHUNK_SIZE.get(first.device.type, CHUNK_SIZE["cuda"])
    if first.is_cpu:
        size *= torch.get_num_threads()
    order = sorted(range(first.dim() - 1), key=first.stride, reverse=True)
    tensors = [t.permute((*order, *range(len(order), t.dim()))) for t in tensors]
    return _split(tensors, size)


def _split(tensors: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    first = tensors[0]
    if first.numel() <= size or first.dim() == 1:
        yield tensors
    elif first[0].numel() > size:
        for i in range(len(first)):
            yield from _split([t[i] for t in tensors], size)
    else:
        step = size // first[0].numel()
        for i in range(0, len(first), step):
            yield [t[i : i + step] for t in tensors]
