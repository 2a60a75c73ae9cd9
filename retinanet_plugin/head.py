"""The two subnets of RetinaNet (Lin et al., arXiv 1708.02002, section 4)."""

import math
from typing import Any, NamedTuple, cast

import torch
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
    not share parameters. Names of parameters are those of Detectron2's RetinaNet; ``box_scales``
    and ``iou_pred`` are there only where they are asked for.
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
        box_scales: bool = False,
        iou_branch: bool = False,
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
            box_scales (bool): deltas of each level are multiplied by a number that is learned
                (FCOS, arXiv 1904.01355, section 3.2; ATSS, arXiv 1912.02424, section 3.1).
            iou_branch (bool): one more 3x3 convolution after the box subnet predicts the IoU of
                each box with its object (IoU-aware RetinaNet, arXiv 1912.05992, section 3.1).

        Raises:
            UserError: ``prior_prob`` is not between 0 and 1.
        """
        super().__init__()
        if not 0 < prior_prob < 1:
            raise UserError(
                f"MODEL.RETINANET.PRIOR_PROB is {prior_prob}: choose a probability between 0 and 1"
            )
        self.cls_subnet = _subnet(in_channels, num_convs, norm, num_levels)
        self.bbox_subnet = _subnet(in_channels, num_convs, norm, num_levels)
        self.cls_score = nn.Conv2d(in_channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        self.iou_pred = nn.Conv2d(in_channels, num_anchors, 3, padding=1) if iou_branch else None
        self.box_scales = nn.Parameter(torch.ones(num_levels)) if box_scales else None
        self._initialize(prior_prob)

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
            "box_scales": cfg.MODEL.RETINANET.BOX_SCALES,
            "iou_branch": cfg.MODEL.RETINANET.IOU_BRANCH,
        }

    def _initialize(self, prior_prob: float) -> None:
        """As section 4.1 has it ("Initialization")."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(cast(Tensor, module.bias))
        nn.init.constant_(
            cast(Tensor, self.cls_score.bias), -math.log((1 - prior_prob) / prior_prob)
        )

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """
        Args:
            features (list[Tensor]): L tensors (N, C, Hi, Wi).

        Returns:
            tuple[list[Tensor], ...]: L class logits (N, A*K, Hi, Wi), and L box deltas
            (N, A*4, Hi, Wi) as :class:`detectron2.modeling.box_regression.Box2BoxTransform`
            defines them; with an IoU branch, L logits (N, A, Hi, Wi) of IoUs as well.
        """
        pred_logits = [self.cls_score(self.cls_subnet(feature)) for feature in features]
        pred_anchor_deltas, pred_ious = [], []
        for level, feature in enumerate(features):
            tower = self.bbox_subnet(feature)
            deltas = self.bbox_pred(tower)
            if self.box_scales is not None:
                deltas = deltas * self.box_scales[level]
            pred_anchor_deltas.append(deltas)
            if self.iou_pred is not None:
                pred_ious.append(self.iou_pred(tower))
        if self.iou_pred is None:
            return pred_logits, pred_anchor_deltas
        return pred_logits, pred_anchor_deltas, pred_ious


def _subnet(channels: int, num_convs: int, norm: str, num_levels: int) -> nn.Sequential:
    """The hidden convolutions of a subnet, each with its norm, if any, and ReLU."""
    modules: list[nn.Module] = []
    for _ in range(num_convs):
        modules.append(nn.Conv2d(channels, channels, 3, padding=1))
        if norm:
            modules.append(_norm_layer(norm, channels, num_levels))
        modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules)


def _norm_layer(norm: str, channels: int, num_levels: int) -> nn.Module:
    if norm in ("BN", "SyncBN"):  # statistics differ between levels: each has its own
        bn_class = nn.SyncBatchNorm if norm == "SyncBN" else nn.BatchNorm2d
        return CycleBatchNormList(num_levels, bn_class=bn_class, num_features=channels)
    return get_norm(norm, channels)


class Predictions(NamedTuple):
    """What a head predicts for the anchors of each level, in views of its outputs."""

    pred_logits: list[Tensor]  # (N, Hi, Wi, A, K)
    pred_anchor_deltas: list[Tensor]  # (N, Hi, Wi, A, 4)
    pred_ious: list[Tensor] | None = None  # (N, Hi, Wi, A), logits; None: without an IoU branch

    @classmethod
    def of_head(cls, outputs: tuple[list[Tensor], ...], num_classes: int) -> "Predictions":
        """Of what :meth:`RetinaNetHead.forward` returns."""
        logits, deltas, *ious = outputs
        return cls(
            [split_anchors(level, num_classes) for level in logits],
            [split_anchors(level, 4) for level in deltas],
            *[[split_anchors(level, 1).squeeze(-1) for level in levels] for levels in ious],
        )


def split_anchors(x: Tensor, size: int) -> Tensor:
    """A view (N, Hi, Wi, A, size) of head outputs (N, A*size, Hi, Wi), in any memory layout."""
    n, channels, h, w = x.shape
    return x.view(n, channels // size, size, h, w).permute(0, 3, 4, 1, 2)
