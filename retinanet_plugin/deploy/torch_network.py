"""A model of PyTorch that predicts."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn

from ..config import is_set, load_config
from ..config_merging import merge_options
from ..data.annotations.num_classes import NUM_CLASSES_KEY
from ..errors import UserError
from ..execution.cpu_conv.context import PROCESSOR_GAINS
from ..weights.building import check_model
from ..weights.checkpoint_contents import class_names_of, described_training
from ..weights.loading import load_all_weights
from ..weights.weight_files import read_weights
from .cpu_convolutions import dilate_pointwise, fold_norms
from .pictures import Preprocessing


class TorchNetwork:
    """The model of a config, with the weights that it names; see :class:`Network`."""

    def __init__(self, cfg: CfgNode, class_names: list[str], device: str = "") -> None:
        """
        Args:
            cfg: it is changed; ``MODEL.WEIGHTS`` are loaded.
            class_names: K, or none where they are not known.
            device: of PyTorch; "": ``MODEL.DEVICE`` if this machine has it, else the CPU.

        Raises:
            UserError: there is no such device, the model cannot be built, or the weights do not
                fit.
        """
        cfg.MODEL.DEVICE = _device(device or cfg.MODEL.DEVICE, required=bool(device))
        retinanet = cfg.MODEL.RETINANET
        self.runs_on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
        takes_pytorchs = self.runs_on_cpu and not (retinanet.FAST_CPU_CONV and PROCESSOR_GAINS)
        if takes_pytorchs:
            retinanet.CHANNELS_LAST = True  # PyTorch's convolutions are faster so
        model = load_model(cfg)
        if self.runs_on_cpu and not retinanet.COMPILE:
            fold_norms(model)
            if takes_pytorchs and torch.backends.mkldnn.is_available():
                dilate_pointwise(model)
        self.cfg = cfg
        self.model = model
        self.class_names = class_names
        self.preprocessing = Preprocessing.of(cfg)

    @torch.no_grad()
    def detect(self, batch: list[dict[str, Any]]) -> list[Instances]:
        return [output["instances"].to("cpu") for output in self.model(batch)]


def load_model(cfg: CfgNode) -> nn.Module:
    """The model of a config with the weights that it names, in evaluation.

    Raises:
        UserError: it cannot be built, or the weights do not fit.
    """
    cfg.MODEL.RETINANET.CUDA_GRAPH = False  # of training
    model = check_model(cfg)
    load_all_weights(cfg, model)
    return model.to(cfg.MODEL.DEVICE).eval()


def read_config(path: str, weights: str, opts: Sequence[str]) -> tuple[CfgNode, list[str]]:
    """A config that names its weights, or is given them, and the names of its classes.

    Raises:
        UserError: see :func:`load_config`; or there are no weights.
    """
    cfg = load_config(path, opts)
    cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise UserError(f"{path} names no MODEL.WEIGHTS: give the weights as well")
    notes = read_weights(cfg.MODEL.WEIGHTS)
    class_names = [str(name) for name in notes.get("class_names") or ()]
    if class_names and not is_set(NUM_CLASSES_KEY, path, opts):
        cfg.MODEL.RETINANET.NUM_CLASSES = len(class_names)
    return cfg, class_names or class_names_of((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN))


def read_described(path: str, opts: Sequence[str]) -> tuple[CfgNode, list[str]]:
    """The config that a checkpoint carries, and the names of its classes.

    Raises:
        UserError: see :func:`described_training`.
    """
    cfg, class_names = described_training(path)
    merge_options(cfg, opts)
    return cfg, class_names


def _device(name: str, required: bool) -> str:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if not required:
            return "cpu"
        raise UserError(
            f"the device {name} cannot be used here: name another, such as cpu"
        ) from error
    return name
