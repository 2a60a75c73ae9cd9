"""Networks of timm under the FPN: features, frozen parts, weights, and what is said of mistakes."""

import copy
import sys

import pytest
import torch
from conftest import ROOT, detect, make_batch, train_step
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from torch import nn

from retinanet_plugin.config import load_config
from retinanet_plugin.engine import Checkpointer, check_weights
from retinanet_plugin.engine.checks.startup_checks import check_weights_fit
from retinanet_plugin.errors import UserError
from retinanet_plugin.timm_backbone import TimmBackbone, build_timm_backbone
from retinanet_plugin.weights.weight_files import write_weights

timm = pytest.importorskip("timm")
# What is built in place of the networks of the shipped configs, with these arguments.
SMALL = {
    "resnet50d": ("resnet18d", {"layers": [1, 1, 1, 1]}),
    "mobilenetv3_large_100": ("mobilenetv3_small_050", {}),
    "convnext_tiny": ("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
    "swin_tiny_patch4_window7_224": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 2, 1),
        "embed_dim": 12,
        "num_heads": (1, 2, 2, 4)},
    ),
}  # fmt: skip


@pytest.fixture
def timm_cfg():
    """A RetinaNet on one of timm's smallest networks."""

    def config(name="test_resnet"):
        cfg = load_config(str(ROOT / "configs/timm/retinanet_resnet50d_FPN.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.WEIGHTS = ""
        cfg.MODEL.TIMM.NAME = name
        cfg.MODEL.TIMM.NORM = ""
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.FPN.OUT_CHANNELS = 16
        cfg.MODEL.RETINANET.NUM_CONVS = 1
        cfg.MODEL.RETINANET.NUM_CLASSES = 3
        return cfg

    return config


def build(cfg):
    return build_timm_backbone(cfg, ShapeSpec(channels=3))


# ---- networks ----


@pytest.mark.parametrize("name", SMALL)
def test_a_shipped_config_trains_and_detects(name, monkeypatch):
    create = timm.create_model
    smaller, arguments = SMALL[name]
    monkeypatch.setattr(
        timm, "create_model", lambda _, **options: create(smaller, **options, **arguments)
    )
    cfg = load_config(str(ROOT / f"configs/timm/retinanet_{name}_FPN.yaml"))
    assert cfg.MODEL.TIMM.NAME == name
    assert cfg.MODEL.WEIGHTS.startswith(f"timm://{name}.")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    model = build_model(cfg)
    batch = make_batch(3, num_boxes=(2,), sizes=((64, 90),))
    losses, grads = train_step(model, batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(n.startswith("backbone.bottom_up.net.") for n in frozen)
    assert len(detect(model, batch)) == 1

    # Features are those of timm, channels first.
    images = torch.rand(1, 3, 96, 160)
    bottom_up = model.backbone.bottom_up
    shapes, features = bottom_up.output_shape(), bottom_up(images)
    assert list(shapes) == ["res2", "res3", "res4", "res5"]
    assert model.backbone.size_divisibility == 32
    for (feature_name, shape), theirs in zip(shapes.items(), bottom_up.net(images)[-4:]):
        if name.startswith("swin"):
            theirs = theirs.permute(0, 3, 1, 2)
        assert torch.equal(features[feature_name], theirs)
        size = (96 // shape.stride, 160 // shape.stride)
        assert theirs.shape == (1, shape.channels, *size)


def test_what_no_feature_needs_is_not_built(timm_cfg):
    cfg = timm_cfg()
    whole = build(cfg)
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE = "p4"
    part = build(cfg)
    assert list(part.output_shape()) == ["res2", "res3", "res4"]
    assert part.size_divisibility == 16
    names = set(part.state_dict())
    assert names < set(whole.state_dict())
    assert not any(".layer4." in name for name in names)


def test_a_model_can_be_copied_and_traced(timm_cfg):
    backbone = build_backbone(timm_cfg("test_convnext")).eval()
    images = torch.rand(1, 3, 96, 64)
    expected = backbone(images)
    copied = copy.deepcopy(backbone)(images)
    traced = torch.jit.trace(backbone, torch.rand(1, 3, 64, 64), strict=False, check_trace=False)(
        images
    )
    for name, feature in expected.items():
        assert torch.equal(feature, copied[name])
        torch.testing.assert_close(feature, traced[name])


# ---- frozen parts ----


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, ""), (1, "ab"), (2, "abc"), (5, "abcdef")])
def test_frozen_is_what_a_feature_is_made_of(timm_cfg, freeze_at, frozen):
    parts = {
        "conv_stem": "a", "bn1": "a", "blocks.0": "b", "blocks.1": "c",
        "blocks.2": "d", "blocks.3": "e", "blocks.4": "f",
    }  # fmt: skip
    cfg = timm_cfg("test_efficientnet")
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    bottom_up = build(cfg).train()

    def part(name):
        (found,) = [parts[start] for start in parts if name.startswith(f"net.{start}.")]
        return found

    for name, p in bottom_up.named_parameters():
        assert p.requires_grad == (part(name) not in frozen), name
    before = copy.deepcopy(bottom_up.state_dict())
    bottom_up(torch.rand(2, 3, 64, 64))
    for name, x in bottom_up.state_dict().items():
        if name.endswith("running_mean"):
            assert torch.equal(x, before[name]) == (part(name) in frozen), name


def test_frozen_norms_keep_their_activations(timm_cfg):
    cfg = timm_cfg("test_efficientnet")
    torch.manual_seed(0)
    usual = build(cfg)
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    torch.manual_seed(0)
    frozen = build(cfg).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    keys = {key for key in usual.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(frozen.state_dict()) == keys
    images = torch.rand(1, 3, 64, 64)
    for name, feature in usual.eval()(images).items():
        torch.testing.assert_close(frozen(images)[name], feature)


def test_random_weights_are_not_frozen(timm_cfg):
    for key, value in (("FREEZE_AT", 2), ("NORM", "FrozenBN")):
        cfg = timm_cfg()
        (cfg.MODEL.BACKBONE if key == "FREEZE_AT" else cfg.MODEL.TIMM)[key] = value
        with pytest.raises(UserError, match="WEIGHTS is empty, but layers are frozen"):
            check_weights_fit(cfg, build_model(cfg), None, eval_only=False)


# ---- weights ----


@pytest.fixture
def timm_file(tmp_path):
    """``timm_file(name, suffix)``: a file of a whole classifier, as timm publishes it."""

    def write(name, suffix=".safetensors"):
        torch.manual_seed(1)
        net = timm.create_model(name)
        for x in net.state_dict().values():
            if x.is_floating_point():
                x += 0.1 * torch.rand_like(x)
        path = str(tmp_path / f"{name}{suffix}")
        write_weights(path, {"model": net.state_dict()})
        return path, net.eval()

    return write


def with_pixels_of(name, cfg):
    known = timm.get_pretrained_cfg(name)
    cfg.MODEL.PIXEL_MEAN = [255 * x for x in known.mean]
    cfg.MODEL.PIXEL_STD = [255 * x for x in known.std]
    return cfg


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_files_of_timm_load(timm_cfg, timm_file, name):
    path, net = timm_file(name)
    cfg = with_pixels_of(name, timm_cfg(name))
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build_model(cfg)
    report, _ = Checkpointer(model, cfg=cfg).load_model(path)
    assert not any("bottom_up" in key for key in report.new)
    # What is left is the classifier, and convolutions after the last feature.
    assert all(not key.startswith(("layer", "stages", "blocks")) for key in report.unused)
    report.refuse_for_training(model)
    images = torch.rand(1, 3, 64, 64)
    deepest = model.backbone.bottom_up.eval()(images)["res5"]
    indices = {"indices": 1, "intermediates_only": True}
    (expected,) = net.forward_intermediates(images, **indices)
    torch.testing.assert_close(deepest, expected, rtol=1e-4, atol=1e-4)


def test_weights_are_fetched_from_the_hub(timm_cfg, timm_file, monkeypatch):
    path, net = timm_file("test_resnet")
    asked = []

    def download(*args):
        asked.append(args)
        return path

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    cfg = with_pixels_of("test_resnet", timm_cfg())
    cfg.MODEL.WEIGHTS = "timm://test_resnet.r160_in1k"
    check_weights(cfg.MODEL.WEIGHTS)
    model = build_model(cfg)
    Checkpointer(model, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    assert set(asked) == {("timm/test_resnet.r160_in1k", "model.safetensors")}
    ours = model.backbone.bottom_up.net.layer1[0].conv1.weight
    assert torch.equal(ours, net.layer1[0].conv1.weight)


def test_without_a_network_it_is_a_sentence(monkeypatch):
    def download(*args):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for address, reason in (
        ("timm://test_resnet.r160_in1k", "no route to host"),
        ("timm://no_network", "timm has no weights of that name"),
        ("timm://resnet50d.no_tag", "no_tag"),
    ):
        with pytest.raises(UserError, match=f"cannot be fetched .*{reason}.*: download the file"):
            check_weights(address)


def test_other_pixels_than_those_of_the_weights_are_refused(timm_cfg, timm_file):
    path, _ = timm_file("test_resnet", ".pth")
    cfg = timm_cfg()  # with the usual mean of ImageNet, and test_resnet has 0.5
    model = build_model(cfg)
    with pytest.raises(UserError, match=r'set INPUT.FORMAT RGB MODEL.PIXEL_MEAN "\[127.5, 127.5'):
        Checkpointer(model, cfg=cfg).load_model(path)
    with_pixels_of("test_resnet", cfg).INPUT.FORMAT = "BGR"
    with pytest.raises(UserError, match="other pixels"):
        Checkpointer(model, cfg=cfg).load_model(path)
    cfg.INPUT.FORMAT = "RGB"
    Checkpointer(model, cfg=cfg).load_model(path)


def test_checkpoints_of_the_model_load_as_they_are(timm_cfg, tmp_path):
    cfg = timm_cfg()
    model = build_model(cfg)
    Checkpointer(model, str(tmp_path), cfg=cfg).save("model_final")
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    other = build_model(cfg)
    report, _ = Checkpointer(other, cfg=cfg).load_model(str(tmp_path / "model_final.pth"))
    report.refuse_unless_it_fits()
    for name, x in other.state_dict().items():
        assert torch.equal(x, model.state_dict()[name]), name


# ---- mistakes ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NAME": ""}, "MODEL.TIMM.NAME is empty"),
        ({"NAME": "resnet5000"}, "MODEL.TIMM.NAME is 'resnet5000', which this timm"),
        ({"NAME": "test_resnet.no_tag"}, "Invalid pretrained tag"),
        ({"NAME": "local-dir:/nothing"}, "which this timm, .*not found"),
        ({"NORM": "LN"}, "MODEL.TIMM.NORM is 'LN': write FrozenBN"),
        ({"NAME": "test_vit"}, r"strides \[16, 16, 16\].* and so no res3 and no res5"),
        ({"NAME": "levit_128s"}, "and so no res3 for the FPN"),
        ({"NAME": "maxvit_pico_rw_256"}, "does not take images of any size"),
    ],
)
def test_networks_that_cannot_be_used(timm_cfg, changes, message):
    cfg = timm_cfg()
    for key, value in changes.items():
        cfg.MODEL.TIMM[key] = value
    with pytest.raises(UserError, match=message) as raised, torch.device("meta"):
        build(cfg)
    assert "\n" not in str(raised.value)


def test_a_network_that_lies_about_its_features_is_refused():
    net = timm.create_model("test_resnet", features_only=True)
    net.feature_info.info[-1]["num_chs"] += 1
    with pytest.raises(UserError, match="features have the shapes"):
        TimmBackbone(net, "mine")


def test_without_timm_the_command_to_install_it_is_said(timm_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        build(timm_cfg())
