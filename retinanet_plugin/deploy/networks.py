"""What detects: a model of PyTorch, or an exported file."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..errors import UserError
from .exported_network import RUNNERS, ExportedNetwork
from .pictures import Preprocessing
from .torch_network import TorchNetwork, read_config, read_described


class Network(Protocol):
    """From prepared images to detections.

    ``cfg``: the config of the model. ``runs_on_cpu``: whether it computes with PyTorch on the CPU,
    where images are faster one by one in threads than in batches.
    """

    cfg: CfgNode
    class_names: list[str]
    preprocessing: Preprocessing
    runs_on_cpu: bool

    def detect(self, batch: list[dict[str, Any]]) -> list[Instances]:
        """Detections of images of one size, see :meth:`Preprocessing.prepare`, in the pixels of
        their pictures, in the memory of the CPU. May be called from several threads."""


def open_network(model: str, weights: str, device: str, opts: Sequence[str]) -> Network:
    """Open what ``Predictor`` is given.

    Raises:
        UserError: it cannot be read, or does not fit.
    """
    suffix = os.path.splitext(model)[1]
    if suffix in (".yaml", ".yml"):
        return TorchNetwork(*read_config(model, weights, opts), device)
    if weights:
        raise UserError(
            f"{model} and {weights} were given: the first of two is the config, a .yaml file"
        )
    if suffix in RUNNERS:
        if device not in ("", "cpu"):
            raise UserError(f"{model} runs on the CPU: leave out the device {device}")
        return ExportedNetwork(model, opts)
    return TorchNetwork(*read_described(model, opts), device)
