"""ResNets for classification, of torchvision and timm, as a backbone to start from."""

import re
from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from .names import rename, weights_below
from .resnet import COUNTERS, IMAGENET_PIXELS, resnet_rules, resnet_settings
from .translated import BACKBONE, Translated

_MARKER = "layer1.0.conv1.weight"
_OF_CLASSES = ("fc.weight", "fc.bias")
_DETECTORS = r"(^|\.)(fpn|neck|head|bbox_head|roi_heads|roi_head|rpn_head|rpn)\."


def from_classifier(
    checkpoint: dict[str, Any], class_names: Sequence[str], source: str
) -> Translated:
    """The backbone of a RetinaNet; all else in it is new.

    Args:
        checkpoint: with ``model``, the state dict of torchvision's or timm's ``resnet50``, say,
            perhaps below a prefix such as ``module.``.
        class_names: must be empty: its classes are not those of a detector.
        source: what names the file, for errors.

    Raises:
        UserError: it is something else.
    """
    state = checkpoint["model"]
    if class_names:
        raise UserError(
            "--class-names are given, but a backbone has no classes: leave them out (training "
            "takes them from the data)"
        )
    if found := next((name for name in state if re.search(_DETECTORS, name)), None):
        raise UserError(
            f"{source} has {found}, so that it is a detector and no network for classification: "
            "name the format of the detector, torchvision or mmdetection"
        )
    state = weights_below(state, _MARKER, source, "a ResNet")
    if any(name.startswith("conv1.") and name != "conv1.weight" for name in state):
        raise UserError(
            f"{source} has a stem of several convolutions, which is no plain ResNet: build the "
            "network itself, with MODEL.FPN.BOTTOM_UP build_timm_backbone and MODEL.TIMM.NAME"
        )
    ignored = (*COUNTERS, *_OF_CLASSES)
    weights = rename(state, resnet_rules("", BACKBONE), ignored, source)
    settings = {**IMAGENET_PIXELS, **resnet_settings(weights, BACKBONE, source)}
    return Translated("a ResNet for ImageNet", weights, settings, only_backbone=True)
