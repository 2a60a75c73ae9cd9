"""The configs that are shipped: each builds, and says what Detectron2's zoo says."""

from pathlib import Path

import detectron2
import pytest
import torch
import yaml
from conftest import ROOT
from detectron2 import layers
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torchvision.models.detection import retinanet_resnet50_fpn_v2

from retinanet_plugin import add_retinanet_config
from retinanet_plugin.config import flattened, load_config
from retinanet_plugin.engine.checks.config_checks import config_errors
from retinanet_plugin.foreign_weights.torchvision_retinanet import from_torchvision

# 0.6 gives a group norm in RetinaNet's head one channel, which it refuses; mended in main.
STOCK_HAS_GROUP_NORM = hasattr(layers, "move_device_like")
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml"))

ZOO = {
    "retinanet_R_50_FPN_1x": (50, "R-50", 90000, (60000, 80000)),
    "retinanet_R_50_FPN_3x": (50, "R-50", 270000, (210000, 250000)),
    "retinanet_R_101_FPN_3x": (101, "R-101", 270000, (210000, 250000)),
}


def flatten(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def build_on_meta(cfg):
    """The model without memory for its weights, which have names and shapes all the same."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg).train()


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_builds(path):
    cfg = load_config(str(ROOT / path))
    assert config_errors(cfg) == []
    model = build_on_meta(cfg)
    assert type(model).__name__ == "ModularRetinaNet"

    # Every weight has Detectron2's name and shape, but for those that only this package has.
    is_resnet = cfg.MODEL.FPN.BOTTOM_UP == "build_resnet_backbone"
    if is_resnet and (cfg.MODEL.RETINANET.NORM != "GN" or STOCK_HAS_GROUP_NORM):
        stock = cfg.clone()
        stock.MODEL.META_ARCHITECTURE = "RetinaNet"
        if cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE == "res5":  # all that Detectron2's builder knows
            stock.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        expected = shapes_of(build_on_meta(stock))
        scales = {"head.box_scales": (5,)} if cfg.MODEL.RETINANET.BOX_SCALES else {}
        assert shapes_of(model) == {**expected, **scales, "loss_normalizer": ()}

    # The anchors and classes that the config names are what the head predicts for.
    sizes, ratios = (len(cfg.MODEL.ANCHOR_GENERATOR[key][0]) for key in ("SIZES", "ASPECT_RATIOS"))
    image = torch.empty(2, 3, 128, 128, device="meta")  # one of 1x1 has no statistics
    features = model.backbone(image)
    features = [features[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
    logits, deltas = model.head(features)
    anchors = model.anchor_generator(features)
    for i, (feature, boxes) in enumerate(zip(features, anchors)):
        height = width = 128 // 2 ** (3 + i)
        assert feature.shape[-2:] == (height, width)
        assert len(boxes) == height * width * sizes * ratios
        assert logits[i].shape[1:] == (
            sizes * ratios * cfg.MODEL.RETINANET.NUM_CLASSES,
            height,
            width,
        )
        assert deltas[i].shape[1:] == (sizes * ratios * 4, height, width)


@pytest.mark.parametrize(
    ("file", "row"),
    [
        ("ingredients.yaml", "Base-modern.yaml, in the time of plain"),
        ("schedules.yaml", "falls in the last 20 %, SWA"),
    ],
)
def test_the_modern_base_is_the_sum_that_was_measured(file, row):
    row = yaml.safe_load((ROOT / "benchmarks/ablation" / file).read_text())["rows"][row]
    plain = load_config(str(ROOT / "benchmarks/ablation/plain.yaml"))
    modern = dict(flattened(load_config(str(ROOT / "configs/modern/Base-modern.yaml"))))
    del row["SOLVER.MAX_ITER"]
    assert [modern["SOLVER.BASE_LR"]] == row.pop("rates")
    for key, value in row.items():
        assert modern[key] == value
    shared = dict(flattened(plain))
    for key in (
        *("MODEL.WEIGHTS", "MODEL.BACKBONE.FREEZE_AT", "MODEL.RESNETS.NORM", "MODEL.FPN.NORM"),
        *("MODEL.RETINANET.NORM", "SOLVER.IMS_PER_BATCH"),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE"),
    ):
        assert modern[key] == shared[key], key


@pytest.mark.parametrize("name", ZOO)
def test_coco_configs_have_the_zoos_values(name):
    depth, weights, max_iter, steps = ZOO[name]
    cfg = load_config(str(ROOT / f"configs/COCO-Detection/{name}.yaml"))
    sizes = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
    expected = {
        "MODEL.WEIGHTS": f"detectron2://ImageNetPretrained/MSRA/{weights}.pkl",
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "MODEL.BACKBONE.FREEZE_AT": 2,
        "MODEL.FPN.TOP_BLOCK_IN_FEATURE": "res5",
        "MODEL.FPN.OUT_CHANNELS": 256,
        "MODEL.RETINANET.NUM_CLASSES": 80,
        "MODEL.RETINANET.NUM_CONVS": 4,
        "MODEL.RETINANET.PRIOR_PROB": 0.01,
        "MODEL.RETINANET.IOU_THRESHOLDS": [0.4, 0.5],
        "MODEL.RETINANET.IOU_LABELS": [0, -1, 1],
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.25,
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 2.0,
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
        "MODEL.RETINANET.BBOX_REG_LOSS_WEIGHT": 1.0,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
        "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "DATASETS.TRAIN": ("coco_2017_train",),
        "DATASETS.TEST": ("coco_2017_val",),
        "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
        "INPUT.MAX_SIZE_TRAIN": 1333,
        "INPUT.MIN_SIZE_TEST": 800,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": max_iter,
        "SOLVER.STEPS": steps,
    }
    merged = dict(flatten(cfg))
    assert {key: merged[key] for key in expected} == expected
    for level, expected_level in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, sizes):
        assert level == pytest.approx(expected_level, rel=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_coco_configs_equal_detectron2s_own_files(name):
    package = Path(detectron2.__file__).parent
    folders = [package / "model_zoo/configs", package.parent / "configs"]
    files = [f / f"COCO-Detection/{name}.yaml" for f in folders]
    files = [f for f in files if f.is_file()]
    if not files:
        pytest.skip("this Detectron2 was installed without its configs: a checkout has them")
    stock = get_cfg()
    add_retinanet_config(stock)
    stock.merge_from_file(str(files[0]), allow_unsafe=True)
    ours = dict(flatten(load_config(str(ROOT / f"configs/COCO-Detection/{name}.yaml"))))
    stock = dict(flatten(stock))
    theirs = load_config(str(files[0]))
    assert dict(flatten(theirs)) == stock
    assert config_errors(theirs) == []
    assert {key for key in ours if ours[key] != stock[key]} == {
        "MODEL.META_ARCHITECTURE",
        "MODEL.BACKBONE.NAME",
    }


def test_torchvisions_second_version():
    """What its weights are imported with is what the config trains with."""
    weights = retinanet_resnet50_fpn_v2(weights_backbone=None).state_dict()
    imported = from_torchvision({"model": weights}, (), "its state dict").settings
    config = ROOT / "configs/modern/torchvision_retinanet_resnet50_fpn_v2.yaml"
    cfg = dict(flatten(load_config(str(config))))
    assert {key: cfg[key] for key in imported} == imported


def test_pascal_voc_config():
    cfg = load_config(str(ROOT / "configs/PascalVOC-Detection/retinanet_R_50_FPN.yaml"))
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 20
    assert cfg.DATASETS.TRAIN == ("voc_2007_trainval", "voc_2012_trainval")
    assert cfg.DATASETS.TEST == ("voc_2007_test",)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (18000, (12000, 16000))


def test_no_default_of_detectron2_is_changed():
    stock, extended = get_cfg(), get_cfg()
    add_retinanet_config(extended)
    stock, extended = dict(flatten(stock)), dict(flatten(extended))
    assert {key: extended[key] for key in stock} == stock
    assert len(extended) > len(stock)
    assert dict(flatten(get_cfg())) == stock


# What makes each row of the paper's tables, beside its base.
BEST_ALPHA = {0.0: 0.75, 0.1: 0.75, 0.2: 0.75, 0.5: 0.5, 1.0: 0.25, 2.0: 0.25, 5.0: 0.25}
FL, CE, OHEM = "FocalLoss", "BalancedCrossEntropyLoss", "OHEMLoss"
ROWS = {
    **{
        f"table_1a_balanced_cross_entropy/alpha_{alpha}": (
            50, 600, {"CLS_LOSS_NAME": CE, "FOCAL_LOSS_ALPHA": float(alpha)}
        )
        for alpha in ("0.10", "0.25", "0.50", "0.75", "0.90", "0.99", "0.999")
    },
    **{
        f"table_1b_focal_loss/gamma_{gamma:g}": (
            50, 600, {"CLS_LOSS_NAME": FL, "FOCAL_LOSS_GAMMA": gamma, "FOCAL_LOSS_ALPHA": alpha}
        )
        for gamma, alpha in BEST_ALPHA.items()
    },
    **{
        f"table_1c_anchors/scales_{s}_ratios_{r}": (50, 600, {"anchors": (s, r)})
        for s, r in ((1, 1), (2, 1), (3, 1), (1, 3), (2, 3), (3, 3), (4, 3))
    },
    **{
        f"table_1d_ohem/ohem_batch_{batch}_nms_{nms}{'_1_to_3' if ratio else ''}": (
            101, 600,
            {
                "CLS_LOSS_NAME": OHEM,
                "OHEM_BATCH_SIZE_PER_IMAGE": batch,
                "OHEM_NMS_THRESH": nms,
                "OHEM_ONE_TO_THREE": ratio,
            },
        )
        for batch in (128, 256, 512)
        for nms, ratio in ((0.7, False), (0.5, False), (0.5, True))
    },
    "table_1d_ohem/focal_loss": (
        101, 600, {"CLS_LOSS_NAME": FL, "FOCAL_LOSS_GAMMA": 2.0, "FOCAL_LOSS_ALPHA": 0.25}
    ),
    **{
        f"table_1e_image_size/R_{depth}_{size}px": (depth, size, {"CLS_LOSS_NAME": FL})
        for depth in (50, 101)
        for size in (400, 500, 600, 700, 800)
    },
    "table_2_comparison/R_101_800px": (101, 800, {"groups": (1, 64)}),
    "table_2_comparison/X_101_32x8d_800px": (101, 800, {"groups": (32, 8)}),
}  # fmt: skip


def test_every_row_of_the_paper_has_a_config_and_the_reverse():
    configs = {
        p.relative_to(ROOT / "configs/paper").with_suffix("").as_posix()
        for p in (ROOT / "configs/paper").glob("*/*.yaml")
    }
    assert configs == set(ROWS)
    assert len(configs) == 7 + 7 + 7 + 10 + 10 + 2


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_paper(row):
    depth, size, values = ROWS[row]
    values = dict(values)
    cfg = load_config(str(ROOT / f"configs/paper/{row}.yaml"))
    assert cfg.MODEL.RESNETS.DEPTH == depth
    assert f"-{depth}" in cfg.MODEL.WEIGHTS
    assert cfg.INPUT.MIN_SIZE_TEST == max(cfg.INPUT.MIN_SIZE_TRAIN) == size
    longer_side = pytest.approx(size * 1333 / 800, abs=0.5)
    assert cfg.INPUT.MAX_SIZE_TEST == cfg.INPUT.MAX_SIZE_TRAIN == longer_side
    assert len(cfg.INPUT.MIN_SIZE_TRAIN) == (6 if row.startswith("table_2") else 1)
    assert cfg.SOLVER.MAX_ITER == (135000 if row.startswith("table_2") else 90000)
    on_test_dev = row.startswith(("table_1e", "table_2"))
    assert cfg.DATASETS.TEST == (("coco_2017_test-dev",) if on_test_dev else ("coco_2017_val",))

    scales, ratios = values.pop("anchors", (3, 3))
    expected_sizes = [2 ** (k / scales) for k in range(scales)]
    for level, sizes in enumerate(cfg.MODEL.ANCHOR_GENERATOR.SIZES):
        assert [size / (32 << level) for size in sizes] == pytest.approx(expected_sizes)
    assert len(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]) == ratios
    groups, width = values.pop("groups", (1, 64))
    assert (cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP) == (groups, width)
    assert {key: cfg.MODEL.RETINANET[key] for key in values} == values
