"""A model that was translated, and writing it."""

import os
from dataclasses import dataclass, field
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ..config import load_config
from ..errors import UserError, listed
from ..new_folders import new_files
from ..weights.checkpoint_contents import describe_training
from ..weights.weight_files import write_weights
from ..whole_files import write_whole_file

BACKBONE = "backbone.bottom_up."
# What every config has in common, as configs/Base-RetinaNet.yaml has it: a config that is written
# needs no file beside it.
_RETINANET: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "ModularRetinaNet",
    "MODEL.BACKBONE.NAME": "build_fpn_p3p7_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [
        [x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)
    ],
    "MODEL.RETINANET.IOU_THRESHOLDS": [0.4, 0.5],
    "MODEL.RETINANET.IOU_LABELS": [0, -1, 1],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
}


@dataclass
class Translated:
    """A model under this package's names."""

    title: str  # "torchvision's retinanet_resnet50_fpn"
    weights: dict[str, Tensor]
    settings: dict[str, Any]  # values of config keys, beside those that all RetinaNets have
    class_names: list[str] = field(default_factory=list)  # K, or none where they are not known
    only_backbone: bool = False

    def config(self) -> CfgNode:
        """The config that builds the model, without ``MODEL.WEIGHTS``."""
        cfg = load_config("")
        for key, value in {**_RETINANET, **self.settings}.items():
            cfg.merge_from_list([key, value])
        cfg.MODEL.WEIGHTS = ""
        return cfg

    def check(self, source: str) -> None:
        """
        Args:
            source: what names the file, for errors.

        Raises:
            UserError: the weights are not those of the model that the config builds.
        """
        cfg = self.config()
        cfg.MODEL.DEVICE = "cpu"
        wanted = {
            name: x.shape
            for name, x in build_model(cfg).state_dict().items()
            if name != "loss_normalizer" and (name.startswith(BACKBONE) or not self.only_backbone)
        }
        missing = [name for name in wanted if name not in self.weights]
        if missing:
            raise UserError(
                f"{source} has nothing for {listed(missing, 1)}: give the weights of a whole model"
            )
        for name, x in self.weights.items():
            if name not in wanted or x.shape != wanted[name]:
                here = f"is {tuple(wanted[name])}" if name in wanted else "is not there"
                raise UserError(
                    f"{source} has {name} of shape {tuple(x.shape)}, which {here} in a model of "
                    "its size: take weights of an unchanged architecture"
                )


def write_model(model: Translated, folder: str) -> tuple[str, str]:
    """Write ``model.pth``, which is enough to predict with, and ``config.yaml`` into a folder.

    Returns:
        the paths of both.

    Raises:
        UserError: one of them is there, or cannot be written.
    """
    weights, config = paths_in(folder)
    notes = {**describe_training(model.config()), "class_names": model.class_names}
    settings = {"MODEL.WEIGHTS": os.path.abspath(weights), **_RETINANET, **model.settings}
    text = _yaml(
        settings, f"{model.title}, written by `python -m retinanet_plugin import-weights`."
    )
    with new_files(weights, config):  # both, or nothing
        write_weights(weights, {"model": model.weights, **notes})
        write_whole_file(config, lambda file: file.write(text.encode()))
    return weights, config


def paths_in(folder: str) -> tuple[str, str]:
    """Of weights and config."""
    return os.path.join(folder, "model.pth"), os.path.join(folder, "config.yaml")


def _yaml(settings: dict[str, Any], title: str) -> str:
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    body = yaml.safe_dump(
        {**tree, "VERSION": 2}, default_flow_style=None, sort_keys=False, allow_unicode=True
    )
    return f"# {title}\n{body}"
