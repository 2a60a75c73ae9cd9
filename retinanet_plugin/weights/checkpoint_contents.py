"""What a checkpoint holds beside weights and the state of a training: enough to predict with."""

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import load_config
from ..config_merging import with_floats
from ..errors import UserError
from .weight_files import read_weights


def describe_training(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint says about its weights, so that it alone is enough to predict."""
    package = importlib.import_module("..", __package__)
    return {
        "class_names": class_names_of(cfg.DATASETS.TRAIN),
        "preprocessing": {
            **_pixels(cfg),
            "min_size_test": int(cfg.INPUT.MIN_SIZE_TEST),
            "max_size_test": int(cfg.INPUT.MAX_SIZE_TEST),
        },
        "config": cfg.dump(),
        "versions": {
            "retinanet_plugin": package.__version__,
            "detectron2": detectron2.__version__,
            "torch": re.sub(r"\+.*", "", torch.__version__),
        },
    }


def other_pixels(checkpoint: dict[str, Any], cfg: CfgNode) -> list[str]:
    """What a file says of its images that differs in ``cfg``: "PIXEL_STD [57.0] and not [1.0]".

    Args:
        checkpoint: of this package, or with the buffers that some of Detectron2's have.
    """
    weights = checkpoint["model"]
    buffers = {key: weights[key] for key in ("pixel_mean", "pixel_std") if key in weights}
    saved = {key: torch.as_tensor(x).flatten().tolist() for key, x in buffers.items()}
    saved.update(checkpoint.get("preprocessing") or {})
    return [
        f"{key.upper()} {saved[key]} and not {here}"
        for key, here in _pixels(cfg).items()
        if key in saved and not _is_close(saved[key], here)
    ]


def _pixels(cfg: CfgNode) -> dict[str, Any]:
    return {
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": [float(x) for x in cfg.MODEL.PIXEL_MEAN],
        "pixel_std": [float(x) for x in cfg.MODEL.PIXEL_STD],
    }


def _is_close(saved: Any, here: Any) -> bool:
    if isinstance(here, str):
        return bool(saved == here)
    if not isinstance(saved, list | tuple) or len(saved) != len(here):
        return False
    return all(isinstance(x, int | float) and abs(x - y) < 0.01 for x, y in zip(saved, here))


def described_training(path: str) -> tuple[CfgNode, list[str]]:
    """The other way round: what a file says about its weights.

    Args:
        path: a checkpoint or a file of ``convert-weights``.

    Returns:
        the config of its training, with ``MODEL.WEIGHTS`` set to ``path``, and the class names,
        which are empty if the file has none.

    Raises:
        UserError: the file cannot be read, or has no config that this version understands.
    """
    checkpoint = read_weights(path, "the checkpoint")
    text = checkpoint.get("config")
    if not isinstance(text, str):
        raise UserError(
            f"the checkpoint {path} does not say how its model is built: give the config file as "
            "well"
        )
    cfg = config_of(text, f"the checkpoint {path}")
    cfg.MODEL.WEIGHTS = path
    return cfg, [str(name) for name in checkpoint.get("class_names") or ()]


def config_of(text: str, source: str) -> CfgNode:
    """The config that a file carries as a text.

    Args:
        text: of YAML.
        source: what names the file.

    Raises:
        UserError: this version does not understand it.
    """
    cfg = load_config("")
    cfg.set_new_allowed(True)  # keys of projects that use this package
    try:
        cfg.merge_from_other_cfg(CfgNode(with_floats(cfg, yaml.safe_load(text))))
    except (yaml.YAMLError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the config in {source} cannot be used ({reason}): give a config file"
        ) from error
    return cfg


def class_names_of(datasets: Sequence[str]) -> list[str]:
    """Of the first of these data sets that was read, so that Detectron2 knows them; or none."""
    known = (MetadataCatalog.get(name).get("thing_classes") for name in datasets)
    return [str(name) for name in next(filter(None, known), ())]


_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


def plain(value: Any, place: str) -> Any:
    """``value`` of types that PyTorch reads with ``weights_only=True``.

    Raises:
        UserError: that cannot be.
    """
    if type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        return {plain(key, place): plain(x, f"{place}.{key}") for key, x in value.items()}
    if isinstance(value, list | tuple):
        values = [plain(x, place) for x in value]
        return values if isinstance(value, list) else tuple(values)
    number = getattr(value, "item", None)  # of numpy
    if number is not None and getattr(value, "ndim", None) == 0:
        return number()
    raise UserError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}, and checkpoints hold "
        "tensors and plain values alone: make the state_dict() that it comes from return such"
    )
