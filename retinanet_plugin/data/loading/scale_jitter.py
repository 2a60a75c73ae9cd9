"""Images at random scales in squares of one size, so that no image is seen twice alike."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import transforms as T


def with_scale_jitter(
    augmentations: Sequence[T.Augmentation], cfg: CfgNode
) -> list[T.Augmentation]:
    """Detectron2's resize and crop at random scales in the place of ``ResizeShortestEdge``.

    The large scale jitter of Ghiasi et al., *Simple Copy-Paste* (2021), section 3. An image of a
    scale s in ``INPUT.SCALE_JITTER`` just fits in a square of s times the largest
    ``INPUT.MIN_SIZE_TRAIN``; of what is larger than that many pixels a square is cut at a random
    place, what is smaller is padded below and at the right. As all images of a batch are of one
    size, none of its pixels are padding for a longer image.

    Args:
        augmentations: of ``build_augmentation`` in training.
        cfg: its ``INPUT.SCALE_JITTER`` has the least and the largest scale.
    """
    edge = max(cfg.INPUT.MIN_SIZE_TRAIN)
    jitter = [T.ResizeScale(*cfg.INPUT.SCALE_JITTER, edge, edge), T.FixedSizeCrop((edge, edge))]
    return [
        new
        for old in augmentations
        for new in (jitter if isinstance(old, T.ResizeShortestEdge) else [old])
    ]
