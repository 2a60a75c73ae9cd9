"""RetinaNets of ``torchvision.models.detection``, and DeepForest's, which are such."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from ..errors import UserError
from .head import BOX_HEAD, CLASS_HEAD, count_classes, reorder_anchors
from .names import Rule, rename, weights_below
from .resnet import (
    COUNTERS,
    IMAGENET_PIXELS,
    resnet_rules,
    resnet_settings,
    scale_norms,
    top_block_settings,
)
from .translated import BACKBONE, Translated

_MARKER = "head.classification_head.cls_logits.weight"
# Of torchvision's models for COCO: background, and ids up to 90 with ten that COCO never used.
_COCO_OUTPUTS = 91
_SIZES = [[x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))] for x in (32, 64, 128, 256, 512)]
# What torchvision does that no weights show.
_SETTINGS = {
    **IMAGENET_PIXELS,
    "MODEL.ANCHOR_GENERATOR.NAME": "WholePixelAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": _SIZES,
    "MODEL.RETINANET.CLIP_BEFORE_NMS": True,
    "TEST.DETECTIONS_PER_IMAGE": 300,
}


def from_torchvision(
    checkpoint: dict[str, Any], class_names: Sequence[str], source: str
) -> Translated:
    """A ``retinanet_resnet50_fpn`` or ``retinanet_resnet50_fpn_v2``.

    Args:
        checkpoint: with ``model``, the state dict, perhaps below a prefix such as ``model.``.
        class_names: of its classes, with or without the background that is class 0; empty:
            not known.
        source: what names the file, for errors.

    Raises:
        UserError: it is something else, or the names are too many or too few.
    """
    state = weights_below(checkpoint["model"], _MARKER, source, "a RetinaNet of torchvision")
    state = {n: x for n, x in state.items() if n.startswith(("backbone.", "head."))}
    has_norms = any(name.startswith("head.classification_head.conv.0.1.") for name in state)
    weights = rename(state, _rules(has_norms), COUNTERS, source)
    if has_norms:  # of which the convolutions have no bias
        _add_biases(weights)
    outputs = count_classes(weights, source)
    kept, names = _classes(outputs, class_names, source)
    settings = _settings(weights, has_norms, len(kept), source)
    # torchvision sets the eps of its frozen norms to 0 when it loads its own weights for COCO.
    is_frozen = not any(name.endswith(COUNTERS) for name in state)
    if is_frozen and not has_norms and outputs == _COCO_OUTPUTS:
        scale_norms(weights, BACKBONE, old_eps=0.0)
    reorder_anchors(weights, outputs, kept)
    version = "retinanet_resnet50_fpn_v2" if has_norms else "retinanet_resnet50_fpn"
    return Translated(f"torchvision's {version}", weights, settings, names)


def _rules(has_norms: bool) -> list[Rule]:
    """A ``.0`` that newer versions of torchvision have between is optional."""
    rules = resnet_rules("backbone.body.", BACKBONE)
    for i in range(3):
        for old, new in (("inner", "lateral"), ("layer", "output")):
            pattern = rf"backbone\.fpn\.{old}_blocks\.{i}(?:\.0)?\.(weight|bias)"
            rules.append((pattern, rf"backbone.fpn_{new}{i + 3}.\1"))
    rules.append((r"backbone\.fpn\.extra_blocks\.(p[67]\.\w+)", r"backbone.top_block.\1"))
    for old, subnet, last, new in (
        ("classification", "cls", "cls_logits", CLASS_HEAD),
        ("regression", "bbox", "bbox_reg", BOX_HEAD),
    ):
        head, found = rf"head\.{old}_head\.", f"head.{subnet}_subnet."
        for i in range(4):
            conv = 3 * i if has_norms else 2 * i
            rules.append((rf"{head}conv\.{i}\.0\.(weight|bias)", rf"{found}{conv}.\1"))
            if has_norms:
                rules.append((rf"{head}conv\.{i}\.1\.(weight|bias)", rf"{found}{conv + 1}.\1"))
            else:  # older versions of torchvision count activations
                rules.append((rf"{head}conv\.{2 * i}\.(weight|bias)", rf"{found}{conv}.\1"))
        rules.append((rf"{head}{last}\.(weight|bias)", rf"{new}\1"))
    return rules


def _add_biases(weights: dict[str, Tensor]) -> None:
    for name in [n for n in weights if "_subnet." in n and weights[n].dim() == 4]:
        bias = name.removesuffix("weight") + "bias"
        weights.setdefault(bias, torch.zeros(len(weights[name])))


def _classes(outputs: int, class_names: Sequence[str], source: str) -> tuple[list[int], list[str]]:
    """Which outputs are classes, and their names."""
    names = list(class_names)
    if not names and outputs == _COCO_OUTPUTS:
        things = [category for category in COCO_CATEGORIES if category["isthing"]]
        return [int(x["id"]) for x in things], [str(x["name"]) for x in things]
    if not names or len(names) == outputs:
        return list(range(outputs)), names
    if len(names) == outputs - 1:
        return list(range(1, outputs)), names
    raise UserError(
        f"{source} has {outputs} class scores, and {len(names)} class names were given: give "
        f"{outputs}, or {outputs - 1} if class 0 is the background"
    )


def _settings(
    weights: dict[str, Tensor], has_norms: bool, num_classes: int, source: str
) -> dict[str, Any]:
    settings = {
        **_SETTINGS,
        **resnet_settings(weights, BACKBONE, source),
        **top_block_settings(weights),
        "MODEL.RETINANET.NUM_CLASSES": num_classes,
    }
    if has_norms:
        settings["MODEL.RETINANET.NORM"] = "GN"
        settings["MODEL.RETINANET.BBOX_REG_LOSS_TYPE"] = "giou"
    return settings
