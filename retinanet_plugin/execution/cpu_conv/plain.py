"""When a convolution may take an algorithm of this folder."""

import torch
from torch import Tensor

from ...eager import is_eager


def is_plain(*tensors: Tensor) -> bool:
    """Whether tensors are ordinary float32 values in a CPU's memory, computed with as they are."""
    return (
        is_eager(*tensors)
        and not torch.is_autocast_enabled("cpu")
        and all(
            x.dtype == torch.float32
            and x.device.type == "cpu"
            and x.layout == torch.strided
            and x.numel() > 0
            for x in tensors
        )
    )
