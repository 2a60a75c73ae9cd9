"""Networks of timm under the FPN (github.com/huggingface/pytorch-image-models)."""

from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from .errors import UserError

_NORMS = ("", "FrozenBN")
# What timm and its networks raise for names, options and sizes of images that they do not know;
# OSError for names with hf-hub: or local-dir: that are not found.
_REFUSALS = (
    AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError
)  # fmt: skip


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> "TimmBackbone":
    """Build the network that ``MODEL.TIMM.NAME`` names, with new weights.

    ``MODEL.WEIGHTS`` loads others: ``timm://NAME`` those of timm, or a file of them.
    ``MODEL.BACKBONE.FREEZE_AT`` is as :meth:`TimmBackbone.freeze` has it; with ``MODEL.TIMM.NORM``
    ``FrozenBN`` all batch norms are frozen.

    Args:
        cfg (CfgNode): with the keys of :func:`add_retinanet_config`.
        input_shape (ShapeSpec): of the images; ``channels`` is read.

    Raises:
        UserError: timm is not installed, has no such network, or one without the features that
            ``MODEL.FPN.IN_FEATURES`` asks for, or one that takes images of one size alone.
    """
    timm = import_timm()
    name, norm = cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.NORM
    if norm not in _NORMS:
        raise UserError(
            f"MODEL.TIMM.NORM is {norm!r}: write FrozenBN, or '' for the norms that timm builds"
        )
    if not name:
        raise UserError("MODEL.TIMM.NAME is empty: name a network of timm, such as resnet50d")
    net: Any = _create(name, input_shape.channels)
    wanted = {x for x in cfg.MODEL.FPN.IN_FEATURES if x.startswith("res")}
    if cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE.startswith("res"):
        wanted.add(cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE)
    index = _index_of_features(net)
    missing = sorted(wanted - index.keys())
    if missing:
        raise UserError(
            f"MODEL.TIMM.NAME is {name}, which has features of the strides "
            f"{net.feature_info.reduction()} and so no {' and no '.join(missing)} for the FPN "
            "(res3, res4 and res5 are 8, 16 and 32): choose another network, such as resnet50d"
        )
    # What only deeper features need is not built.
    last = max((index[x] for x in wanted), default=-1)
    if 0 <= last < len(net.feature_info.reduction()) - 1:
        net = _create(name, input_shape.channels, out_indices=tuple(range(last + 1)))
    backbone = TimmBackbone(net, name, input_shape.channels)
    backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    if norm == "FrozenBN":
        # Some norms of timm hold an activation, which Detectron2's own conversion would lose.
        backbone.net = timm.layers.freeze_batch_norm_2d(backbone.net)
    return backbone


class TimmBackbone(Backbone):
    """A network of timm as a bottom-up network of Detectron2.

    Its features are called ``res2``, ``res3``, ... by their strides 4, 8, ...
    """

    def __init__(self, net: nn.Module, name: str, in_channels: int = 3) -> None:
        """
        Args:
            net: of timm, made with ``features_only=True``.
            name: of the network, for errors.
            in_channels: of images.

        Raises:
            UserError: it does not take images of any size.
        """
        super().__init__()
        self.net = net
        self._in_channels = in_channels
        info: Any = net.feature_info
        self._channels, self._strides = list(info.channels()), list(info.reduction())
        self._index = _index_of_features(net)
        self._is_nhwc = str(getattr(net, "output_fmt", "")).endswith("NHWC")
        self._check_sizes(name)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (N, C, H, W), H and W multiples of :attr:`size_divisibility`.

        Returns:
            ``{"res3": (N, channels, H/8, W/8), ...}``.
        """
        features = self._features(images)
        return {name: features[i] for name, i in self._index.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._channels[i], stride=self._strides[i])
            for name, i in self._index.items()
        }

    @property
    def size_divisibility(self) -> int:
        return max(self._strides)

    def freeze(self, freeze_at: int) -> None:
        """Freeze all that features of strides up to 2^freeze_at are computed from.

        As in Detectron2's ResNet, 0 is nothing, 2 is all up to ``res2``, and batch norms keep their
        statistics. Which parameters these are, the gradients of the features say.

        Args:
            freeze_at: 0 to 5.
        """
        features = [
            feature
            for feature, stride in zip(self._try(), self._strides)
            if freeze_at and stride <= 2**freeze_at
        ]
        if not features:
            return
        parameters = list(self.parameters())
        total = torch.stack([feature.sum() for feature in features]).sum()
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        used = {p for p, grad in zip(parameters, grads) if grad is not None}
        for p in used:
            p.requires_grad_(False)
        freeze_batch_norm = import_timm().layers.freeze_batch_norm_2d
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d) and child.weight in used:
                    setattr(parent, name, freeze_batch_norm(child))

    def _features(self, images: Tensor) -> list[Tensor]:
        features = self.net(images)
        if self._is_nhwc:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return features

    def _try(self) -> list[Tensor]:
        """The features of an image of other proportions than networks are trained with."""
        first = next(self.parameters())
        size = self.size_divisibility
        image = first.new_zeros(1, self._in_channels, 2 * size, 3 * size)
        was_training = self.training
        self.eval()  # which leaves the statistics of norms as they are
        try:
            with torch.enable_grad():
                return self._features(image)
        finally:
            self.train(was_training)

    def _check_sizes(self, name: str) -> None:
        size = self.size_divisibility
        expected = [
            (channels, 2 * size // stride, 3 * size // stride)
            for channels, stride in zip(self._channels, self._strides)
        ]
        try:
            found = [tuple(feature.shape[1:]) for feature in self._try()]
            reason = f"features have the shapes {found} and not {expected}"
        except _REFUSALS as error:
            found, reason = [], " ".join(str(error).split())
        if found != expected:
            raise UserError(
                f"MODEL.TIMM.NAME is {name}, which does not take images of any size ({reason}): "
                "choose a network that does, such as resnet50d, convnext_tiny or a swin"
            )


def import_timm() -> ModuleType:
    """timm, which only those need who choose one of its networks.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "MODEL.FPN.BOTTOM_UP build_timm_backbone needs a package: pip install timm"
        ) from error
    return timm


def _create(name: str, num_channels: int, **options: Any) -> nn.Module:
    """A network without weights; one that is made for one size takes others if it can."""
    timm = import_timm()
    options = {"features_only": True, "in_chans": num_channels, **options}
    try:
        known = timm.get_pretrained_cfg(name)
        if known is not None and known.fixed_input_size:
            try:
                # Swin: windows are padded, and shifted in every stage.
                return timm.create_model(name, strict_img_size=False, **options)
            except TypeError:
                pass
        return timm.create_model(name, **options)
    except _REFUSALS as error:
        raise UserError(
            f"MODEL.TIMM.NAME is {name!r}, which this timm, {timm.__version__}, does not build "
            f"({' '.join(str(error).split())}): choose one of timm.list_models()"
        ) from error


def _index_of_features(net: nn.Module) -> dict[str, int]:
    """Where each feature is in what ``net`` returns; of several of one stride the deepest."""
    info: Any = net.feature_info
    return {
        f"res{stride.bit_length() - 1}": i
        for i, stride in enumerate(info.reduction())
        if stride >= 4 and stride & (stride - 1) == 0
    }
