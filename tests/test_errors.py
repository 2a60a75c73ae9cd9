"""A user's mistake ends in one sentence before training starts: what, where, and the remedy."""

import pytest
import torch
from conftest import ROOT, make_batch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import train_net
from retinanet_plugin import UserError, add_retinanet_config
from retinanet_plugin.losses import SigmoidLoss
from retinanet_plugin.weights.building import check_model

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")


@pytest.fixture
def error_of(digits_entries, tmp_path, capsys):
    """``error_of(KEY, VALUE, ..., flags=...)``: the sentence with which train_net.py stops."""

    def run(*opts, config=INSTANT, flags=()):
        train, val = digits_entries
        config_opts = [
            "DATASETS.COCO_JSON", str([list(train), list(val)]),
            "DATASETS.TRAIN", str((train[0],)),
            "DATASETS.TEST", str((val[0],)),
            "OUTPUT_DIR", str(tmp_path / "output"),
        ]  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            train_net.run(["--config-file", config, *flags, "--opts", *config_opts, *opts])
        message = stop.value.code
        assert message.startswith("error: ")
        assert "\n" not in message
        assert not (tmp_path / "output").exists()
        return message

    return run


def test_unknown_key_on_the_command_line(error_of):
    message = error_of("MODEL.RETINANET.NUM_CLASES", "10")
    assert "unknown config key MODEL.RETINANET.NUM_CLASES in the options" in message
    assert "the nearest known key is MODEL.RETINANET.NUM_CLASSES" in message


def test_unknown_key_in_a_file(error_of, tmp_path):
    config = tmp_path / "typo.yaml"
    config.write_text(f"_BASE_: {INSTANT}\nMODEL:\n  RETINANETT:\n    NUM_CLASSES: 10\n")
    message = error_of(config=str(config))
    assert f"unknown config key MODEL.RETINANETT in {config}" in message
    assert "MODEL.RETINANET" in message.split("nearest known key is ")[1]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SOLVER.BASE_LR", "-1", "is -1.0: write a number above 0"),
        ("SOLVER.BASE_LR", "0", "is 0.0: write a number above 0"),
        ("SOLVER.MOMENTUM", "1", "is 1.0: write a number from 0 to below 1"),
        ("SOLVER.WEIGHT_DECAY", "-1", "is -1.0: write a number from 0"),
        ("MODEL.RETINANET.PRIOR_PROB", "1", "is 1.0: choose a probability between 0 and 1"),
        ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", "-1", "MODEL.RETINANET.FOCAL_LOSS_GAMMA is -1.0"),
        ("SOLVER.MAX_ITER", "1e3", "is the float 1000.0 in the options of the command line: write "
         "the whole number 1000"),
        ("DATASETS.COCO_JSON", "my.json", "write a list of (name, annotation file, image folder)"),
        ("DATASETS.COCO_JSON", "{'a': 1}", "write a list of (name, annotation file, image folder)"),
        ("DATASETS.COCO_JSON", "5", "write a list of (name, annotation file, image folder)"),
        ("INPUT.SCALE_JITTER", "0.5", "write two scales above 0, such as [0.5, 2.0]"),
    ],
)  # fmt: skip
def test_a_wrong_value_of_another_type(error_of, key, value, words):
    message = error_of(key, value)
    assert key in message
    assert words in message


def test_options_with_an_equals_sign(error_of):
    message = error_of("SOLVER.MAX_ITER=3")
    assert "SOLVER.MAX_ITER=3 has no space: write SOLVER.MAX_ITER 3" in message


def test_file_that_is_no_yaml(error_of, tmp_path):
    config = tmp_path / "broken.yaml"
    config.write_text("MODEL: [")
    assert f"{config} is not valid YAML" in error_of(config=str(config))


def test_missing_config_file_and_missing_base(error_of, tmp_path):
    missing = str(tmp_path / "none.yaml")
    assert f"the config file {missing} does not exist" in error_of(config=missing)
    config = tmp_path / "orphan.yaml"
    config.write_text("_BASE_: parent.yaml\n")
    assert "parent.yaml, which does not exist: correct its _BASE_" in error_of(config=str(config))


def test_value_of_the_wrong_type(error_of):
    message = error_of("SOLVER.MAX_ITER", "many")
    assert "SOLVER.MAX_ITER" in message
    assert "many" in message


def test_key_without_a_value(error_of):
    assert "SOLVER.MAX_ITER has no value" in error_of("SOLVER.MAX_ITER")


def test_option_after_opts(error_of):
    message = error_of("SOLVER.MAX_ITER", "2", "--num-gpus", "2")
    assert "--num-gpus stands after the config options" in message
    assert "move it before --opts" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("NUM_CLASSES", "10"), ("SCORE_THRESH_TEST", "0.3"), ("NMS_THRESH_TEST", "0.3")],
)
def test_keys_of_two_stage_models(error_of, key, value):
    opts = ["MODEL.RETINANET.NUM_CLASSES", "3"] if key == "NUM_CLASSES" else []
    message = error_of(f"MODEL.ROI_HEADS.{key}", value, *opts)
    assert f"MODEL.ROI_HEADS.{key} is set to {value} but RetinaNet does not read it" in message
    assert f"set MODEL.RETINANET.{key}" in message


def test_number_of_classes_differs_from_the_data(error_of):
    message = error_of("MODEL.RETINANET.NUM_CLASSES", "80")
    assert "MODEL.RETINANET.NUM_CLASSES" in message
    assert "80 but" in message
    assert "10 categories" in message


def test_unregistered_data_set(error_of):
    message = error_of("DATASETS.TRAIN", "('coco_2017_trian',)")
    assert "no data set is registered as 'coco_2017_trian': did you mean coco_2017_train" in message


def test_malformed_entry(error_of):
    message = error_of("DATASETS.COCO_JSON", "[['only', 'two']]")
    assert "DATASETS.COCO_JSON has the entry ['only', 'two']" in message


def test_weights_missing(error_of):
    assert "the weights file none.pth does not exist" in error_of("MODEL.WEIGHTS", "none.pth")


def test_evaluation_without_weights(error_of):
    assert "MODEL.WEIGHTS is empty" in error_of(flags=["--eval-only"])


def test_pascal_voc_that_is_not_there(error_of):
    config = str(ROOT / "configs/PascalVOC-Detection/retinanet_R_50_FPN.yaml")
    voc = ["DATASETS.TRAIN", "('voc_2007_trainval',)", "DATASETS.TEST", "('voc_2007_test',)"]
    message = error_of("MODEL.DEVICE", "cpu", *voc, config=config)
    assert "trainval.txt of voc_2007_trainval" in message
    assert "DETECTRON2_DATASETS" in message


def test_test_set_that_no_evaluator_knows(error_of, digits_entries):
    DatasetCatalog.register("unevaluated", lambda: [])
    try:
        message = error_of("DATASETS.TEST", "('unevaluated',)")
    finally:
        DatasetCatalog.remove("unevaluated")
        MetadataCatalog.remove("unevaluated")
    assert "the data set unevaluated has the evaluator type None" in message


def test_no_config_file(error_of):
    message = error_of("MODEL.DEVICE", "cpu", config="")
    assert "MODEL.META_ARCHITECTURE is GeneralizedRCNN, Detectron2's default: give" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n", "MODEL is None in"),
        ("", "broken.yaml is empty: write KEY: VALUE"),
    ],
)
def test_empty_sections(error_of, tmp_path, text, message):
    config = tmp_path / "broken.yaml"
    config.write_text(text)
    assert message in error_of(config=str(config))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.META_ARCHITECTURE", "ModularRetinaNett", "choose from GeneralizedRCNN, Modular"),
        ("MODEL.BACKBONE.NAME", "build_fpn", "build_fpn_p3p7_backbone"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "Default", "DefaultAnchorGenerator"),
        ("MODEL.RESNETS.DEPTH", "18", "the model cannot be built from the keys under MODEL"),
        ("MODEL.RESNETS.DEPTH", "42", "from the keys under MODEL (MODEL.RESNETS.DEPTH is 42)"),
        ("MODEL.RETINANET.NORM", "GNN", "MODEL.RETINANET.NORM is 'GNN', which this Detectron2"),
        ("MODEL.RETINANET.PRIOR_PROB", "1.0", "MODEL.RETINANET.PRIOR_PROB is 1.0: choose"),
        ("MODEL.RETINANET.IOU_THRESHOLDS", "[0.5, 0.4]", "MODEL.RETINANET.IOU_THRESHOLDS is"),
    ],
)
def test_keys_that_build_no_model(error_of, key, value, message):
    assert message in error_of(key, value)


def test_a_model_of_another_kind():
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "ProposalNetwork", "cpu"
    with pytest.raises(UserError, match="is ProposalNetwork, whose model has no anchor_generator"):
        check_model(cfg)


def test_batch_that_processes_cannot_share(error_of):
    message = error_of("SOLVER.IMS_PER_BATCH", "3", flags=["--num-machines", "2"])
    assert "SOLVER.IMS_PER_BATCH is 3, which 2 processes cannot share evenly" in message


def test_no_data_sets(error_of):
    message = error_of("DATASETS.TRAIN", "()")
    assert "DATASETS.TRAIN" in message
    assert "is empty" in message


def test_level_that_the_backbone_does_not_make(error_of):
    message = error_of("MODEL.RETINANET.IN_FEATURES", "['p3', 'p8']")
    assert "MODEL.RETINANET.IN_FEATURES has 'p8', which the backbone" in message
    assert "choose from ['p3', 'p4', 'p5', 'p6']" in message


def test_levels_of_anchors_and_features_differ(error_of):
    message = error_of("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]")
    assert "MODEL.ANCHOR_GENERATOR.SIZES has 2 levels but" in message
    assert "MODEL.RETINANET.IN_FEATURES has 3 (p3, p4, p5)" in message


def test_unknown_loss(error_of):
    message = error_of("MODEL.RETINANET.CLS_LOSS_NAME", "FocusLoss")
    assert "MODEL.RETINANET.CLS_LOSS_NAME is 'FocusLoss', which nothing is registered as" in message


@pytest.fixture
def gpus(monkeypatch):
    """``gpus(n)``: PyTorch finds n CUDA devices."""

    def find(count):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return find


def test_devices_that_are_not_there(error_of, gpus):
    gpus(0)
    message = error_of("MODEL.DEVICE", "cuda")
    assert "MODEL.DEVICE is cuda but PyTorch finds no CUDA device" in message
    gpus(2)
    assert "MODEL.DEVICE is cuda:2 but PyTorch finds 2 CUDA" in error_of("MODEL.DEVICE", "cuda:2")
    assert "MODEL.DEVICE is gpu, which PyTorch cannot use" in error_of("MODEL.DEVICE", "gpu")
    message = error_of("MODEL.DEVICE", "cuda", flags=["--num-gpus", "3"])
    assert "--num-gpus is 3 but PyTorch finds 2 CUDA devices" in message


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_processes_that_have_no_gpu_of_their_own(error_of, gpus, device):
    gpus(2)
    message = error_of("MODEL.DEVICE", device, flags=["--num-gpus", "2"])
    assert f"MODEL.DEVICE is {device} but 2 processes are to train" in message


GRAPHS = ("MODEL.RETINANET.CUDA_GRAPH", "True")


@pytest.mark.parametrize("flags", [["--num-gpus", "2"], ["--num-machines", "2"]])
def test_cuda_graphs_of_several_processes(error_of, gpus, flags):
    gpus(2)
    message = error_of(*GRAPHS, "MODEL.DEVICE", "cuda", flags=flags)
    assert "MODEL.RETINANET.CUDA_GRAPH is True but 2 processes train together" in message


def test_cuda_graphs_of_other_devices_and_parts(error_of, gpus):
    message = error_of(*GRAPHS, "MODEL.DEVICE", "cpu")
    assert "MODEL.RETINANET.CUDA_GRAPH is True but MODEL.DEVICE is cpu" in message
    gpus(1)
    ohem = ["MODEL.RETINANET.CLS_LOSS_NAME", "OHEMLoss"]
    message = error_of(*GRAPHS, "MODEL.DEVICE", "cuda", *ohem)
    assert "MODEL.RETINANET.CUDA_GRAPH is True but a graph cannot hold OHEMLoss" in message


# ------------------------------------------------------------------ parts of other projects


class OneTensor(SigmoidLoss):
    def loss_and_slope(self, error_logits):
        return error_logits.square()


class SumForEach(SigmoidLoss):
    def loss_and_slope(self, error_logits):
        return error_logits.sum(), error_logits


class Returning(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *args):
        return self.value


class LabelsOfOneImage(torch.nn.Module):
    def forward(self, anchors, gt_instances):
        return torch.zeros(3).long(), torch.zeros(3, 4)


class LossOfEachClass(torch.nn.Module):
    def forward(self, pred_logits, gt_labels, anchors):
        return pred_logits[0].square().sum(dim=(0, 1, 2, 3))


class SumOfRows(torch.nn.Module):
    def forward(self, deltas, anchors, gt_boxes):
        return deltas.sum()


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("cls_loss", OneTensor(alpha=0.25), "loss_and_slope of the classification loss does not"),
        ("cls_loss", SumForEach(alpha=0.25), r", but \(a tensor of shape \(\), float32, a tensor"),
        ("cls_loss", LossOfEachClass(), r"LossOfEachClass returns a tensor of shape \(5,\)"),
        ("box_loss", SumOfRows(), r"the box loss returns a tensor of shape \(\), float32: return"),
        ("cls_loss", Returning(None), "Returning returns NoneType: return the sum"),
        ("box_loss", Returning((1, 2)), r"the box loss returns \(int, int\): return one loss"),
        ("matcher", Returning(None), "the matcher returns NoneType: return gt_labels of shape"),
        ("matcher", LabelsOfOneImage(), r"returns \(a tensor of shape \(3,\), int64, a tensor of"),
    ],
)
def test_parts_that_return_something_else(small_cfg, name, part, message):
    model = build_model(small_cfg).train()
    setattr(model, name, part)
    with pytest.raises(UserError, match=message):
        model(make_batch(num_classes=5))
