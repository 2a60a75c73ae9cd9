"""Merging files and options into a config, as Detectron2 does, with errors that a user can mend."""

import re
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, downgrade_config, upgrade_config
from detectron2.config.compat import guess_version

from .config_errors import check_keys, merging, no_section
from .errors import UserError


def merge_content(cfg: CfgNode, content: dict[str, Any], path: str) -> None:
    """Merge what :func:`retinanet_plugin.config_files.read_config_file` read from ``path``.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    with merging(cfg, path):
        _merge_file(cfg, with_floats(cfg, content), path)


def merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merge ``[KEY, VALUE, KEY, VALUE, ...]`` of a command line.

    Raises:
        UserError: they are no such pairs, an unknown key, or a value of the wrong type.
    """
    _check_opts(opts)
    source = "the options of the command line"
    check_keys(cfg, opts[::2], source)
    with merging(cfg, source):
        cfg.merge_from_list(_options_with_floats(cfg, opts))


def _merge_file(cfg: CfgNode, content: dict[str, Any], path: str) -> None:
    """As ``CfgNode.merge_from_file``, which would run code in the file."""
    for key, value in content.items():
        if isinstance(cfg.get(key), CfgNode) and not isinstance(value, dict):
            raise no_section(cfg, key, value, path)
    loaded = CfgNode(content)
    version = loaded.get("VERSION") or guess_version(loaded, path)
    if version == cfg.VERSION:
        cfg.merge_from_other_cfg(loaded)
        return
    if version != 1:
        raise UserError(f"{path} has VERSION {version!r}: write VERSION: {cfg.VERSION}")
    old = downgrade_config(cfg, to_version=version)
    old.merge_from_other_cfg(loaded)
    cfg.update(upgrade_config(old))


def _check_opts(opts: Sequence[str]) -> None:
    for option in opts[::2]:
        joined = re.fullmatch(r"([A-Z][A-Z0-9_.]*)=(.*)", option, re.DOTALL)
        if joined:
            raise UserError(
                f"the config option {option} has no space: write {' '.join(joined.groups())}, "
                'without the "="'
            )
    for option in opts:
        if option.startswith("--"):
            raise UserError(
                f"{option} stands after the config options and would be read as a key or a value "
                "of them: move it before --opts"
            )
    if len(opts) % 2:
        raise UserError(
            f"the config option {opts[-1]} has no value: write --opts KEY VALUE KEY VALUE ..."
        )


def with_floats(cfg: CfgNode, content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with floats for whole numbers where ``cfg`` has floats: yacs takes no int."""
    return {
        key: with_floats(cfg[key], value)
        if isinstance(value, dict) and isinstance(cfg.get(key), CfgNode)
        else _as_float(value, cfg.get(key))
        for key, value in content.items()
    }


def _options_with_floats(cfg: CfgNode, opts: Sequence[Any]) -> list[Any]:
    """As :func:`with_floats`, of ``[KEY, VALUE, ...]`` with known keys."""
    changed = list(opts)
    for i, (key, value) in enumerate(zip(opts[::2], opts[1::2])):
        usual: Any = cfg
        for name in key.split("."):
            usual = usual[name]
        if isinstance(usual, float) and re.fullmatch(r"[+-]?\d{1,15}", str(value)):
            changed[2 * i + 1] = float(value)
    return changed


def _as_float(value: Any, usual: Any) -> Any:
    is_whole = type(value) is int and abs(value) < 10**15
    return float(value) if is_whole and isinstance(usual, float) else value
