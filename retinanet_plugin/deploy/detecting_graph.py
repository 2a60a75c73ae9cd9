"""A graph that detects: decoding and NMS after backbone and head, for ONNX."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..head import Predictions
from ..inference import RetinaNetInference
from .exported_graph import ExportedGraph

OUTPUTS = ("boxes", "scores", "classes")
# What DetectingGraph returns, before NMS.
CANDIDATES = ("all_boxes", "all_scores")
_NMS = """<ir_version: {ir_version}, opset_import: ["": {opset}]>
nms (float[1, rows, 4] all_boxes, float[1, rows, num_classes] all_scores)
    => (float[detections, 4] boxes, float[detections] scores, int64[detections] classes)
    <int64[1] most = {{{most}}}, float[1] overlap = {{{overlap}}}, float[1] least = {{{least}}},
     int64[1] zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}>
{{
    of_classes = Transpose <perm = [0, 2, 1]> (all_scores)
    kept = NonMaxSuppression (all_boxes, of_classes, most, overlap, least)
    kept_scores = GatherND (of_classes, kept)
    count = Shape (kept_scores)
    at_most = Min (count, most)
    scores, best = TopK (kept_scores, at_most)
    kept_classes = Gather <axis = 1> (kept, one)
    classes = Gather (kept_classes, best)
    kept_rows = Gather <axis = 1> (kept, two)
    rows_of_best = Gather (kept_rows, best)
    rows_of_boxes = Squeeze (all_boxes, zero)
    boxes = Gather (rows_of_boxes, rows_of_best)
}}"""


class DetectingGraph(nn.Module):
    """An :class:`ExportedGraph` of one image, with decoding.

    Called with an image (1, C, H, W); returns boxes (1, R, 4) in its pixels and scores (1, R, K),
    0 for what is not among the best ``TOPK_CANDIDATES_TEST`` of its level.
    """

    def __init__(self, graph: ExportedGraph) -> None:
        """
        Raises:
            UserError: the model detects by more than NMS.
        """
        super().__init__()
        self.raw = graph  # "graph" is an attribute of what torch.export makes
        self.inference = cast(RetinaNetInference, graph.model.inference)
        for name in ("score_voting", "clip_before_nms"):
            if getattr(self.inference, name):
                raise UserError(
                    f"MODEL.RETINANET.{name.upper()} is True, which ONNX's NMS does not do: leave "
                    "--nms out"
                )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model, inference = self.raw.model, self.inference
        features, outputs = self.raw.features_and_outputs(images)
        predictions = Predictions.of_head(outputs, model.num_classes)
        anchors = model.anchor_generator(features)
        ious: Sequence[Tensor | None] = predictions.pred_ious or [None] * len(anchors)
        boxes, scores = [], []
        for level, logits, deltas, iou in zip(anchors, *predictions[:2], ious):
            of_level = logits.sigmoid()
            if iou is not None:
                of_level = of_level * iou.sigmoid()[..., None]
            of_level = of_level.flatten(1, 3)
            flat = of_level.flatten(1)
            count = torch.sym_min(inference.topk_candidates, flat.shape[1])
            worst = flat.topk(count).values[:, -1:, None]
            scores.append(torch.where(of_level >= worst, of_level, 0))
            deltas = deltas.flatten(1, 3)[0]
            boxes.append(inference.box2box_transform.apply_deltas(deltas, level.tensor)[None])
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


def with_nms(model: Any, graph: DetectingGraph) -> Any:
    """An ONNX model of ``graph``, whose outputs are ``CANDIDATES``, with NMS after it.

    Its outputs are ``OUTPUTS``: boxes (D, 4), scores (D,), best first, and classes (D,).
    """
    import onnx

    inference = graph.inference
    text = _NMS.format(
        ir_version=model.ir_version,
        opset=next(x.version for x in model.opset_import if not x.domain),
        most=inference.max_detections_per_image,
        overlap=float(inference.nms_thresh),
        least=float(inference.score_thresh),
    )
    pairs = [(name, name) for name in CANDIDATES]
    return onnx.compose.merge_models(model, onnx.parser.parse_model(text), io_map=pairs)
