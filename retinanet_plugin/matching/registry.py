"""The registry that the config chooses matchers from, and the check of a key they share."""

import math

from fvcore.common.registry import Registry

from ..errors import UserError

MATCHER_REGISTRY = Registry("RETINANET_MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers, chosen by ``MODEL.RETINANET.MATCHER_NAME``.

A matcher of your own is registered with ``@MATCHER_REGISTRY.register()``, built as
``matcher(cfg)`` and called without gradients as ``matcher(anchors, gt_instances)``:

- anchors (list[Boxes]): of each level, Hi*Wi*A boxes, absolute pixels; R in all.
- gt_instances (list[Instances]): N images with ``gt_boxes``, absolute pixels, and ``gt_classes``.

It returns :class:`retinanet_plugin.matching.Targets`, or a tuple of its first two fields. Two
attributes of the class say what else it wants or can do; both are False where they are missing:

- needs_predictions (bool): it is called as
  ``matcher(anchors, gt_instances, pred_logits, pred_anchor_deltas)``, where the latter are lists
  of a tensor (N, Hi, Wi, A, K) and (N, Hi, Wi, A, 4) of each level, detached. Only such a matcher
  may give ``gt_qualities``.
- fixed_shapes (bool): a CUDA graph can hold it. It has a method
  ``match_padded(anchors, gt_boxes, gt_classes)`` that gives the same from ground truth in the form
  of :func:`retinanet_plugin.matching.padded_truth`, and in it no operation reads a value or has a
  shape that depends on one.
"""


def check_memory(memory_mb: float) -> None:
    """Refuse a memory budget that is not a positive, finite number of MiB."""
    if not 0 < memory_mb < math.inf:
        raise UserError(
            f"MODEL.RETINANET.MATCHER_MEMORY_MB is {memory_mb}: give a number of MiB above 0, "
            "such as 16"
        )
