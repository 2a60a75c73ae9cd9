"""The boxes of an image as pictures show them, above any score threshold."""

from dataclasses import dataclass

import numpy as np

from .boxes import Detections, Truth
from .errors import KINDS
from .matching import Matches

_FOUND_BY_NONE = 2


@dataclass
class ShownBox:
    """A box of the truth or a detection, (x, y, width, height) in pixels of its image."""

    kind: str  # "truth", "region", "hit", "false" or "ignored"
    box: list[float]
    label: str
    # Of a detection; of a truth that of the detection that finds it, 2 if none does.
    score: float
    why: str = ""  # it is a false alarm

    @property
    def is_truth(self) -> bool:
        return self.kind in ("truth", "region")

    def is_found(self, score_thresh: float) -> bool:
        """Whether detections from a score find this truth."""
        return score_thresh <= self.score < _FOUND_BY_NONE


def shown_boxes(
    truth: Truth,
    detections: Detections,
    matches: Matches,
    image: int,
    least_score: float,
    kinds: np.ndarray | None = None,
) -> list[ShownBox]:
    """Truth and regions to ignore, then detections, the best first.

    Args:
        truth: of N images.
        detections: D.
        matches: of both.
        image: the index of the one that is shown.
        least_score: detections below it are left out.
        kinds: (D,), why detections are false alarms, see :func:`kinds_of_false_alarms`.
    """
    found = np.flatnonzero((detections.image == image) & (detections.scores >= least_score))
    score_of = {int(matches.box[d]): float(detections.scores[d]) for d in found}
    boxes = [
        ShownBox(
            "region" if truth.is_crowd[b] else "truth",
            truth.boxes[b].tolist(),
            truth.class_names[truth.classes[b]],
            score_of.get(int(b), _FOUND_BY_NONE),
        )
        for b in np.flatnonzero(truth.image == image)
    ]
    names = list(KINDS.values())
    for d in found:
        kind = "hit" if matches.is_hit[d] else "ignored" if matches.is_ignored[d] else "false"
        why = names[kinds[d]] if kinds is not None and kind == "false" else ""
        score = float(detections.scores[d])
        label = f"{truth.class_names[detections.classes[d]]} {score:.2f}"
        boxes.append(ShownBox(kind, detections.boxes[d].tolist(), label, score, why))
    return boxes
