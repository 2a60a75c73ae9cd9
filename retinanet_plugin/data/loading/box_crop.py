"""Crops around objects, so that small ones fill more of what a training looks at."""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform


class BoxCrop(T.Augmentation):
    """A window of a share of the image, at a random place around one of its boxes.

    Images of a few small objects are mostly background. A window of half their width and height
    costs a quarter of the time and shows a box at least, so that more objects are seen in the same
    time. It grows where the box would not fit, and boxes of other objects may be cut. Of long
    images, its longer edge is twice the shorter one.
    """

    MOST_ASPECT = 2.0

    # Of the longer side of a box, around it in a window that would be too small.
    _MARGIN = 0.1

    def __init__(self, share: float) -> None:
        """
        Args:
            share: of the image's width and height, above 0 and up to 1; of images longer than
                :attr:`MOST_ASPECT`, of their shorter edge and that many times as much.
        """
        super().__init__()
        self.share = share

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """
        Args:
            image: (H, W, C).
            boxes: (M, 4), (x1, y1, x2, y2) in pixels; without one, the window is anywhere.
        """
        height, width = image.shape[:2]
        box = boxes[np.random.randint(len(boxes))] if len(boxes) else None
        longest = self.MOST_ASPECT * min(height, width)
        y, h = self._interval(height, longest, None if box is None else box[1::2])
        x, w = self._interval(width, longest, None if box is None else box[::2])
        return T.CropTransform(x, y, w, h, orig_w=width, orig_h=height)

    def _interval(self, length: int, longest: float, side: np.ndarray | None) -> tuple[int, int]:
        """Start and length of the window in one direction, in whole pixels."""
        size = max(1, round(min(length, longest) * self.share))
        low, high = 0, length - size
        if side is not None:
            first, last = np.clip(side, 0, length)
            size = min(length, max(size, int(np.ceil((last - first) * (1 + 2 * self._MARGIN)))))
            low = int(np.clip(np.ceil(last) - size, 0, length - size))
            high = int(np.clip(np.floor(first), 0, length - size))
        return int(np.random.randint(min(low, high), max(low, high) + 1)), size
