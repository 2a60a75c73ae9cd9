"""From head outputs to detections: threshold, top-k, decoding, NMS."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .compat import best_scores
from .score_voting import voted_boxes

# Boxes (C, 4), absolute pixels, scores (C,) and classes (C,) of an image on a level.
Candidates = tuple[Tensor, Tensor, Tensor]
# Finding candidates on a GPU takes about 13 bytes for each entry that is looked at.
_ENTRIES_AT_ONCE = 2**25


class RetinaNetInference(nn.Module):
    """Decoding of arXiv 1708.02002, section 4.1 ("Inference").

    Only entries above the score threshold are ever turned into scores, and of those only the best
    of each level into boxes. Same detections as Detectron2's RetinaNet.
    """

    @configurable
    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
        nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        score_voting: bool = False,
        clip_before_nms: bool = False,
    ) -> None:
        """
        Args:
            box2box_transform (Box2BoxTransform): from deltas to boxes.
            score_thresh (float): detections have scores above it.
            topk_candidates (int): most candidates that a level passes to NMS.
            nms_thresh (float): IoU above which the lower-scored box of a class is dropped.
            max_detections_per_image (int): detections kept, best first.
            score_voting (bool): boxes are averaged: see :mod:`retinanet_plugin.score_voting`.
            clip_before_nms (bool): NMS sees boxes that are clipped to the image.
        """
        super().__init__()
        self.box2box_transform = box2box_transform
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.score_voting = score_voting
        self.clip_before_nms = clip_before_nms

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        retinanet = cfg.MODEL.RETINANET
        return {
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "score_thresh": retinanet.SCORE_THRESH_TEST,
            "topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "nms_thresh": retinanet.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_voting": retinanet.SCORE_VOTING,
            "clip_before_nms": retinanet.CLIP_BEFORE_NMS,
        }

    def extra_repr(self) -> str:
        return (
            f"score_thresh={self.score_thresh}, topk_candidates={self.topk_candidates}, "
            f"nms_thresh={self.nms_thresh}, "
            f"max_detections_per_image={self.max_detections_per_image}, "
            f"score_voting={self.score_voting}, clip_before_nms={self.clip_before_nms}"
        )

    def forward(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
        pred_ious: list[Tensor] | None = None,
    ) -> list[Instances]:
        """
        Args:
            anchors (list[Boxes]): of each level, Hi*Wi*A boxes, absolute pixels.
            pred_logits (list[Tensor]): of each level, (N, Hi, Wi, A, K).
            pred_anchor_deltas (list[Tensor]): of each level, (N, Hi, Wi, A, 4).
            image_sizes (list[tuple[int, int]]): (height, width) of each image without padding.
            pred_ious (list[Tensor] or None): of each level, logits (N, Hi, Wi, A) of the IoUs that
                multiply the scores; None: nothing does.

        Returns:
            list[Instances]: of each image, with ``pred_boxes`` (absolute pixels of the padded
            input, clipped if that is asked for), ``scores`` and ``pred_classes``, best first.
        """
        ious: Sequence[Tensor | None] = pred_ious or [None] * len(anchors)
        levels = [
            self._candidates_of_level(*level, len(image_sizes))
            for level in zip(anchors, pred_logits, pred_anchor_deltas, ious)
        ]
        return [
            self._detect_in_image(candidates, image_size)
            for candidates, image_size in zip(zip(*levels), image_sizes)
        ]

    def _detect_in_image(
        self, candidates: Sequence[Candidates], image_size: tuple[int, int]
    ) -> Instances:
        """
        Args:
            candidates (Sequence[Candidates]): of each level.
            image_size (tuple[int, int]): (height, width).
        """
        boxes, scores, classes = (torch.cat(field) for field in zip(*candidates))
        if self.clip_before_nms:
            clipped = Boxes(boxes)
            clipped.clip(image_size)
            boxes = clipped.tensor
        keep = batched_nms(boxes, scores, classes, self.nms_thresh)
        keep = keep[: self.max_detections_per_image]
        kept_boxes = boxes[keep]
        if self.score_voting:
            kept_boxes = voted_boxes(keep, boxes, scores, classes)
        return Instances(
            image_size,
            pred_boxes=Boxes(kept_boxes),
            scores=scores[keep],
            pred_classes=classes[keep],
        )

    def _candidates_of_level(
        self, anchors: Boxes, logits: Tensor, deltas: Tensor, ious: Tensor | None, num_images: int
    ) -> list[Candidates]:
        """Of each image, at most topk candidates of a level."""
        at_once, found = _images_at_once(logits), []
        for start in range(0, num_images, at_once):
            part = slice(start, min(start + at_once, num_images))
            found += self._candidates_of_images(
                anchors, logits[part], deltas[part], None if ious is None else ious[part],
                part.stop - start,
            )  # fmt: skip
        return found

    def _candidates_of_images(
        self, anchors: Boxes, logits: Tensor, deltas: Tensor, ious: Tensor | None, num_images: int
    ) -> list[Candidates]:
        _, _, width, num_anchors, _ = logits.shape
        index = (logits > _logit_below(self.score_thresh)).nonzero(as_tuple=True)
        scores = logits[index].float().sigmoid_()
        if ious is not None:
            scores = scores * ious[index[:4]].float().sigmoid()
        # Not after the best are taken: how equal scores are ordered depends on what else is there.
        (above,) = (scores > self.score_thresh).nonzero(as_tuple=True)
        best_of = self._best_of_images(scores[above], index[0][above], num_images)
        best = above[torch.cat([order for _, order in best_of])]
        n, y, x, a, classes = (i[best] for i in index)
        boxes = self.box2box_transform.apply_deltas(
            deltas[n, y, x, a].float(), anchors.tensor[(y * width + x) * num_anchors + a]
        )
        if num_images == 1:
            return [(boxes, best_of[0][0], classes)]
        counts = [len(scores) for scores, _ in best_of]
        fields = boxes.split(counts), [scores for scores, _ in best_of], classes.split(counts)
        return list(zip(*fields))

    def _best_of_images(
        self, scores: Tensor, image_index: Tensor, num_images: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each image, its highest scores, and where they are in ``scores``, highest first.

        Args:
            scores (Tensor): (C,), those of an image one after the other.
            image_index (Tensor): (C,), from 0 to num_images - 1, ascending.
        """
        if num_images == 1:  # a traced model may find any number of them
            return [best_scores(scores, self.topk_candidates)]
        counts, start, found = image_index.bincount(minlength=num_images).tolist(), 0, []
        for of_image, count in zip(scores.split(counts), counts):
            best, order = best_scores(of_image, self.topk_candidates)
            found.append((best, order + start))
            start += count
        return found


def _images_at_once(logits: Tensor) -> int:
    """Of how many images the candidates of a level, logits (N, Hi, Wi, A, K), are found together.

    Of several on a GPU, where starting a kernel takes longer than most of these run, within bounded
    memory. A trace would keep how many each image has.
    """
    if not logits.is_cuda or torch.jit.is_tracing():
        return 1
    return max(1, _ENTRIES_AT_ONCE // math.prod(logits.shape[1:]))


def _logit_below(score: float) -> float:
    """A logit slightly below that of ``score``: a cheap filter that drops no detection."""
    if score <= 0:
        return -math.inf
    if score >= 1:
        return math.inf
    logit = math.log(score / (1 - score))
    # 16-bit logits round the threshold to their own precision.
    return logit - 0.01 * (1 + abs(logit))
