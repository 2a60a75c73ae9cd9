"""Weights of timm as ``MODEL.WEIGHTS``: ``timm://resnet50d.ra2_in1k``, or a file of them."""

import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

from ..errors import UserError
from ..timm_backbone import TimmBackbone, import_timm

_ADDRESS = "timm://"
_FILE = "model.safetensors"
# Of PIXEL_MEAN and PIXEL_STD, up to 255: what rounding in configs makes.
_NEAR = 0.6


class TimmHandler(PathHandler):
    """Fetches weights from the Hugging Face hub into its cache, once."""

    def _get_supported_prefixes(self) -> list[str]:
        return [_ADDRESS]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """The file of weights; OSError: it cannot be fetched."""
        from huggingface_hub import hf_hub_download

        try:
            known = import_timm().get_pretrained_cfg(path.removeprefix(_ADDRESS))
            if known is None or not known.hf_hub_id:
                raise LookupError("timm has no weights of that name")
            return str(hf_hub_download(known.hf_hub_id, known.hf_hub_filename or _FILE))
        except Exception as error:  # of the network, nearly anything
            raise OSError(" ".join(str(error).split())) from error

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return bool(self._get_local_path(path))


PathManager.register_handler(TimmHandler(), allow_override=True)


def with_names_of_model(
    state: dict[str, Any], model: nn.Module, cfg: CfgNode | None, path: str
) -> dict[str, Any]:
    """The weights of a file, with the model's names if the file has timm's.

    timm builds some networks with other names when it makes features of them: ``stages_0.blocks``
    of ``stages.0.blocks``.

    Args:
        state: of the file; names it does not share with a network of timm stay.
        model: one with a :class:`TimmBackbone`, or any other, for which nothing is changed.
        cfg: how images are given to the model; None: unknown.
        path: of the file.

    Raises:
        UserError: timm trained them on other pixels than ``cfg`` gives.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, TimmBackbone)]
    if not found:
        return state
    prefix, backbone = found[0]
    ours = {_plain(name): f"{prefix}.net.{name}" for name in backbone.net.state_dict()}
    if not any(_plain(name) in ours for name in state):
        return state
    if cfg is not None:
        _check_pixels(backbone.net, cfg, path)
    return {ours.get(_plain(name), name): x for name, x in state.items()}


def _plain(name: str) -> str:
    return re.sub("[._]", ".", name.removeprefix("model."))


def _check_pixels(net: nn.Module, cfg: CfgNode, path: str) -> None:
    known: Any = net.pretrained_cfg
    if path.startswith(_ADDRESS):
        known = import_timm().get_pretrained_cfg(path.removeprefix(_ADDRESS)).to_dict()
    wanted = {
        f"MODEL.PIXEL_{key.upper()}": [round(255 * x, 3) for x in known[key]]
        for key in ("mean", "std")
    }
    pairs = zip(wanted.values(), (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    is_same = cfg.INPUT.FORMAT == "RGB" and all(
        len(given) == len(right) and all(abs(a - b) < _NEAR for a, b in zip(given, right))
        for right, given in pairs
    )
    if not is_same:
        options = " ".join(f'{key} "{values}"' for key, values in wanted.items())
        raise UserError(
            f"MODEL.WEIGHTS {path} were trained by timm on other pixels than this config gives: "
            f"set INPUT.FORMAT RGB {options}"
        )
