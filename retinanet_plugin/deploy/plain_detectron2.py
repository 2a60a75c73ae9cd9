"""A model as config and weights of Detectron2's own RetinaNet, for what knows nothing of this
package: ``demo.py``, ``DefaultPredictor``, sahi."""

import os
from functools import reduce
from operator import getitem

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from ..errors import UserError
from ..whole_files import write_whole_file
from .torch_network import load_model

# Keys of what detects, and their values where Detectron2 does the same. Its other lacks matter in
# training alone (matchers, losses and their weights), or to speed and rounding.
_STOCK = {
    "MODEL.META_ARCHITECTURE": "ModularRetinaNet",
    "MODEL.BACKBONE.NAME": "build_fpn_p3p7_backbone",
    "MODEL.FPN.BOTTOM_UP": "build_resnet_backbone",
    "MODEL.FPN.TOP_BLOCK_IN_FEATURE": "res5",
    "MODEL.RETINANET.HEAD_NAME": "RetinaNetHead",
    "MODEL.RETINANET.BOX_SCALES": False,
    "MODEL.RETINANET.IOU_BRANCH": False,
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.RETINANET.SCORE_VOTING": False,
    "MODEL.RETINANET.CLIP_BEFORE_NMS": False,
}
# Without which the same weights still detect, and what that costs.
_COSTS = {
    "MODEL.RETINANET.SCORE_VOTING": "about 1 AP (docs/recipe.md)",
    "MODEL.RETINANET.CLIP_BEFORE_NMS": "a few detections at the edges (docs/import-weights.md)",
}


def write_detectron2(cfg: CfgNode, path: str) -> None:
    """Write ``path``, a config, and the weights that it names beside it, a ``.pth``.

    Args:
        cfg: with ``MODEL.WEIGHTS``.

    Raises:
        UserError: Detectron2 lacks a part of the model, or a file cannot be written.
    """
    for key, value in _STOCK.items():
        if (found := reduce(getitem, key.split("."), cfg)) != value:
            remedy = "export to onnx instead"
            if key in _COSTS:
                remedy += f", or add --opts {key} {value}, which costs {_COSTS[key]}"
            raise UserError(
                f"{key} is {found!r}, which Detectron2's RetinaNet does not have (it is as with "
                f"{value!r}): {remedy}"
            )
    weights = load_model(cfg).state_dict()
    del weights["loss_normalizer"]
    stock = get_cfg()
    _copy(cfg, stock)
    stock.MODEL.META_ARCHITECTURE = "RetinaNet"
    stock.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    # Of training alone, where this package has more.
    stock.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = "smooth_l1"
    if stock.SOLVER.LR_SCHEDULER_NAME == "WarmupStableDecayLR":
        stock.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    stock.MODEL.WEIGHTS = os.path.splitext(os.path.abspath(path))[0] + ".pth"
    try:
        build_model(stock).load_state_dict(weights)
    except (RuntimeError, LookupError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"Detectron2's RetinaNet does not take these weights ({reason}): export to onnx instead"
        ) from error
    write_whole_file(stock.MODEL.WEIGHTS, lambda file: torch.save({"model": weights}, file))
    write_whole_file(path, lambda file: file.write(stock.dump().encode()))


def _copy(cfg: CfgNode, stock: CfgNode) -> None:
    """The values of the keys that both have."""
    for key, value in stock.items():
        if isinstance(value, CfgNode):
            _copy(cfg[key], value)
        else:
            stock[key] = cfg[key]
