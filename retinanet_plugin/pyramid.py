"""The levels that a head reads and the anchors at a location, if config and backbone agree."""

from typing import cast

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import nn

from .errors import UserError


def head_input_shapes(cfg: CfgNode, backbone: Backbone) -> list[ShapeSpec]:
    """Shapes of the features that the head reads.

    Raises:
        UserError: the backbone does not make them, or the anchors have another number of levels.
    """
    shapes = backbone.output_shape()
    in_features = cfg.MODEL.RETINANET.IN_FEATURES
    for name in in_features:
        if name not in shapes:
            raise UserError(
                f"MODEL.RETINANET.IN_FEATURES has {name!r}, which the backbone "
                f"{cfg.MODEL.BACKBONE.NAME} does not make: choose from {list(shapes)}"
            )
    for key in ("SIZES", "ASPECT_RATIOS"):
        num_levels = len(cfg.MODEL.ANCHOR_GENERATOR[key])
        if num_levels not in (1, len(in_features)):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {num_levels} levels but "
                f"MODEL.RETINANET.IN_FEATURES has {len(in_features)} ({', '.join(in_features)}): "
                "give one list for each level, or one for all"
            )
    return [shapes[name] for name in in_features]


def num_cell_anchors(anchor_generator: nn.Module) -> int:
    """A, which a head that is shared over the levels needs to be one number.

    Raises:
        UserError: it depends on the level.
    """
    counts = set(cast(list[int], anchor_generator.num_cell_anchors))
    if len(counts) != 1:
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR gives {sorted(counts)} anchors at a location, depending on "
            "the level: give every level as many SIZES and ASPECT_RATIOS"
        )
    return counts.pop()
