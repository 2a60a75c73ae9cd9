"""Which anchors learn which object: by their predictions, or by IoU where objects are tiny."""

from .choice import Choice, with_reason
from .network import FROM_SCRATCH, base_of

# Pixels, the stride of P3. TaskAlignedMatcher wants a location inside of an object, which a smaller
# one may not have: it would never be foreground.
_LEAST_SIDE = 8
_BY_IOU = [
    Choice("MODEL.RETINANET.MATCHER_NAME", "IoUMatcher", ""),
    Choice("MODEL.RETINANET.CLS_LOSS_NAME", "FocalLoss", ""),
]


def choose_targets(weights: str, small_side: float) -> list[Choice]:
    """Nothing where the base's matcher suits.

    Args:
        weights: that training starts from; "": none.
        small_side: pixels that the smaller objects have after resizing.
    """
    if base_of(weights) != FROM_SCRATCH or small_side >= _LEAST_SIDE:
        return []
    return with_reason(
        _BY_IOU,
        f"a fifth of the objects have {small_side:.0f} pixels or less, and few locations inside",
    )
