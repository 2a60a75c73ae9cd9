"""The two subnets of RetinaNet (Lin et al., arXiv 1708.02002, section 4)."""

import math
from typing import Any, cast

from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from fvcore.common.registry import Registry
from torch import Tensor, nn

from .errors import UserError

RETINANET_HEAD_REGISTRY = Registry("RETINANET_HEAD")
RETINANET_HEAD_REGISTRY.__doc__ = """
Heads, chosen by ``MODEL.RETINANET.HEAD_NAME``; called as ``head(cfg, input_shape, num_anchors)``
with the shapes of the features and the number A of anchors at a location.
"""


@RETINANET_HEAD_REGISTRY.register()
class RetinaNetHead(nn.Module):
    """Class scores and box deltas from two small subnets, shared over all levels.

    Each is ``NUM_CONVS`` 3x3 convolutions with ReLU and one 3x3 output convolution; the two do
    not share parameters. Names of parameters are those of Detectron2's RetinaNet.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        num_anchors: int,
        num_convs: int = 4,
        norm: str = "",
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            in_channels (int): of every feature level, and of every hidden convolution.
            num_levels (int): L; batch norm keeps its statistics per level.
            num_classes (int): K.
            num_anchors (int): A, anchors at a location.
            num_convs (int): hidden convolutions of each subnet.
            norm (str): normalisation after each hidden convolution, "" for none; see
                :func:`detectron2.layers.get_norm`.
            prior_prob (float): pi of section 4.1, the foreground probability that every anchor
                starts with, so that the many background anchors do not swamp the first steps.

        Raises:
            UserError: ``prior_prob`` is not between 0 and 1.
        """
        super().__init__()
        if not 0 < prior_prob < 1:
            raise UserError(
                f"MODEL.RETINANET.PRIOR_PROB is {prior_prob}: choose a probability between 0 and 1"
            )

        def norm_layer() -> nn.Module:
            if norm in ("BN", "SyncBN"):  # statistics differ between levels: each has its own
                bn_class = nn.SyncBatchNorm if norm == "SyncBN" else nn.BatchNorm2d
                return CycleBatchNormList(num_levels, bn_class=bn_class, num_features=in_channels)
            return get_norm(norm, in_channels)

        def subnet() -> nn.Sequential:
            modules: list[nn.Module] = []
            for _ in range(num_convs):
                modules.append(nn.Conv2d(in_channels, in_channels, 3, padding=1))
                if norm:
                    modules.append(norm_layer())
                modules.append(nn.ReLU(inplace=True))
            return nn.Sequential(*modules)

        self.cls_subnet = subnet()
        self.bbox_subnet = subnet()
        self.cls_score = nn.Conv2d(in_channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(cast(Tensor, module.bias))
        nn.init.constant_(
            cast(Tensor, self.cls_score.bias), -math.log((1 - prior_prob) / prior_prob)
        )

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: list[ShapeSpec], num_anchors: int
    ) -> dict[str, Any]:
        return {
            "in_channels": input_shape[0].channels,
            "num_levels": len(input_shape),
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "num_anchors": num_anchors,
            "num_convs": cfg.MODEL.RETINANET.NUM_CONVS,
            "norm": cfg.MODEL.RETINANET.NORM,
            "prior_prob": cfg.MODEL.RETINANET.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """
        Args:
            features (list[Tensor]): L tensors (N, C, Hi, Wi).

        Returns:
            tuple[list[Tensor], list[Tensor]]: L class logits (N, A*K, Hi, Wi), and L box deltas
            (N, A*4, Hi, Wi) as :class:`detectron2.modeling.box_regression.Box2BoxTransform`
            defines them.
        """
        pred_logits = [self.cls_score(self.cls_subnet(feature)) for feature in features]
        pred_anchor_deltas = [self.bbox_pred(self.bbox_subnet(feature)) for feature in features]
        return pred_logits, pred_anchor_deltas


def split_anchors(x: Tensor, size: int) -> Tensor:
    """A view (N, Hi, Wi, A, size) of head outputs (N, A*size, Hi, Wi), in any memory layout."""
    n, channels, h, w = x.shape
    return x.view(n, channels // size, size, h, w).permute(0, 3, 4, 1, 2)
