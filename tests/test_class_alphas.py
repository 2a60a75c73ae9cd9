"""Alpha for each class: given in the config, or derived from the training data's counts."""

import logging

import pytest
import torch
from conftest import ROOT

from retinanet_plugin import CLS_LOSS_REGISTRY, UserError
from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.class_alphas import balanced_alphas, count_classes, resolve_auto_alpha
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.resumable import ResumableTrainer

KEY = "MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS"
BALANCED_LOSSES = ["BalancedCrossEntropyLoss", "FocalLoss", "FocalStarLoss"]


def config(value, num_classes=2):
    return load_config("", [KEY, value, "MODEL.RETINANET.NUM_CLASSES", str(num_classes)])


@pytest.mark.parametrize("name", BALANCED_LOSSES)
@pytest.mark.parametrize("source", ["command line", "file"])
def test_list_in_the_config(tmp_path, name, source):
    cfg = config("[0.1, 0.75]")
    if source == "file":
        path = tmp_path / "config.yaml"
        path.write_text(cfg.dump())
        cfg = load_config(str(path))
    loss = CLS_LOSS_REGISTRY.get(name)(cfg)
    torch.testing.assert_close(loss.alpha, torch.tensor([0.1, 0.75]))
    assert loss.state_dict() == {}  # a constant of the config: checkpoints stay stock's
    assert "alpha=[0.1, 0.75]" in repr(loss)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[0.1, 0.2]", "has 2 values but MODEL.RETINANET.NUM_CLASSES is 3: give one"),
        ("[0.1, 0.2, 1.2]", "has the value 1.2: choose numbers from 0 to 1"),
        ("0.3", "is 0.3: write a list of 3 numbers, or 'auto'"),
        ("automatic", "is 'automatic': write a list of 3 numbers, or 'auto'"),
    ],
)
def test_errors(value, message):
    with pytest.raises(UserError) as error:
        CLS_LOSS_REGISTRY.get("FocalLoss")(config(value, num_classes=3))
    assert f"{KEY} {message}" in str(error.value)


def test_balanced_alphas():
    """Odds go with mean count / count: 20 / 10, 20 / 20, 20 / 30 of 1/3."""
    alphas = balanced_alphas([10, 20, 30], 0.25)
    odds = [alpha / (1 - alpha) for alpha in alphas]
    assert odds == pytest.approx([2 / 3, 1 / 3, 2 / 9])
    assert balanced_alphas([7, 7, 7], 0.25) == pytest.approx([0.25] * 3)


def test_class_without_examples_gets_alpha_itself():
    assert balanced_alphas([10, 0, 30], 0.25)[1] == pytest.approx(0.25)
    assert balanced_alphas([10, 0, 30], 0.25)[::2] == balanced_alphas([10, 30], 0.25)
    assert balanced_alphas([0, 0], 0.25) == pytest.approx([0.25] * 2)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0])
def test_balanced_alphas_need_an_alpha_between_0_and_1(alpha):
    with pytest.raises(UserError, match=rf"FOCAL_LOSS_ALPHA is {alpha}"):
        balanced_alphas([10, 20], alpha)


@pytest.fixture
def auto_cfg(digits_entries):
    register_coco_json(digits_entries)
    cfg = config("auto", num_classes=10)
    cfg.DATASETS.TRAIN = (digits_entries[0][0],)
    return cfg


def test_auto_becomes_numbers_in_the_trainer(monkeypatch, auto_cfg, caplog):
    built = []
    monkeypatch.setattr(ResumableTrainer, "__init__", lambda self, cfg: built.append(cfg))
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO)
    auto_cfg.freeze()
    Trainer(auto_cfg)

    alphas = built[0].MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS
    assert alphas == pytest.approx(balanced_alphas(count_classes(auto_cfg), 0.25), abs=1e-6)
    assert len(set(alphas)) > 1
    assert built[0].is_frozen()
    assert auto_cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS == "auto"
    assert f"{KEY} auto is {alphas}" in caplog.text
    assert resolve_auto_alpha(built[0]) is built[0]


def test_counts_are_the_boxes_of_the_annotation_file(auto_cfg, digits):
    text = (digits / "annotations/train.json").read_text()
    counts = count_classes(auto_cfg)
    assert counts == [text.count(f'"category_id": {i + 1},') for i in range(10)]
    assert sum(counts) > 8


def test_box_of_a_class_beyond_num_classes(auto_cfg):
    auto_cfg.MODEL.RETINANET.NUM_CLASSES = 1
    with pytest.raises(UserError, match=r"has a box of class \d .*NUM_CLASSES is 1"):
        count_classes(auto_cfg)


@pytest.mark.parametrize("name", BALANCED_LOSSES)
def test_auto_without_counts_is_built_for_inference_but_trains_nothing(name):
    cfg = config("auto")
    cfg.DATASETS.TRAIN = ("not there",)
    loss = CLS_LOSS_REGISTRY.get(name)(cfg)
    with pytest.raises(UserError, match=r"is 'auto' and nothing has counted the classes"):
        loss([torch.zeros(1, 1, 1, 1, 2)], [torch.zeros(1, 1, 1, 1).long()], None)


def test_stock_config_keeps_one_alpha():
    cfg = load_config(str(ROOT / "configs/Base-RetinaNet.yaml"))
    assert cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS is None
    assert CLS_LOSS_REGISTRY.get("FocalLoss")(cfg).alpha == 0.25
