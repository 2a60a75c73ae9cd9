"""Detections as the package supervision has them: for its annotators, formats and tools."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from detectron2.structures import Instances

from ..errors import UserError

if TYPE_CHECKING:
    import supervision


def to_supervision(found: Instances, class_names: Sequence[str]) -> "supervision.Detections":
    """``found`` as ``supervision.Detections``, with ``class_name`` in its data.

    Raises:
        UserError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError("this needs a package: pip install supervision") from error
    detections = supervision.Detections.from_detectron2({"instances": found})
    names = [name_of(i, class_names) for i in found.pred_classes.tolist()]
    detections.data["class_name"] = np.array(names, dtype=str)
    return detections


def name_of(class_id: int, class_names: Sequence[str]) -> str:
    """The name of a class, or its number where the names are not known."""
    return class_names[class_id] if class_id < len(class_names) else str(class_id)
