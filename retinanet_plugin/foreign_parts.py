"""What other programs' RetinaNets do otherwise, for weights that were trained so.

``python -m retinanet_plugin import-weights`` writes configs that name these parts.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN
from detectron2.structures import Boxes
from torch import Tensor

from .backbone import LastLevels, build_fpn_p3p7_backbone


@ANCHOR_GENERATOR_REGISTRY.register()
class WholePixelAnchorGenerator(DefaultAnchorGenerator):
    """The anchors of torchvision's ``AnchorGenerator``, in Detectron2's order.

    Half widths and half heights are rounded to whole pixels, to the even one of two that are as
    near. The stride of a level is the whole number of times that the level's size goes into that
    of the padded image, in each direction: 61 instead of 64 where 800 pixels have 13 rows.
    """

    def generate_cell_anchors(
        self,
        sizes: tuple[float, ...] = (32, 64, 128, 256, 512),
        aspect_ratios: tuple[float, ...] = (0.5, 1, 2),
    ) -> Tensor:
        return super().generate_cell_anchors(sizes, aspect_ratios).round()

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """
        Args:
            features (list[Tensor]): L tensors (N, C, Hi, Wi). The first divides the padded image
                without remainder, so that its size tells that of the image.

        Returns:
            list[Boxes]: of each level, Hi*Wi*A anchors, absolute pixels.
        """
        height, width = (side * self.strides[0] for side in features[0].shape[-2:])
        levels = []
        for feature, cell in zip(features, self.cell_anchors):
            rows, columns = feature.shape[-2:]
            y = torch.arange(rows, device=cell.device) * (height // rows)
            x = torch.arange(columns, device=cell.device) * (width // columns)
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            levels.append(Boxes((centres + cell).reshape(-1, 4)))
        return levels


class _LinearP6P7(LastLevels):
    """P7 is a convolution on P6 itself, without the ReLU between them."""

    def levels(self, source: Tensor) -> list[Tensor]:
        p6 = self.p6(source)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_fpn_linear_p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """:func:`build_fpn_p3p7_backbone` without the ReLU before P7, as mmdetection's FPN is.

    Args, Returns, Raises: see :func:`build_fpn_p3p7_backbone`.
    """
    fpn = build_fpn_p3p7_backbone(cfg, input_shape)
    old = fpn.top_block
    fpn.top_block = _LinearP6P7(old.p6.in_channels, old.p6.out_channels, old.in_feature)
    return fpn
