"""The best score threshold of each class, as ``report`` found them."""

import json
from collections.abc import Sequence

import torch
from detectron2.structures import Instances

from ..errors import UserError

_KEY = "score_thresholds"


class ScoreThresholds:
    """Leaves out the detections that score less than the threshold of their class."""

    def __init__(self, path: str, class_names: Sequence[str]) -> None:
        """
        Args:
            path: report.json of a report; "": nothing is left out.
            class_names: of the model, K; empty: the report's classes in their order.

        Raises:
            UserError: it cannot be read, is no report, or lacks a class of the model.
        """
        self._path = path
        known = _read(path) if path else {}
        missing = [name for name in class_names if path and name not in known]
        if missing:
            raise UserError(
                f"{path} has no score threshold of the class {missing[0]!r}, which the model "
                "detects: give the report of these weights"
            )
        names = class_names or list(known)
        self._thresholds = torch.tensor([known[name] for name in names if path])

    def __call__(self, found: Instances) -> Instances:
        if not self._path:
            return found
        if len(found) and int(found.pred_classes.max()) >= len(self._thresholds):
            raise UserError(
                f"{self._path} has score thresholds of {len(self._thresholds)} classes and the "
                "model detects more: give the report of these weights"
            )
        return found[found.scores >= self._thresholds[found.pred_classes]]


def _read(path: str) -> dict[str, float]:
    try:
        with open(path, "rb") as file:
            thresholds = json.load(file)[_KEY]
        return {str(name): float(value) for name, value in thresholds.items()}
    except OSError as error:
        raise UserError(
            f"the score thresholds {path} cannot be read ({error.strerror}): correct the path"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} has no score thresholds of classes: give report.json of the command report"
        ) from error
