"""The model of a training, out of what trains it on several processes or by CUDA graphs."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..execution.cuda_graphs import CudaGraphs


def bare_model(model: nn.Module) -> nn.Module:
    """The model without what a trainer puts around it."""
    if isinstance(model, DistributedDataParallel):
        return model.module
    return model.model if isinstance(model, CudaGraphs) else model
