"""How a config differs from the one that a file carries as a text of YAML."""

from typing import Any

import yaml
from detectron2.config import CfgNode

from ..config import flattened, load_config

# Where things lie on this machine, and how fast the same training is there.
_MAY_DIFFER = ("OUTPUT_DIR", "MODEL.WEIGHTS", "DATASETS.COCO_JSON", "DATALOADER.NUM_WORKERS")


def changed_values(saved_config: str, cfg: CfgNode) -> list[str]:
    """``KEY old -> new`` of each key of the config that differs from that of a checkpoint.

    Args:
        saved_config: a text of YAML.

    Raises:
        ValueError: it is none.
    """
    return [f"{key} {before} -> {now}" for key, before, now in _changes(saved_config, cfg)]


def changed_model(saved_config: Any, cfg: CfgNode) -> list[str]:
    """``KEY was OLD, is NEW`` of the keys under MODEL, which decide what weights fit.

    Args:
        saved_config: what a file has as its config; of what is none, nothing is known.
    """
    try:
        changes = _changes(saved_config, cfg)
    except ValueError:
        return []
    return [f"{key} was {a}, is {b}" for key, a, b in changes if key.startswith("MODEL.")]


def _changes(saved_config: Any, cfg: CfgNode) -> list[tuple[str, Any, Any]]:
    try:
        config = yaml.safe_load(saved_config)
    except (yaml.YAMLError, AttributeError, TypeError):
        config = None
    if not isinstance(config, dict):
        raise ValueError("its config is no text of YAML")
    # A key that there was not yet did nothing.
    saved = {**_values(load_config("")), **dict(flattened(config))}
    now = _values(cfg)
    return [
        (key, saved.get(key), now.get(key))
        for key in {**saved, **now}
        if saved.get(key) != now.get(key) and key not in _MAY_DIFFER
    ]


def _values(cfg: CfgNode) -> dict[str, Any]:
    """By keys, as a file would have them."""
    return dict(flattened(yaml.safe_load(cfg.dump())))
