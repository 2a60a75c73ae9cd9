"""Building the model of a config: what cannot be built, as one sentence."""

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
)
from torch import nn

from ..config import flattened
from ..errors import UserError, registered
from ..execution.cuda_graphs import CudaGraphs


def check_model(cfg: CfgNode) -> nn.Module:
    """Build the model: that takes a second, and its parts say what does not fit.

    Raises:
        UserError: a part is not registered, or cannot be built with these keys; or the model is of
            another kind.
    """
    model = cfg.MODEL
    build = registered(META_ARCH_REGISTRY, model.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    registered(BACKBONE_REGISTRY, model.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    anchor_generator = model.ANCHOR_GENERATOR.NAME
    registered(ANCHOR_GENERATOR_REGISTRY, anchor_generator, "MODEL.ANCHOR_GENERATOR.NAME")
    try:
        built = build(cfg)
    except UserError:
        raise
    except (
        *(AssertionError, ArithmeticError, AttributeError, ImportError, LookupError),
        *(RuntimeError, TypeError, ValueError),
    ) as error:
        # What Detectron2's own parts raise.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        if isinstance(error, KeyError):
            reason = _keys_with(error.args[0], cfg) or reason
        raise UserError(
            f"the model cannot be built from the keys under MODEL ({reason}): correct them"
        ) from error
    generator = getattr(built, "anchor_generator", None)
    if generator is None:
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {model.META_ARCHITECTURE}, whose model has no "
            "anchor_generator and is no RetinaNet: give the config of one, or set ModularRetinaNet"
        )
    if getattr(generator, "box_dim", 4) != 4:
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.NAME is {anchor_generator}, whose anchors are no (x1, y1, x2, "
            "y2): set DefaultAnchorGenerator"
        )
    if model.RETINANET.CUDA_GRAPH:
        CudaGraphs(built)  # refuses parts that a graph cannot hold
    return built


def _keys_with(value: object, cfg: CfgNode) -> str:
    """The keys under MODEL that have a value that Detectron2 did not find in a table of its."""
    return ", ".join(
        f"{key} is {value!r}"
        for key, other in flattened(cfg.MODEL, "MODEL.")
        if type(other) is type(value) and other == value
    )
