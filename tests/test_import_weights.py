"""Weights of torchvision and mmdetection become models with the detections of the originals."""

import argparse
import subprocess
import sys
from collections import OrderedDict, defaultdict, deque
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet_plugin.__main__ import main
from retinanet_plugin.config import check_config, load_config
from retinanet_plugin.deploy import Predictor
from retinanet_plugin.errors import UserError
from retinanet_plugin.foreign_parts import WholePixelAnchorGenerator
from retinanet_plugin.foreign_weights import FORMATS
from retinanet_plugin.inference import RetinaNetInference
from retinanet_plugin.weights.weight_files import checked_weights

BUILDERS = {1: detection.retinanet_resnet50_fpn, 2: detection.retinanet_resnet50_fpn_v2}
SIZES = [[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]]


@torch.no_grad()
def randomised(model):
    """Weights and statistics that differ in every channel, and some dozen scores above 0.05."""
    g = torch.Generator().manual_seed(1)

    def normal(x, std, mean=0.0):
        x.copy_(torch.randn(x.shape, generator=g) * std + mean)

    for name, x in model.state_dict().items():
        if name.endswith("running_mean"):
            normal(x, 0.1)
        elif name.endswith("running_var"):
            x.copy_(torch.rand(x.shape, generator=g) + 0.5)
        elif name.endswith(("bn3.weight", "downsample.1.weight")):
            normal(x, 0.05, 0.4)
        elif name.endswith("cls_logits.weight"):
            normal(x, 0.02)
        elif name.endswith("cls_logits.bias"):
            normal(x, 0.8, -4.5)
        elif name.endswith("bbox_reg.weight"):
            normal(x, 0.01)
        elif name.endswith("bbox_reg.bias"):
            normal(x, 0.3)
        elif ".conv." in name and name.endswith("0.weight"):
            nn.init.kaiming_normal_(x, generator=g)
    return model.eval()


def small_torchvisions(num_classes, top_block=LastLevelP6P7, channels=256, **arguments):
    """torchvision's first version, with a ResNet-18 for the sake of time."""
    torch.manual_seed(0)
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4], extra_blocks=top_block(channels, 256),
    )  # fmt: skip
    return detection.RetinaNet(backbone, num_classes, **arguments)


def with_frozen_norms(module):
    """As torchvision builds the first version around a trained backbone."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features)
            frozen.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, frozen)
        else:
            with_frozen_norms(child)


def translated(kind, checkpoint, class_names=()):
    """The translated model, and the one that its config builds, with its weights."""
    checkpoint = checkpoint if "state_dict" in checkpoint else {"state_dict": checkpoint}
    content = checked_weights(dict(checkpoint), "the file x")
    found = FORMATS[kind](content, class_names, "the file x")
    found.check("the file x")
    cfg = found.config()
    check_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    missing, unexpected = model.load_state_dict(found.weights, strict=False)
    assert not unexpected
    assert found.only_backbone or not missing
    return found, model


def pictures(*sizes):
    """Smooth noise of these heights and widths, uint8."""
    g = torch.Generator().manual_seed(2)
    small = [torch.rand(1, 3, h // 8, w // 8, generator=g) * 255 for h, w in sizes]
    return [
        F.interpolate(x, size=size, mode="bilinear")[0].to(torch.uint8)
        for x, size in zip(small, sizes)
    ]


def has_area(boxes):
    """Not only by rounding: boxes of no area are not Detectron2's."""
    return ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(1)


@torch.no_grad()
def assert_same_detections(model, original, images, classes=None):
    """In a batch, those with an area; ``classes`` are the original's labels of classes 0, 1, ..."""
    original.transform.resize = lambda image, target: (image, target)
    inputs = [{"image": x, "height": x.shape[1], "width": x.shape[2]} for x in images]
    for wanted, output in zip(original([x / 255 for x in images]), model(inputs)):
        wanted = {key: x[has_area(wanted["boxes"])] for key, x in wanted.items()}
        found = output["instances"]
        found = found[has_area(found.pred_boxes.tensor)]
        assert len(found) == len(wanted["scores"]) > 20
        labels = found.pred_classes
        if classes is not None:
            labels = torch.tensor(classes)[labels]
        # Of scores that differ by rounding alone, either may be first: each has its counterpart.
        unlike = (found.scores[:, None] - wanted["scores"]).abs() > 1e-4
        unlike |= labels[:, None] != wanted["labels"]
        distance = (found.pred_boxes.tensor[:, None] - wanted["boxes"]).abs().amax(-1)
        unlike |= distance > 0.1
        assert not unlike.all(0).any()
        assert not unlike.all(1).any()


@pytest.mark.parametrize("version", BUILDERS)
def test_torchvisions_detections(version):
    torch.manual_seed(0)
    original = randomised(BUILDERS[version](weights=None, weights_backbone=None, num_classes=5))
    _, model = translated("torchvision", original.state_dict())
    assert model.num_classes == 5
    # Sizes for which levels 6 and 7 do not divide the padded image, and boxes leave the image.
    images = pictures((96, 160), (150, 70), (128, 128))
    for batch in (images[:1], images[1:2], images):
        assert_same_detections(model, original, batch)


def test_torchvisions_coco_classes_are_detectron2s():
    original = randomised(small_torchvisions(91))
    with_frozen_norms(original.backbone.body)
    overwrite_eps(original, 0.0)  # as torchvision does after loading its weights for COCO
    things = [x for x in COCO_CATEGORIES if x["isthing"]]
    ids = [x["id"] for x in things]
    bias = original.head.classification_head.cls_logits.bias.data.view(9, 91)
    bias[:, [i for i in range(91) if i not in ids]] = -20  # never trained to be anything
    found, model = translated("torchvision", original.state_dict())
    assert_same_detections(model, original, pictures((96, 128)), classes=ids)
    assert found.class_names == [x["name"] for x in things]
    assert len(things) == 80


def older_names(state):
    """Of torchvision before 0.13, below the prefix that DeepForest has, beside something else."""
    old = {}
    for name, x in state.items():
        parts = name.split(".")
        if parts[-2] == "0" and parts[1] in ("fpn", "classification_head", "regression_head"):
            del parts[-2]
            if "conv" in parts:
                parts[-2] = str(2 * int(parts[-2]))
        old["model." + ".".join(parts)] = x
    return {"state_dict": {**old, "metric.total": torch.zeros(1)}}


def test_older_names_and_prefixes():
    original = randomised(small_torchvisions(1))
    old = older_names(original.state_dict())
    assert "model.backbone.fpn.inner_blocks.0.weight" in old["state_dict"]
    assert "model.head.regression_head.conv.6.bias" in old["state_dict"]
    found, model = translated("torchvision", old, ["Tree"])
    assert_same_detections(model, original, pictures((128, 160)))
    assert found.class_names == ["Tree"]


def test_names_tell_whether_class_0_is_the_background():
    original = randomised(small_torchvisions(3))
    original.head.classification_head.cls_logits.bias.data.view(9, 3)[:, 0] = -20
    _, model = translated("torchvision", original.state_dict(), ["cat", "dog"])
    assert model.num_classes == 2
    assert_same_detections(model, original, pictures((96, 96)), classes=[1, 2])


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (800, 1088), (32, 416)])
def test_anchors_are_torchvisions(size):
    height, width = size
    shapes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
    features = [torch.zeros(1, 1, *shape) for shape in shapes]
    theirs = AnchorGenerator(tuple(map(tuple, SIZES)), ((0.5, 1.0, 2.0),) * 5)
    (wanted,) = theirs(ImageList(torch.zeros(1, 3, height, width), [size]), features)
    ours = WholePixelAnchorGenerator(
        sizes=SIZES, aspect_ratios=[[0.5, 1.0, 2.0]], strides=[8, 16, 32, 64, 128], offset=0.0
    )
    levels = [boxes.tensor for boxes in ours(features)]
    # torchvision has the scales of one ratio side by side.
    ordered = [x.view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4) for x in levels]
    assert torch.equal(torch.cat(ordered), wanted)


def test_boxes_are_clipped_before_nms(small_cfg):
    # Their IoU is 20 / 100, and that of what is inside the image 10 / 10.
    boxes = [Boxes(torch.tensor([[-40.0, 0, 10, 1], [-10.0, 0, 10, 1]]))]
    logits, deltas = torch.tensor([2.0, 1.0]).view(1, 1, 1, 2, 1), torch.zeros(1, 1, 1, 2, 4)
    for clips, count in ((False, 2), (True, 1)):
        small_cfg.MODEL.RETINANET.CLIP_BEFORE_NMS = clips
        (found,) = RetinaNetInference(small_cfg)(boxes, [logits], [deltas], [(20, 20)])
        assert len(found) == count


# ------------------------------------------------------------------ mmdetection


MMDETECTION = (
    ("backbone.body.", "backbone."),
    ("backbone.fpn.inner_blocks.{i}.0.", "neck.lateral_convs.{i}.conv."),
    ("backbone.fpn.layer_blocks.{i}.0.", "neck.fpn_convs.{i}.conv."),
    ("backbone.fpn.extra_blocks.p6.", "neck.fpn_convs.3.conv."),
    ("backbone.fpn.extra_blocks.p7.", "neck.fpn_convs.4.conv."),
    ("head.classification_head.conv.{i}.0.", "bbox_head.cls_convs.{i}.conv."),
    ("head.regression_head.conv.{i}.0.", "bbox_head.reg_convs.{i}.conv."),
    ("head.classification_head.cls_logits.", "bbox_head.retina_cls."),
    ("head.regression_head.bbox_reg.", "bbox_head.retina_reg."),
)


def mmdetections_names(state):
    pairs = [(old.format(i=i), new.format(i=i)) for old, new in MMDETECTION for i in range(4)]
    return {
        next(new + name[len(old) :] for old, new in pairs if name.startswith(old)): x
        for name, x in state.items()
    }


class LinearP6P7(LastLevelP6P7):
    def forward(self, p, c, names):
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


@pytest.mark.parametrize("channels", [512, 256])
def test_mmdetections_architecture(channels):
    """torchvision's code, with what mmdetection's config does otherwise: P6 from C5 or P5, no ReLU
    before P7, anchors that are not rounded, 100 detections."""
    original = randomised(small_torchvisions(4, LinearP6P7, channels, detections_per_img=100))
    sizes = [[2**level * 4 * 2 ** (i / 3) for i in range(3)] for level in range(3, 8)]
    original.anchor_generator.cell_anchors = [
        torch.tensor([
            [-w / r**0.5 / 2, -w * r**0.5 / 2, w / r**0.5 / 2, w * r**0.5 / 2]
            for r in (0.5, 1, 2) for w in level
        ])
        for level in sizes
    ]  # fmt: skip
    meta = {"mmdet_version": "2.25.0", "CLASSES": ("a", "b", "c", "d")}
    state = OrderedDict(mmdetections_names(original.state_dict()))
    found, model = translated("mmdetection", {"meta": meta, "state_dict": state})
    assert_same_detections(model, original, pictures((128, 256)))
    assert found.class_names == ["a", "b", "c", "d"]


CONFIG = """
model = dict(backbone=dict(type='ResNet', depth=18, style='caffe'),
    neck=dict(type='FPN', add_extra_convs='on_input', relu_before_extra_convs=True),
    bbox_head=dict(anchor_generator=dict(octave_base_scale=4), bbox_coder=dict(
        target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0])),
    test_cfg=dict(nms_pre=500, min_bbox_size=0, score_thr=0.1,
        nms=dict(type='nms', iou_threshold=0.6), max_per_img=50))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
"""


@pytest.fixture(scope="module")
def states():
    """Of a small RetinaNet of torchvision, and the same with mmdetection's names; all zero."""
    with torch.device("meta"):
        model = small_torchvisions(3, channels=512)
    state = {name: torch.zeros(x.shape) for name, x in model.state_dict().items()}
    return {"torchvision": state, "mmdetection": mmdetections_names(state)}


def test_mmdetections_config(states):
    checkpoint = {"state_dict": states["mmdetection"], "meta": {"config": CONFIG}}
    found, _ = translated("mmdetection", checkpoint)
    cfg = found.config()
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert cfg.MODEL.BACKBONE.NAME == "build_fpn_p3p7_backbone"
    assert cfg.INPUT.FORMAT == "BGR"
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]
    assert cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
    assert cfg.MODEL.RETINANET.SCORE_THRESH_TEST == 0.1
    assert cfg.MODEL.RETINANET.NMS_THRESH_TEST == 0.6
    assert cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST == 500
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 50


# ------------------------------------------------------------------ backbones


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
@torch.no_grad()
def test_features_of_classifiers(name):
    torch.manual_seed(0)
    original = randomised(getattr(torchvision.models, name)(weights=None))
    state = {f"module.{name}": x for name, x in original.state_dict().items()}
    _, model = translated("backbone", state)
    (image,) = pictures((64, 96))
    images = model.preprocess_image([{"image": image}]).tensor
    features = model.backbone.bottom_up(images)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None]
    x = original.maxpool(original.relu(original.bn1(original.conv1(x))))
    for stage, layer in enumerate((original.layer1, original.layer2, original.layer3), 2):
        x = layer(x)
        if stage > 2:
            torch.testing.assert_close(features[f"res{stage}"], x, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------ files and mistakes


def test_command_writes_a_model_that_predicts(states, tmp_path, capsys):
    source, output = tmp_path / "tv.pth", tmp_path / "out"
    torch.save(states["torchvision"], source)
    arguments = ["import-weights", "torchvision", str(source), str(output)]
    main([*arguments, "--class-names", "a", "b", "c"])
    assert "retinanet_resnet50_fpn" in capsys.readouterr().out
    cfg = load_config(str(output / "config.yaml"))
    assert cfg.MODEL.WEIGHTS == str(output / "model.pth")
    assert Predictor(output / "model.pth").class_names == ["a", "b", "c"]
    with pytest.raises(SystemExit, match="exists already"):
        main(arguments)


class HistoryBuffer:
    """As mmengine's, of which a checkpoint holds one for each value that was logged."""

    @classmethod
    def mean(cls):
        return 0.0

    def __init__(self):
        self.log_history, self.statistics_methods = [0.5], {"mean": HistoryBuffer.mean}


class Settings(dict):
    """As of the many libraries whose settings are dicts with a class of their own."""


class Runs:
    """What a hostile file could hold: reading it makes the file ``path``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_checkpoints_of_trainings(states, tmp_path, monkeypatch, capsys):
    """As torchvision's references/detection/train.py and mmengine write them, and with code in
    them: nothing but plain values and tensors is made of what they hold."""
    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    schedule = {"milestones": {16: 1}, "last_epoch": 3}
    files = {
        "torchvision": {
            "model": states["torchvision"],
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
            "lr_scheduler": schedule,
            "args": argparse.Namespace(lr=0.1, milestones=[16]),
            "epoch": 3,
            "hyper_parameters": Settings(lr=0.1),
            "counts": defaultdict(int, a=1),
        },
        "mmdetection": {
            "meta": {"epoch": 1, "cfg": CONFIG, "dataset_meta": {"classes": ("a", "b", "c")}},
            "state_dict": states["mmdetection"],
            "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer())},
            "param_schedulers": [schedule],
        },
    }
    ran = tmp_path / "ran"
    for program, content in files.items():
        content["hook"] = Runs(subprocess.call, ["touch", str(ran)])
        torch.save(content, tmp_path / "last.pth")
        main(["import-weights", program, str(tmp_path / "last.pth"), str(tmp_path / program)])
        assert "classes: 3" in capsys.readouterr().out
        imported = torch.load(tmp_path / program / "model.pth", weights_only=True)
        found, _ = translated(program, {"state_dict": states[program], **content})
        assert imported["model"].keys() == found.weights.keys()
        assert imported.get("class_names", []) == found.class_names
    assert not ran.exists()


def test_what_cannot_be_skipped_is_named(states, tmp_path):
    torch.save({"model": states["torchvision"], "last": deque([1.0])}, tmp_path / "last.pth")
    with pytest.raises(SystemExit, match=r"last.pth holds collections.deque beside tensors, which"):
        main(["import-weights", "torchvision", str(tmp_path / "last.pth"), str(tmp_path / "out")])


@pytest.mark.parametrize("content", [nn.Linear(2, 3), {"model": nn.Linear(2, 3)}])
def test_a_whole_module_has_no_weights_that_are_read(content, tmp_path):
    torch.save(content, tmp_path / "whole.pth")
    with pytest.raises(SystemExit, match=r"holds no weights by name: give the file of a model's"):
        main(["import-weights", "torchvision", str(tmp_path / "whole.pth"), str(tmp_path / "out")])


def test_config_is_the_base_config_but_for_what_is_said(states):
    found, _ = translated("torchvision", states["torchvision"])
    base = load_config(str(ROOT / "configs/Base-RetinaNet.yaml"))
    ours = found.config()
    for key in found.settings:
        base.merge_from_list([key, found.settings[key]])
    assert ours.MODEL.BACKBONE == base.MODEL.BACKBONE
    for section in ("RESNETS", "FPN", "RETINANET", "ANCHOR_GENERATOR"):
        assert ours.MODEL[section] == base.MODEL[section]


def without(state, end):
    return {name: x for name, x in state.items() if not name.endswith(end)}


def changed(state, end, shape, dtype=torch.float32):
    return {n: torch.zeros(shape, dtype=dtype) if n.endswith(end) else x for n, x in state.items()}


LOGITS = "classification_head.cls_logits"
MISTAKES = {
    "a classifier": ("torchvision", lambda s: {"fc.weight": torch.zeros(5, 8)}, "format backbone"),
    "mmdetection's": ("torchvision", "mmdetection", "name the format mmdetection"),
    "torchvision's": ("mmdetection", "torchvision", "name the format torchvision"),
    "a detector": ("backbone", "torchvision", "it is a detector"),
    "another detector": (
        "torchvision",
        lambda s: {"roi_heads.box_head.fc6.weight": torch.zeros(5, 8)},
        "another detector than RetinaNet",
    ),
    "a part": ("torchvision", lambda s: without(s, "layer_blocks.1.0.bias"), "fpn_output4.bias"),
    "no head": ("torchvision", lambda s: without(s, "bbox_reg.bias"), "head.bbox_pred.bias"),
    "SSD": (
        "torchvision",
        lambda s: {"head.classification_head.module_list.0.weight": torch.zeros(5, 8)},
        "another detector than RetinaNet",
    ),
    "half of a head": (
        "mmdetection",
        lambda s: {"bbox_head.retina_reg.weight": torch.zeros(5, 8)},
        "another detector than RetinaNet",
    ),
    "not finite": (
        "torchvision",
        lambda s: {n: x / 0 if n.endswith(f"{LOGITS}.bias") else x for n, x in s.items()},
        f"{LOGITS}.bias with numbers that are not finite",
    ),
    "integers": (
        "torchvision",
        lambda s: changed(s, "layer1.0.conv1.weight", (64, 64, 3, 3), torch.int8),
        "it is quantised",
    ),
    "no classes": (
        "torchvision",
        lambda s: changed(s, f"{LOGITS}.weight", (0, 256, 3, 3)),
        "a head for 0 classes",
    ),
    "other anchors": (
        "torchvision",
        lambda s: changed(s, "regression_head.bbox_reg.weight", (60, 256, 3, 3)),
        "15 anchors at a location",
    ),
    "another backbone": (
        "torchvision",
        lambda s: {**s, "backbone.body.features.0.weight": torch.zeros(1)},
        "for which this model has no place",
    ),
    "other blocks": (
        "torchvision",
        lambda s: {name: x for name, x in s.items() if ".layer4.1." not in name},
        "backbone of (2, 2, 2, 1)",
    ),
    "a deep stem": (
        "backbone",
        lambda s: {"layer1.0.conv1.weight": torch.zeros(1), "conv1.0.weight": torch.zeros(1)},
        "build_timm_backbone",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(mistake, states):
    kind, state, sentence = MISTAKES[mistake]
    state = states[state] if isinstance(state, str) else state(states["torchvision"])
    with pytest.raises(UserError, match=r"^the file x [^\n]+$") as error:
        translated(kind, state)
    assert sentence in str(error.value)


@pytest.mark.parametrize("kind", ["torchvision", "mmdetection"])
def test_wrong_number_of_class_names(kind, states):
    with pytest.raises(UserError, match="3 class"):
        translated(kind, states[kind], ["a", "b", "c", "d"])


@pytest.mark.parametrize(
    "meta",
    [
        {"mmdet_version": "1.2.0"},
        {"config": "add_extra_convs='on_lateral'"},
        {"cfg": "octave_base_scale=3, scales_per_octave=3"},
        {"cfg": "target_stds=[0.1, 0.1, 0.2, 0.2]"},
    ],
)
def test_other_models_of_mmdetection_are_refused(meta, states):
    with pytest.raises(UserError, match="mmdetection"):
        translated("mmdetection", {"state_dict": states["mmdetection"], "meta": meta})
