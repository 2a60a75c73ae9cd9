"""ResNets of basic blocks of any width, which Detectron2's builder has at full width alone."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from .errors import UserError

# Of each stage; 18 and 34 are those of He et al., arXiv 1512.03385, table 1.
_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@BACKBONE_REGISTRY.register()
def build_basic_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet of two 3x3 convolutions a block, without bottlenecks.

    ``MODEL.RESNETS.DEPTH`` is 10 (a block a stage), 18 or 34, ``RES2_OUT_CHANNELS`` the width of
    the first stage, which the next ones double. Parameters have Detectron2's names: of the depths
    18 and 34 at 64 channels, its checkpoints fit.

    Args:
        cfg (CfgNode): ``STEM_OUT_CHANNELS``, ``NORM`` and ``OUT_FEATURES`` of ``MODEL.RESNETS`` and
            ``MODEL.BACKBONE.FREEZE_AT`` are read, too.
        input_shape (ShapeSpec): of the images; ``channels`` is read.

    Raises:
        UserError: there is no such depth.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in _BLOCKS:
        raise UserError(
            f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}: build_basic_resnet_backbone has 10, 18 and "
            "34; 50 and more are of build_resnet_backbone"
        )
    channels = resnets.STEM_OUT_CHANNELS
    stages, stem = [], BasicStem(input_shape.channels, channels, norm=resnets.NORM)
    for i, blocks in enumerate(_BLOCKS[resnets.DEPTH]):
        width = resnets.RES2_OUT_CHANNELS * 2**i
        strides = [1 if i == 0 else 2] + [1] * (blocks - 1)
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                blocks,
                stride_per_block=strides,
                in_channels=channels,
                out_channels=width,
                norm=resnets.NORM,
            )
        )
        channels = width
    net = ResNet(stem, stages, out_features=list(resnets.OUT_FEATURES))
    return net.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
