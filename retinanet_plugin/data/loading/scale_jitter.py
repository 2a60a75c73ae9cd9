"""Images at random scales in squares of one size, so that no image is seen twice alike."""

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

_GREY = 128  # of padding, as Detectron2's FixedSizeCrop has it


class ScaleJitter(T.Augmentation):
    """The large scale jitter of Ghiasi et al., *Simple Copy-Paste* (2021), section 3.

    An image of a scale s just fits in a square of s times ``edge`` pixels. Of what is larger than
    ``edge`` a square is cut at a random place, what is smaller is padded below and at the right.
    It is Detectron2's ``ResizeScale`` and ``FixedSizeCrop``, but what is cut away is not resized
    before, which takes half of their time.
    """

    def __init__(self, low: float, high: float, edge: int) -> None:
        """
        Args:
            low, high: the least and the largest scale.
            edge: of the squares, pixels.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        """
        Args:
            image: (H, W, C).
        """
        height, width = image.shape[:2]
        scale = np.random.uniform(self.low, self.high) * self.edge / max(height, width)
        h, w = (max(1, min(side, round(self.edge / scale))) for side in (height, width))
        new_h, new_w = (max(1, min(self.edge, round(side * scale))) for side in (h, w))
        y, x = np.random.randint(height - h + 1), np.random.randint(width - w + 1)
        below, right = self.edge - new_h, self.edge - new_w
        return T.TransformList(
            [
                T.CropTransform(x, y, w, h, orig_w=width, orig_h=height),
                T.ResizeTransform(h, w, new_h, new_w),
                T.PadTransform(0, 0, right, below, new_w, new_h, _GREY),
            ]
        )


def with_scale_jitter(
    augmentations: Sequence[T.Augmentation], cfg: CfgNode
) -> list[T.Augmentation]:
    """:class:`ScaleJitter` in the place of ``ResizeShortestEdge``.

    As all images of a batch are of one size, none of its pixels are padding for a longer image.

    Args:
        augmentations: of ``build_augmentation`` in training.
        cfg: its ``INPUT.SCALE_JITTER`` has the least and the largest scale, the largest of
            ``INPUT.MIN_SIZE_TRAIN`` is the edge of the squares.
    """
    low, high = cfg.INPUT.SCALE_JITTER
    jitter = ScaleJitter(low, high, edge=max(cfg.INPUT.MIN_SIZE_TRAIN))
    return [jitter if isinstance(x, T.ResizeShortestEdge) else x for x in augmentations]
