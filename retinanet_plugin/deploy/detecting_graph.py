"""A graph that detects: decoding, NMS and voting after backbone and head, for ONNX."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..head import Predictions
from ..inference import RetinaNetInference
from ..score_voting import score_voting
from .exported_graph import ExportedGraph

DETECTIONS = ("boxes", "scores", "classes")
# What DetectingGraph returns, before NMS, and what NMS keeps of it.
CANDIDATES = ("all_boxes", "all_scores", "all_classes")
KEPT = "kept"
# Scores of 0 are of other classes than a candidate's own.
_NMS = """<ir_version: {ir_version}, opset_import: ["": {opset}]>
nms (float[candidates, 4] all_boxes, float[candidates] all_scores, int64[candidates] all_classes)
    => (int64[detections] kept)
    <int64[1] num_classes = {{{num_classes}}}, float[2] no_yes = {{0, 1}},
     int64[1] most = {{{most}}}, float[1] overlap = {{{overlap}}}, float[1] least = {{0}},
     int64[1] zero = {{0}}, int64 two = {{2}}>
{{
    is_of_class = OneHot <axis = 0> (all_classes, num_classes, no_yes)
    of_classes = Mul (is_of_class, all_scores)
    boxes_of_image = Unsqueeze (all_boxes, zero)
    scores_of_image = Unsqueeze (of_classes, zero)
    found = NonMaxSuppression (boxes_of_image, scores_of_image, most, overlap, least)
    rows = Gather <axis = 1> (found, two)
    scores_of_rows = Gather (all_scores, rows)
    count = Shape (rows)
    at_most = Min (count, most)
    best_scores, best = TopK (scores_of_rows, at_most)
    kept = Gather (rows, best)
}}"""


class DetectingGraph(nn.Module):
    """An :class:`ExportedGraph` of one image, with decoding.

    Called with an image (1, 3, H, W); returns the candidates for NMS: boxes (C, 4) in its pixels,
    scores (C,) and classes (C,), of each level at most ``TOPK_CANDIDATES_TEST``.
    """

    def __init__(self, graph: ExportedGraph) -> None:
        """
        Raises:
            UserError: the model clips boxes to an image whose size the graph does not know.
        """
        super().__init__()
        self.raw = graph  # "graph" is an attribute of what torch.export makes
        self.inference = cast(RetinaNetInference, graph.model.inference)
        if self.inference.clip_before_nms:
            raise UserError(
                "MODEL.RETINANET.CLIP_BEFORE_NMS is True, and a graph that is given padded images "
                "does not know where they end: leave --nms out, or add --opts "
                "MODEL.RETINANET.CLIP_BEFORE_NMS False"
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, inference = self.raw.model, self.inference
        features, outputs = self.raw.features_and_outputs(images)
        predictions = Predictions.of_head(outputs, model.num_classes)
        anchors = model.anchor_generator(features)
        ious: Sequence[Tensor | None] = predictions.pred_ious or [None] * len(anchors)
        levels = []
        for level, logits, deltas, iou in zip(anchors, *predictions[:2], ious):
            scores = logits.sigmoid()
            if iou is not None:
                scores = scores * iou.sigmoid()[..., None]
            scores = scores.flatten()
            count = torch.sym_min(inference.topk_candidates, scores.shape[0])
            scores, best = scores.topk(count)
            rows = best // model.num_classes
            boxes = inference.box2box_transform.apply_deltas(
                deltas.flatten(0, 3)[rows], level.tensor[rows]
            )
            levels.append((boxes, scores, best % model.num_classes))
        boxes, scores, classes = (torch.cat(field) for field in zip(*levels))
        (above,) = (scores > inference.score_thresh).nonzero(as_tuple=True)
        return boxes[above], scores[above], classes[above]


class Kept(nn.Module):
    """Detections, of candidates and the rows (D,) that NMS keeps of them, best first."""

    def __init__(self, inference: RetinaNetInference) -> None:
        super().__init__()
        self.inference = inference

    def forward(
        self, kept: Tensor, boxes: Tensor, scores: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept_boxes = boxes[kept]
        if self.inference.score_voting:
            kept_boxes = score_voting(kept_boxes, classes[kept], boxes, scores, classes)
        return kept_boxes, scores[kept], classes[kept]


def with_nms(candidates: Any, detections: Any, graph: DetectingGraph) -> Any:
    """The ONNX model of ``graph``, NMS, and that of :class:`Kept`, one after the other.

    Its outputs are ``DETECTIONS``: boxes (D, 4), scores (D,), best first, and classes (D,).

    Args:
        candidates: the model of ``graph``, whose outputs are ``CANDIDATES``.
        detections: that of :class:`Kept`, whose inputs are ``KEPT`` and ``CANDIDATES``.
    """
    import onnx

    inference = graph.inference
    text = _NMS.format(
        ir_version=candidates.ir_version,
        opset=next(x.version for x in candidates.opset_import if not x.domain),
        num_classes=graph.raw.model.num_classes,
        most=inference.max_detections_per_image,
        overlap=float(inference.nms_thresh),
    )
    of_candidates = [(name, name) for name in CANDIDATES]
    nms = onnx.compose.merge_models(
        candidates, onnx.parser.parse_model(text), of_candidates, outputs=[*CANDIDATES, KEPT]
    )
    detections = onnx.compose.add_prefix(
        detections, "of_kept/", rename_inputs=False, rename_outputs=False
    )
    return onnx.compose.merge_models(nms, detections, [*of_candidates, (KEPT, KEPT)])
