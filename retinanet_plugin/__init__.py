"""RetinaNet of replaceable parts for Detectron2. Importing this package registers every part.

Reuse from another Detectron2 project::

    from retinanet_plugin import add_retinanet_config
    add_retinanet_config(cfg)  # then: cfg.MODEL.META_ARCHITECTURE = "ModularRetinaNet"
"""

import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

# Ctrl-C during the seconds that the imports of ``python -m retinanet_plugin`` take needs no
# traceback. Python looks for what it is to run, and the name of the program is "-m" until then.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "retinanet_plugin needs Detectron2 (0.6 or main), which could not be imported "
        f"({error}); install torch first, then run: python -m pip install --no-build-isolation "
        "'git+https://github.com/facebookresearch/detectron2.git'"
    ) from error
import torch

if not hasattr(torch, "get_autocast_dtype"):
    raise ImportError(
        f"retinanet_plugin needs PyTorch 2.4 or newer, and this is {torch.__version__}: update it"
    )

with warnings.catch_warnings():
    # Of Detectron2 and fvcore, while they are imported: nobody here can mend it.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    # Which Detectron2's anchors make PyTorch say, once in a process: it is said here.
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release")
    torch.meshgrid(torch.zeros(1), torch.zeros(1))

    from .backbone import build_fpn_p3p7_backbone
    from .basic_resnet import build_basic_resnet_backbone
    from .config import add_retinanet_config
    from .errors import UserError
    from .foreign_parts import WholePixelAnchorGenerator, build_fpn_linear_p7_backbone
    from .head import RETINANET_HEAD_REGISTRY, RetinaNetHead
    from .losses import (
        BOX_LOSS_REGISTRY,
        CLS_LOSS_REGISTRY,
        FocalLoss,
        SigmoidLoss,
        sigmoid_focal_loss,
    )
    from .matching import MATCHER_REGISTRY, ATSSMatcher, IoUMatcher
    from .meta_arch import ModularRetinaNet
    from .timm_backbone import build_timm_backbone

if TYPE_CHECKING:
    from .deploy import Predictor

__version__ = "0.1.0"

__all__ = [
    "BOX_LOSS_REGISTRY",
    "CLS_LOSS_REGISTRY",
    "MATCHER_REGISTRY",
    "RETINANET_HEAD_REGISTRY",
    "ATSSMatcher",
    "FocalLoss",
    "IoUMatcher",
    "ModularRetinaNet",
    "Predictor",
    "RetinaNetHead",
    "SigmoidLoss",
    "UserError",
    "WholePixelAnchorGenerator",
    "add_retinanet_config",
    "build_basic_resnet_backbone",
    "build_fpn_linear_p7_backbone",
    "build_fpn_p3p7_backbone",
    "build_timm_backbone",
    "sigmoid_focal_loss",
]


def __getattr__(name: str) -> Any:
    """What takes longer to import than all else, when it is asked for."""
    if name == "Predictor":
        from .deploy import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
