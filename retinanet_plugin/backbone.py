"""FPN P3-P7 over any bottom-up network (Lin et al., arXiv 1708.02002, section 4)."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor

from .errors import UserError, registered


class LastLevels(LastLevelP6P7):
    """P6 and P7, on a CPU never of a narrow map in bfloat16.

    PyTorch 2.14 writes only a part of the gradient of a weight there, and leaves the rest as the
    memory was, if a convolution in bfloat16 has padding, stride 2 and a map that is 1 wide: P6's
    of images up to 32 pixels wide, P7's up to 64. A training computes such maps in float32.
    """

    def forward(self, source: Tensor) -> list[Tensor]:
        """
        Args:
            source (Tensor): C5 or P5 (N, C, H, W).

        Returns:
            list[Tensor]: P6 and P7 (N, D, Hi, Wi).
        """
        if self.training and source.device.type == "cpu" and source.shape[-1] <= 2:
            with torch.autocast("cpu", enabled=False):
                return self.levels(source.to(self.p6.weight.dtype))
        return self.levels(source)

    def levels(self, source: Tensor) -> list[Tensor]:
        return super().forward(source)


@BACKBONE_REGISTRY.register()
def build_fpn_p3p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a feature pyramid whose levels P3..P7 have strides 8..128.

    P3..P5 come from the features ``MODEL.FPN.IN_FEATURES`` of the network that
    ``MODEL.FPN.BOTTOM_UP`` builds. P6 is a 3x3 stride-2 convolution on
    ``MODEL.FPN.TOP_BLOCK_IN_FEATURE``: ``res5`` (C5, as in the paper) or ``p5``. P7 is ReLU and
    a 3x3 stride-2 convolution on P6 (section 4, footnote 2).

    Args:
        cfg (CfgNode): with the keys of :func:`add_retinanet_config`.
        input_shape (ShapeSpec): of the images; ``channels`` is read.

    Returns:
        FPN: maps images (N, 3, H, W) to ``{"p3": (N, FPN.OUT_CHANNELS, H/8, W/8), ...}``.

    Raises:
        UserError: ``IN_FEATURES`` or ``TOP_BLOCK_IN_FEATURE`` names no feature that exists.
    """
    fpn = cfg.MODEL.FPN
    builder = registered(BACKBONE_REGISTRY, fpn.BOTTOM_UP, "MODEL.FPN.BOTTOM_UP")
    bottom_up = builder(cfg, input_shape)
    shapes = bottom_up.output_shape()
    for name in fpn.IN_FEATURES:
        if name not in shapes:
            resnets = fpn.BOTTOM_UP == "build_resnet_backbone"
            raise UserError(
                f"MODEL.FPN.IN_FEATURES has {name!r}, which {fpn.BOTTOM_UP} does not make: choose "
                f"from {sorted(shapes)}{', or add it to MODEL.RESNETS.OUT_FEATURES' * resnets}"
            )
    strides = [shapes[name].stride for name in fpn.IN_FEATURES]
    if not strides:
        raise UserError("MODEL.FPN.IN_FEATURES is empty: RetinaNet needs ['res3', 'res4', 'res5']")
    last_level = f"p{strides[-1].bit_length() - 1}"
    source = fpn.TOP_BLOCK_IN_FEATURE
    if source != last_level and source not in shapes:
        raise UserError(
            f"MODEL.FPN.TOP_BLOCK_IN_FEATURE is {source!r}, which does not exist: choose "
            f"{last_level!r} or one of {sorted(shapes)}"
        )
    in_channels = fpn.OUT_CHANNELS if source == last_level else shapes[source].channels
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=LastLevels(in_channels, fpn.OUT_CHANNELS, in_feature=source),
        fuse_type=fpn.FUSE_TYPE,
    )
