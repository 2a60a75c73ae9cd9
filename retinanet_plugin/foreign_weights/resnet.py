"""ResNets with the names that torchvision, timm and mmdetection have for them."""

import re
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .names import Rule

# By the numbers of blocks, with and without bottlenecks.
_DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
COUNTERS = ("num_batches_tracked",)
# Of the images that weights were trained on: RGB, 0 to 255, as torchvision's and timm's usual ones
# in 0 to 1 (0.485, 0.456, 0.406 and 0.229, 0.224, 0.225).
IMAGENET_MEAN, IMAGENET_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
IMAGENET_PIXELS = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": IMAGENET_MEAN,
    "MODEL.PIXEL_STD": IMAGENET_STD,
}


def resnet_rules(old: str, new: str) -> list[Rule]:
    """Rules from names that begin with ``old`` to Detectron2's, which begin with ``new``."""
    old = re.escape(old)
    rules = [
        (old + r"conv1\.weight", new + "stem.conv1.weight"),
        (old + r"bn1\.(\w+)", new + r"stem.conv1.norm.\1"),
    ]
    for stage in (1, 2, 3, 4):
        block = rf"{old}layer{stage}\.(\d+)\."
        found = rf"{new}res{stage + 1}.\1."
        rules += [
            (block + r"conv(\d)\.weight", found + r"conv\2.weight"),
            (block + r"bn(\d)\.(\w+)", found + r"conv\2.norm.\3"),
            (block + r"downsample\.0\.weight", found + "shortcut.weight"),
            (block + r"downsample\.1\.(\w+)", found + r"shortcut.norm.\2"),
        ]
    return rules


def resnet_settings(weights: dict[str, Tensor], prefix: str, source: str) -> dict[str, Any]:
    """Keys of the config that build the ResNet whose weights, under Detectron2's names, these are.

    Args:
        weights: with the names that :func:`resnet_rules` makes.
        prefix: their ``new``.
        source: what names the file, for errors.

    Raises:
        UserError: Detectron2 has no ResNet of so many blocks.
    """
    blocks = [
        {n.split(".")[0] for n in _below(weights, f"{prefix}res{stage}.")} for stage in range(2, 6)
    ]
    counts = tuple(len(names) for names in blocks)
    is_bottleneck = f"{prefix}res2.0.conv3.weight" in weights
    depth = _DEPTHS.get((counts, is_bottleneck))
    if depth is None:
        kind = "bottlenecks" if is_bottleneck else "basic blocks"
        raise UserError(
            f"{source} has a backbone of {counts} {kind}, which is no ResNet-18, 34, 50, 101 or "
            "152: take weights of one of these"
        )
    settings: dict[str, Any] = {"MODEL.RESNETS.DEPTH": depth, "MODEL.RESNETS.STRIDE_IN_1X1": False}
    if not is_bottleneck:
        return {**settings, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
    middle = weights.get(f"{prefix}res2.0.conv2.weight")
    width, width_of_group = (64, 64) if middle is None else middle.shape[:2]
    if (width, width_of_group) != (64, 64):  # ResNeXt, or a wide ResNet
        settings["MODEL.RESNETS.NUM_GROUPS"] = width // width_of_group
        settings["MODEL.RESNETS.WIDTH_PER_GROUP"] = width_of_group
    return settings


def top_block_settings(weights: dict[str, Tensor]) -> dict[str, Any]:
    """P6 is made from P5, not from C5, if its convolution has as many inputs as outputs."""
    p6 = weights.get("backbone.top_block.p6.weight")
    if p6 is not None and p6.shape[0] == p6.shape[1]:
        return {"MODEL.FPN.TOP_BLOCK_IN_FEATURE": "p5"}
    return {}


def scale_norms(weights: dict[str, Tensor], prefix: str, old_eps: float) -> None:
    """Make frozen norms that add ``old_eps`` to variances those of Detectron2, which add 1e-5."""
    for name in list(weights):
        weight = name.replace("running_var", "weight")
        if name.startswith(prefix) and name != weight and weight in weights:
            variance = weights[name].double()
            factor = torch.sqrt((variance + 1e-5) / (variance + old_eps))
            weights[weight] = (weights[weight].double() * factor).float()


def _below(weights: dict[str, Tensor], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in weights if name.startswith(prefix)]
