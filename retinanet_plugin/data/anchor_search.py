"""A search for scales and aspect ratios that together reach the most boxes."""

from collections.abc import Iterator, Sequence

import numpy as np

from .anchor_reach import AnchorGrid, anchor_shapes, iou_at

# What is searched: steps of an eighth of an octave.
_STEPS = 8
# Scales in strides, from the smallest on. The largest is that which the largest box has on the
# coarsest level, or this: larger anchors of a level see more than the network does there.
_MIN_SCALE, _MAX_SCALE = 0.5, 8.0
# Height / width and width / height; none is tried that is beyond those of the boxes.
_MAX_RATIO = 32.0
# Of sets that reach as many boxes, the one that fits them better: what 1 of IoU is worth in reach.
_WORTH_OF_FIT = 0.1

Choice = tuple[list[int], list[int]]  # of scales and of ratios, as rows of the table


class AnchorSearch:
    """The IoUs of every shape with every box, and a search in them.

    A set is all its scales with all its ratios. One scale or ratio at a time is exchanged for the
    best that the others leave (coordinate descent with a whole line searched, so no step size, no
    random numbers), until none is better.
    """

    def __init__(
        self,
        grid: AnchorGrid,
        boxes: np.ndarray,
        image_sizes: np.ndarray,
        classes: np.ndarray,
        weights: np.ndarray,
        least: np.ndarray,
        threshold: float,
    ) -> None:
        """
        Args:
            grid: of the anchors.
            boxes, image_sizes: (m, 4) and (m, 2), see :meth:`AnchorGrid.best_iou`.
            classes: (m,), ascending.
            weights: (m,), of the boxes, 1 in sum.
            least: of each class that there is, the share of its boxes that is to be reached.
            threshold: the IoU from which on a box is reached.
        """
        boxes = boxes.astype(np.float32)
        sides = boxes[:, 2:] - boxes[:, :2]
        largest = np.sqrt(sides.prod(axis=1).max()) / max(grid.strides)
        self.scales = _steps(_MIN_SCALE, max(_MAX_SCALE, largest))
        ratios = (sides[:, 1] / sides[:, 0]).clip(1 / _MAX_RATIO, _MAX_RATIO)
        self.ratios = _steps(ratios.min(), ratios.max())
        self._ious = self._table(grid, boxes, image_sizes)  # (scales, ratios, m)
        self._weights, self._least = weights.astype(np.float32), least
        self._threshold = threshold
        self._starts = np.flatnonzero(np.diff(classes, prepend=-1))
        self._counts = np.diff(self._starts, append=len(classes))

    def grow(self, max_anchors: int) -> Iterator[tuple[list[float], list[float]]]:
        """The best scales and ratios that are found of each pair of numbers of them.

        Each is grown from one with a scale or a ratio less, so that it is no worse than that.
        """
        found: dict[tuple[int, int], Choice] = {}
        for num_anchors in range(1, max_anchors + 1):
            for num_scales in range(1, num_anchors + 1):
                num_ratios, rest = divmod(num_anchors, num_scales)
                if rest or num_scales > len(self.scales) or num_ratios > len(self.ratios):
                    continue
                best = self._best(num_scales, num_ratios, found)
                found[num_scales, num_ratios] = best
                yield self.scales[sorted(best[0])].tolist(), self.ratios[sorted(best[1])].tolist()

    def _best(
        self, num_scales: int, num_ratios: int, found: dict[tuple[int, int], Choice]
    ) -> Choice:
        starts: list[Choice] = []
        if (num_scales - 1, num_ratios) in found:
            scales, ratios = found[num_scales - 1, num_ratios]
            starts.append(([*scales, self._best_scale(scales, ratios)[0]], ratios))
        if (num_scales, num_ratios - 1) in found:
            scales, ratios = found[num_scales, num_ratios - 1]
            starts.append((scales, [*ratios, self._best_ratio(scales, ratios)[0]]))
        if not starts:  # of one scale and one ratio, all are tried
            lines = [self._best_ratio([i], []) for i in range(len(self.scales))]
            scale = max(range(len(lines)), key=lambda i: lines[i][1])
            starts.append(([scale], [lines[scale][0]]))
        ends = [self._exchange(*start) for start in starts]
        return max(ends, key=lambda end: end[1])[0]

    def _exchange(self, scales: Sequence[int], ratios: Sequence[int]) -> tuple[Choice, float]:
        """Exchange one after the other, until nothing is gained; with the score."""
        scales, ratios, score = list(scales), list(ratios), -np.inf
        while True:
            before = score
            for chosen, best in ((scales, self._best_scale), (ratios, self._best_ratio)):
                for i in range(len(chosen)):
                    others = chosen[:i] + chosen[i + 1 :]
                    args = (others, ratios) if chosen is scales else (scales, others)
                    index, new_score = best(*args)
                    if new_score > score + 1e-7:
                        chosen[i], score = index, new_score
            if score <= before:
                return (scales, ratios), score

    def _best_scale(self, others: list[int], ratios: list[int]) -> tuple[int, float]:
        return self._best_line(self._ious[:, ratios].max(axis=1), others)

    def _best_ratio(self, scales: list[int], others: list[int]) -> tuple[int, float]:
        return self._best_line(self._ious[scales].max(axis=0), others)

    def _best_line(self, ious: np.ndarray, others: list[int]) -> tuple[int, float]:
        """Which row of IoUs (n, m) is best beside those of others, and the score of them all."""
        if others:
            ious = np.maximum(ious, ious[others].max(axis=0))
        are_reached = ious >= self._threshold
        scores = are_reached @ self._weights + _WORTH_OF_FIT * (ious @ self._weights)
        shares = np.add.reduceat(are_reached, self._starts, axis=1, dtype=np.int32) / self._counts
        scores -= (self._least - shares).max(axis=1).clip(min=0)
        best = int(scores.argmax())
        return best, float(scores[best])

    def _table(self, grid: AnchorGrid, boxes: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
        sides = boxes[:, 2:] - boxes[:, :2]
        shape = (len(self.scales), len(self.ratios), len(boxes))
        ious = np.zeros(shape, np.float32)
        (unit,) = anchor_shapes([self.scales.tolist()], [self.ratios.tolist()])
        unit = unit.astype(np.float32)
        flat = ious.reshape(-1, len(boxes))
        for stride, distance in zip(grid.strides, grid.distances(boxes, image_sizes)):
            for row, anchor in zip(flat, unit):
                np.maximum(row, iou_at(distance, sides, anchor * stride), out=row)
        return ious


def _steps(low: float, high: float) -> np.ndarray:
    """Powers of 2 in steps, the nearest to both ends and those between."""
    first, last = np.round(_STEPS * np.log2([low, high]))
    return 2.0 ** (np.arange(first, last + 1) / _STEPS)
