"""RetinaNets of mmdetection 2 and 3, with a ResNet or ResNeXt."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import UserError
from .head import BOX_HEAD, CLASS_HEAD, count_classes, reorder_anchors
from .names import Rule, rename, weights_below
from .resnet import COUNTERS, IMAGENET_PIXELS, resnet_rules, resnet_settings, top_block_settings
from .translated import BACKBONE, Translated

_MARKER = "bbox_head.retina_cls.weight"
# Values in the text of a config, where the file has one, that another model would have.
_REFUSED = {
    r"add_extra_convs='(on_lateral)'": "P6 made from a lateral convolution",
    r"octave_base_scale=(?!4\b)(\d+)": "anchors of another size",
    r"center_offset=(?!0[.,)\s])([\d.]+)": "anchors that are moved",
    r"target_stds=\[(?!1\.0, 1\.0, 1\.0, 1\.0\])([^\]]+)\]": "deltas of another scale",
}
_NUMBERS = {
    r"\bscore_thr=([\d.]+)": ("MODEL.RETINANET.SCORE_THRESH_TEST", float),
    r"\bnms=dict\([^)]*iou_threshold=([\d.]+)": ("MODEL.RETINANET.NMS_THRESH_TEST", float),
    r"\bnms_pre=(\d+)": ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", int),
    r"\bmax_per_img=(\d+)": ("TEST.DETECTIONS_PER_IMAGE", int),
}


def from_mmdetection(
    checkpoint: dict[str, Any], class_names: Sequence[str], source: str
) -> Translated:
    """A RetinaNet of mmdetection.

    Args:
        checkpoint: with ``model``, the state dict, and perhaps ``meta``, in which mmdetection
            keeps the text of its config and the names of the classes.
        class_names: of its classes; empty: those of ``meta``, if it has any.
        source: what names the file, for errors.

    Raises:
        UserError: it is something else, or the names are too many or too few.
    """
    state = weights_below(checkpoint["model"], _MARKER, source, "a RetinaNet of mmdetection")
    state = {n: x for n, x in state.items() if n.startswith(("backbone.", "neck.", "bbox_head."))}
    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    _refuse_others(meta, text, source)
    has_norms = "bbox_head.cls_convs.0.gn.weight" in state
    weights = rename(state, _rules(has_norms), COUNTERS, source)
    num_classes = count_classes(weights, source)
    names = list(class_names) or _names_in(meta)
    if names and len(names) != num_classes:
        raise UserError(
            f"{source} is for {num_classes} classes, and has or was given {len(names)} names: "
            f"give {num_classes}"
        )
    settings = {
        **_settings(weights, has_norms, source),
        **_settings_in(text),
        "MODEL.RETINANET.NUM_CLASSES": num_classes,
    }
    reorder_anchors(weights, num_classes)
    return Translated("mmdetection's RetinaNet", weights, settings, names)


def _rules(has_norms: bool) -> list[Rule]:
    rules = resnet_rules("backbone.", BACKBONE)
    for i in range(3):
        for old, new in (("lateral", "lateral"), ("fpn", "output")):
            pattern = rf"neck\.{old}_convs\.{i}\.conv\.(weight|bias)"
            rules.append((pattern, rf"backbone.fpn_{new}{i + 3}.\1"))
    for i in (3, 4):
        pattern = rf"neck\.fpn_convs\.{i}\.conv\.(weight|bias)"
        rules.append((pattern, rf"backbone.top_block.p{i + 3}.\1"))
    layers = 3 if has_norms else 2  # in this package's subnets, to a convolution
    for old, subnet in (("cls", "cls"), ("reg", "bbox")):
        for i in range(8):
            conv = rf"bbox_head\.{old}_convs\.{i}"
            found = f"head.{subnet}_subnet."
            rules.append((rf"{conv}\.conv\.(weight|bias)", rf"{found}{layers * i}.\1"))
            if has_norms:
                rules.append((rf"{conv}\.gn\.(weight|bias)", rf"{found}{layers * i + 1}.\1"))
    rules.append((r"bbox_head\.retina_cls\.(weight|bias)", rf"{CLASS_HEAD}\1"))
    rules.append((r"bbox_head\.retina_reg\.(weight|bias)", rf"{BOX_HEAD}\1"))
    return rules


def _settings(weights: dict[str, Tensor], has_norms: bool, source: str) -> dict[str, Any]:
    """What weights show, and what is the same in all of mmdetection's own configs."""
    convs = [n for n, x in weights.items() if n.startswith("head.cls_subnet.") and x.dim() == 4]
    settings = {
        **IMAGENET_PIXELS,
        **resnet_settings(weights, BACKBONE, source),
        **top_block_settings(weights),
        "MODEL.BACKBONE.NAME": "build_fpn_linear_p7_backbone",
        "MODEL.RETINANET.NUM_CONVS": len(convs),
        "MODEL.RETINANET.CLIP_BEFORE_NMS": True,
    }
    if has_norms:
        settings["MODEL.RETINANET.NORM"] = "GN"
    return settings


def _settings_in(text: str) -> dict[str, Any]:
    """What the text of a config says."""
    settings: dict[str, Any] = {}
    for pattern, (key, kind) in _NUMBERS.items():
        if found := re.search(pattern, text):
            settings[key] = kind(found[1])
    if re.search(r"\bstyle='caffe'", text):
        settings["MODEL.RESNETS.STRIDE_IN_1X1"] = True
    if re.search(r"\brelu_before_extra_convs=True", text):
        settings["MODEL.BACKBONE.NAME"] = "build_fpn_p3p7_backbone"
    if re.search(r"\b(bgr_)?to_rgb=False", text):
        settings["INPUT.FORMAT"] = "BGR"
    for name in ("mean", "std"):
        if found := re.search(rf"\b{name}=\[([\d., ]+)\]", text):
            settings[f"MODEL.PIXEL_{name.upper()}"] = [float(x) for x in found[1].split(",")]
    return settings


def _refuse_others(meta: dict[str, Any], text: str, source: str) -> None:
    if str(meta.get("mmdet_version", "")).startswith(("0.", "1.")):
        raise UserError(
            f"{source} is of mmdetection {meta['mmdet_version']}, whose anchors and boxes are "
            "others: convert it with mmdetection 2 first"
        )
    for pattern, what in _REFUSED.items():
        if found := re.search(pattern, text):
            raise UserError(
                f"{source} has in its config {found[0]}, {what}, which is not translated: take a "
                "model of mmdetection's configs/retinanet"
            )


def _names_in(meta: dict[str, Any]) -> list[str]:
    dataset = meta.get("dataset_meta")
    for holder in (meta, dataset if isinstance(dataset, dict) else {}):
        for key in ("CLASSES", "classes"):
            if isinstance(holder.get(key), list | tuple):
                return [str(name) for name in holder[key]]
    return []
