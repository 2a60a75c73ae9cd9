"""The part of a model that is exported: from pixels to logits and deltas, and its description."""

import copy
import json
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor, nn

from ..errors import UserError
from ..execution import Execution
from ..head import split_anchors
from ..meta_arch import ModularRetinaNet
from ..weights.checkpoint_contents import describe_training
from .cpu_convolutions import dilate_pointwise
from .torch_network import TorchNetwork

INPUT = "images"
OUTPUTS = ("logits", "deltas", "ious")
# A program of PyTorch takes sides of at least as many divisors: a level of one location would be
# no variable for it. ONNX and OpenVINO take any.
LEAST_DIVISORS = 5


class ExportedGraph(nn.Module):
    """Backbone and head, with normalisation before and the anchors of all levels in one row after.

    Called with images (N, C, H, W), float32, 0 to 255, in the order of ``INPUT.FORMAT``, both sides
    multiples of ``divisor``, padded at the right and at the bottom with ``pixel_mean`` of each
    channel. Returns logits (N, R, K) and deltas (N, R, 4), of a head with an IoU branch also logits
    (N, R): levels one after the other, in each anchors by row, column and kind.
    """

    def __init__(self, model: ModularRetinaNet) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        self.model.execution = Execution(fast_cpu_conv=False)
        dilate_pointwise(self.model, 1)

    @property
    def divisor(self) -> int:
        return max(1, self.model.backbone.size_divisibility)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        _, outputs = self.features_and_outputs(images)
        sizes = (self.model.num_classes, 4, 1)
        rows = (
            torch.cat([split_anchors(level, size).flatten(1, 3) for level in levels], dim=1)
            for levels, size in zip(outputs, sizes)
        )
        return tuple(x.squeeze(-1) if i == 2 else x for i, x in enumerate(rows))

    def features_and_outputs(self, images: Tensor) -> tuple[list[Tensor], tuple[list[Tensor], ...]]:
        """Of each level, what the head is given and returns."""
        model = self.model
        features = model.backbone((images - model.pixel_mean) / model.pixel_std)
        features = [features[name] for name in model.in_features]
        return features, model.head(features)


def exported_graph(network: TorchNetwork) -> ExportedGraph:
    """The graph of a network.

    Raises:
        UserError: the model is not this package's, or its anchors are not Detectron2's.
    """
    model = network.model
    if not isinstance(model, ModularRetinaNet):
        name = network.cfg.MODEL.META_ARCHITECTURE
        raise UserError(f"MODEL.META_ARCHITECTURE is {name}: only ModularRetinaNet is exported so")
    if type(model.anchor_generator) is not DefaultAnchorGenerator:
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.NAME is {network.cfg.MODEL.ANCHOR_GENERATOR.NAME}, whose "
            "anchors an exported file does not describe: only DefaultAnchorGenerator is exported"
        )
    return ExportedGraph(model).eval()


def dynamic_input(graph: ExportedGraph) -> tuple[tuple[Tensor], dict[str, dict[int, Any]]]:
    """An example of the input, and what of its shape is variable: batch, height and width."""
    side = graph.divisor
    channels = len(graph.model.pixel_mean)
    example = torch.rand(2, channels, 8 * side, 12 * side) * 255
    dims = {
        0: torch.export.Dim("batch"),
        2: side * torch.export.Dim("rows", min=LEAST_DIVISORS),
        3: side * torch.export.Dim("columns", min=LEAST_DIVISORS),
    }
    return (example,), {INPUT: dims}


def describe(network: TorchNetwork, graph: ExportedGraph, nms: bool = False) -> dict[str, str]:
    """What a program needs beside the graph, as texts of JSON.

    ``class_names``, ``preprocessing``, ``config`` and ``versions`` as in a checkpoint, ``padding``
    (``divisor``), ``anchors`` (of each level ``stride``, ``offset`` in strides, and ``boxes`` (A,
    4) around a location), and ``decoding`` (thresholds, limits, the weights of deltas, clipping,
    voting, and whether the graph does all this itself).
    """
    cfg: CfgNode = network.cfg.clone()
    cfg.MODEL.WEIGHTS = ""  # of this machine
    retinanet = cfg.MODEL.RETINANET
    generator = cast(DefaultAnchorGenerator, graph.model.anchor_generator)
    strides, cells = cast(list[int], generator.strides), generator.cell_anchors
    notes = {
        **describe_training(cfg),
        "class_names": network.class_names,
        "padding": {"divisor": graph.divisor},
        "anchors": [
            {"stride": stride, "offset": generator.offset, "boxes": boxes.tolist()}
            for stride, boxes in zip(strides, cells)
        ],
        "decoding": {
            "score_thresh": retinanet.SCORE_THRESH_TEST,
            "topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "nms_thresh": retinanet.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_weights": list(retinanet.BBOX_REG_WEIGHTS),
            "clip_before_nms": retinanet.CLIP_BEFORE_NMS,
            "score_voting": retinanet.SCORE_VOTING,
            "in_graph": nms,
        },
    }
    return {key: json.dumps(value) for key, value in notes.items()}
