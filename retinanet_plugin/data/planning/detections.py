"""How many detections of an image are kept: as many as it can have objects."""

import math

from .choice import Choice

# Detectron2's own, enough for most data.
_USUAL, _USUAL_CANDIDATES = 100, 1000
# Of the most objects in an image: there are false alarms, too.
_SPARE = 1.5
# Of a level before NMS, for each detection that is kept.
_CANDIDATES = 4


def choose_detections(most: int) -> list[Choice]:
    """Nothing where Detectron2's hundred are enough.

    Args:
        most: objects in an image.
    """
    if most <= _USUAL:
        return []
    kept = math.ceil(_SPARE * most / _USUAL) * _USUAL
    candidates = max(_USUAL_CANDIDATES, _CANDIDATES * kept)
    return [
        Choice("TEST.DETECTIONS_PER_IMAGE", kept, f"an image has {most:,} objects"),
        Choice("MODEL.RETINANET.TOPK_CANDIDATES_TEST", candidates, "of each level, before NMS"),
    ]
