"""All that is checked of a config before anything is read or built."""

import logging

from detectron2.config import CfgNode

from ...config import check_config
from ...errors import UserError
from ..scaling import scaled_config
from .config_conflicts import conflict_errors
from .config_probes import probe_errors, solver_errors
from .config_values import value_errors
from .config_warnings import conflict_warnings

logger = logging.getLogger("detectron2.config")


def config_errors(cfg: CfgNode, training: bool = True) -> list[str]:
    """A sentence for each mistake in a config; empty: there is none.

    Args:
        cfg: of :func:`retinanet_plugin.config.load_config`.
        training: whether the keys that only training reads count, too.
    """
    try:
        check_config(cfg)
    except UserError as error:
        return [str(error)]
    # Each needs what the one before it has found right.
    for check in (value_errors, probe_errors, conflict_errors, solver_errors):
        errors = list(check(cfg, training))
        if errors:
            return errors
    return []


def config_warnings(cfg: CfgNode, training: bool = True) -> list[str]:
    """A sentence for what is probably not meant; of a config without :func:`config_errors`."""
    return list(conflict_warnings(cfg, training))


def check_values(cfg: CfgNode, training: bool = True, num_processes: int = 1) -> None:
    """Log the warnings of a config.

    Args:
        cfg, training: see :func:`config_errors`.
        num_processes: that train together.

    Raises:
        UserError: its first error, and how many others there are.
    """
    errors = config_errors(cfg, training)
    # Batch, rate and periods may become others.
    scaled = scaled_config(cfg, num_processes) if training and not errors else cfg
    if scaled != cfg:
        errors = [f"{_as_scaled(cfg)}{error}" for error in config_errors(scaled)]
    if errors:
        more = len(errors) - 1
        count = f" ({more} more: python -m retinanet_plugin doctor lists all mistakes)"
        raise UserError(errors[0] + (count if more else ""))
    written = config_warnings(cfg, training)
    for warning in config_warnings(scaled, training):
        logger.warning(warning if warning in written else f"{_as_scaled(cfg)}{warning}")


def _as_scaled(cfg: CfgNode) -> str:
    """What a sentence begins with whose values are not those that were written."""
    solver = cfg.SOLVER
    keys = (f"REFERENCE_{name}" for name in ("IMS_PER_BATCH", "WORLD_SIZE"))
    key = next(key for key in keys if solver[key])
    return f"as scaled by SOLVER.{key} {solver[key]}, "
