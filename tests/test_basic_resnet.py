"""ResNets of basic blocks: any width, Detectron2's where it has them, depths that there are."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_resnet_backbone

from retinanet_plugin import UserError, build_basic_resnet_backbone
from retinanet_plugin.config import load_config
from retinanet_plugin.data.planning.network import FROM_SCRATCH, base_path

IMAGES = ShapeSpec(channels=3)


@pytest.fixture
def cfg():
    cfg = load_config(base_path(FROM_SCRATCH))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.BOTTOM_UP = "build_basic_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 10
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4, 6
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return cfg


def test_widths_double_and_sizes_halve(cfg):
    features = build_basic_resnet_backbone(cfg, IMAGES)(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "res3": (1, 12, 8, 12),
        "res4": (1, 24, 4, 6),
        "res5": (1, 48, 2, 3),
    }


@pytest.mark.parametrize("depth", [18, 34])
def test_at_full_width_it_is_detectron2s(cfg, depth):
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    ours, stock = (
        build(cfg, IMAGES) for build in (build_basic_resnet_backbone, build_resnet_backbone)
    )
    stock.load_state_dict(ours.state_dict())  # the same names and shapes
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, expected in stock.eval()(images).items():
        assert torch.equal(ours.eval()(images)[name], expected)


def test_a_retinanet_stands_on_it(cfg):
    model = build_model(cfg)
    assert model.backbone.bottom_up.size_divisibility <= 32
    frozen = cfg.clone()
    frozen.MODEL.BACKBONE.FREEZE_AT = 1
    stem = build_model(frozen).backbone.bottom_up.stem
    assert not any(parameter.requires_grad for parameter in stem.parameters())


def test_depths_with_bottlenecks_are_refused(cfg):
    cfg.MODEL.RESNETS.DEPTH = 50
    with pytest.raises(UserError, match=r"DEPTH is 50: .* has 10, 18 and 34"):
        build_basic_resnet_backbone(cfg, IMAGES)
