"""Weights of any maker: what loads is said, what does not fit is refused, and nothing runs."""

import builtins
import copy
import functools
import logging
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from retinanet_plugin.__main__ import main
from retinanet_plugin.config import load_config
from retinanet_plugin.engine import Checkpointer
from retinanet_plugin.engine.checks.startup_checks import check_weights, check_weights_fit
from retinanet_plugin.errors import UserError
from retinanet_plugin.weights.checkpoint_contents import config_of
from retinanet_plugin.weights.weight_files import read_weights, write_weights

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
DATA = "weights_of_three_classes"


@pytest.fixture(scope="module")
def cfg():
    MetadataCatalog.get(DATA).thing_classes = ["disc", "square", "bar"]
    cfg = load_config(INSTANT, ["MODEL.RETINANET.NUM_CLASSES", "3"])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (DATA,)
    yield cfg
    MetadataCatalog.remove(DATA)


@pytest.fixture(scope="module")
def trained(cfg):
    """A model with weights that no new one has. Not to be changed."""
    model = build_model(cfg)
    with torch.no_grad():
        for x in model.state_dict().values():
            x.add_(0.25 if x.is_floating_point() else 1)
    return model


@pytest.fixture(scope="module")
def new_model(cfg):
    """``new_model()``: another one, new."""
    model = build_model(cfg)
    return lambda: copy.deepcopy(model)


@pytest.fixture
def state(trained):
    """Its weights, to be changed."""
    return {name: x.clone() for name, x in trained.state_dict().items()}


@pytest.fixture
def save(tmp_path):
    """``save(content, name)``: the path of a file of ``torch.save`` or, as .pkl, of a pickle."""

    def write(content, name="weights.pth", **kwargs):
        path = tmp_path / name
        if name.endswith(".pkl"):
            path.write_bytes(pickle.dumps(content, **kwargs))
        else:
            torch.save(content, path, **kwargs)
        return str(path)

    return write


def assert_equal_weights(model, wanted):
    found, wanted = model.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    for name in found:
        assert torch.equal(found[name], wanted[name]), name


def of_backbone(state):
    """As a network of ImageNet has them: the names in front are Detectron2's own."""
    prefix = "backbone.bottom_up."
    return {
        name.removeprefix(prefix): x.numpy() for name, x in state.items() if name.startswith(prefix)
    }


def in_caffe2(name):
    """Detectron's name of one of Detectron2's ResNet."""
    name = name.removeprefix("stem.")
    for ours, theirs in (
        (".shortcut", ".branch1"), (".conv1", ".branch2a"), (".conv2", ".branch2b"),
        (".conv3", ".branch2c"), ("norm.weight", "bn.s"), ("norm.bias", "bn.b"),
        ("norm.running_mean", "bn.rm"), ("norm.running_var", "bn.riv"), ("weight", "w"),
    ):  # fmt: skip
        name = name.replace(ours, theirs)
    return name.replace(".", "_").replace("conv1_bn", "res_conv1_bn")


# ------------------------------------------------------------------ as Detectron2 reads them


def zoo(state):
    arrays = OrderedDict((name, x.numpy()) for name, x in state.items() if "normalizer" not in name)
    return {"model": arrays, "__author__": "Detectron2 Model Zoo"}


def image_net(state):
    return {
        "model": of_backbone(state),
        "__author__": "torchvision",
        "matching_heuristics": True,
    }


def caffe2(state):
    blobs = {in_caffe2(name): x for name, x in of_backbone(state).items() if "num_b" not in name}
    return {**blobs, "conv1_w_momentum": np.zeros(3)}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("content", [zoo, image_net, caffe2])
def test_pickles_of_the_zoo_load_as_in_stock(state, new_model, save, content, protocol):
    path = save(content(state), "R-50.pkl", protocol=protocol)
    model, stock = new_model(), new_model()
    Checkpointer(model).load(path)
    DetectionCheckpointer(stock).load(path)
    assert_equal_weights(model, stock)
    assert torch.equal(
        model.state_dict()["backbone.bottom_up.res3.0.conv1.weight"],
        state["backbone.bottom_up.res3.0.conv1.weight"],
    )


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"w": np.arange(3.0)}, "__author__": "numpy 1"},
        {"model": {"w": np.float32(2)}, "__author__": "a number"},
    ],
)
def test_pickles_of_numpy_1_and_2(content, tmp_path):
    path = tmp_path / "weights.pkl"
    text = pickle.dumps(content, protocol=0)
    for core in (b"numpy.core.", b"numpy._core."):
        path.write_bytes(text.replace(b"numpy._core.", core).replace(b"numpy.core.", core))
        assert read_weights(str(path))["model"]["w"].sum() in (2, 3)


def test_other_files_of_pytorch(trained, state, new_model, save, tmp_path):
    paths = [
        save(state, "bare.pth"),
        save({"model": state}, "old.pth", _use_new_zipfile_serialization=False),
        save({"model": {f"module.{name}": x for name, x in state.items()}}, "ddp.pth"),
        # What older checkpoints hold beside their weights.
        save({"model": state}, "run#1.pth"),
        save({"model": state, "best": np.float64(0.5), "seen": np.arange(3)}, "numpy.pth.tar"),
        # What other programs call their weights.
        save({"state_dict": state, "epoch": 3}, "mmdetection.pth"),
        save({"model_state_dict": state, "optimizer_state_dict": {}}, "tutorial.pt"),
        save({"ema": state}, "average.pth"),
        save({"model": state, "ema": {"w": torch.zeros(2)}}, "both.pth"),
    ]
    write_weights(str(tmp_path / "a.safetensors"), {"model": state})
    paths.append(str((tmp_path / "a.safetensors").rename(tmp_path / "safetensors.pth")))
    for path in paths:
        model = new_model()
        Checkpointer(model).load(path)
        assert_equal_weights(model, trained)


def test_names_matched_by_heuristics(state, new_model, save):
    backbone = {name: torch.from_numpy(x) for name, x in of_backbone(state).items()}
    for path in (
        save(backbone) + "?matching_heuristics=True",
        save({"model_state": backbone}, "pycls.pyth"),
    ):
        model = new_model()
        Checkpointer(model).load(path)
        name = "backbone.bottom_up.stem.conv1.weight"
        assert torch.equal(model.state_dict()[name], state[name])


def test_a_checkpoint_of_stock_has_no_loss_normalizer(cfg, state, save):
    del state["loss_normalizer"]
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    state["anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    cfg = with_weights(cfg, save(zoo(state), "model_final.pkl") + "?matching_heuristics=True")
    check_weights(cfg.MODEL.WEIGHTS)
    model = build_model(cfg)
    check_weights_fit(cfg, model, None, eval_only=True)
    assert torch.equal(model.head.cls_score.weight, state["head.cls_score.weight"])


# ------------------------------------------------------------------ nothing runs


class Runs:
    """An object whose pickle calls ``function(*arguments)`` when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    python = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Runs(os.system, f"touch {marker}"),
        "builtins.eval": Runs(eval, python),
        "builtins.exec": Runs(exec, python),
        "builtins.getattr": Runs(builtins.getattr, dict, "pop"),
        "numpy.load": Runs(np.load, str(marker)),
        "functools.partial": functools.partial(os.system, f"touch {marker}"),
    }


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth"])
@pytest.mark.parametrize("name", hostile(""))
def test_a_file_that_carries_code_does_not_run_it(save, tmp_path, name, suffix):
    marker = tmp_path / "ran"
    content = {"model": {"w": np.zeros(3), "x": hostile(marker)[name]}, "__author__": "x"}
    path = save(content, "hostile" + suffix)
    with pytest.raises(UserError, match=rf"hostile\{suffix} holds [\w.]+ beside") as error:
        read_weights(path)
    if suffix == ".pkl":
        assert f"holds {name} beside" in str(error.value)
    assert not marker.exists()


def test_arrays_of_objects_are_no_weights(save):
    path = save({"w": np.array([{}, []], dtype=object)}, "objects.pkl")
    with pytest.raises(UserError, match="holds a ndarray as 'w' where weights should be"):
        read_weights(path)


# ------------------------------------------------------------------ what cannot be read


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ".pyth"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a page of the web"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "run git lfs pull"),
        (b"words and words " * 99, "is damaged"),
        (None, r"cannot be read \(No such file"),
    ],
)
def test_files_without_weights(tmp_path, suffix, content, message):
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_weights(str(path))
    assert f"MODEL.WEIGHTS {path}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_files_that_are_cut_off(state, save, tmp_path, suffix, share):
    path = save(zoo(state), "weights.pkl") if suffix == ".pkl" else save(state)
    if suffix == ".safetensors":
        main(["convert-weights", path, path := str(tmp_path / "weights.safetensors")])
    os.truncate(path, int(share * os.path.getsize(path)))
    with pytest.raises(UserError, match=r"(is damaged|is cut off)"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list and no weights"),
        ({}, "holds no weights by name"),
        ({"epoch": 3, "state_dict": {}}, "holds a int as 'epoch' where weights should be"),
        ({"model": [1]}, "holds no weights by name"),
    ],
)
def test_files_of_other_things(save, content, message):
    with pytest.raises(UserError, match=message):
        read_weights(save(content))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x: x.to("meta"), "meta"),
        (lambda x: x.to(torch.complex64), "complex"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantized"),
        (lambda x: x.to_sparse(), "sparse"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(save, change, kind):
    path = save({"model": {"w": change(torch.ones(3, 2))}})
    with pytest.raises(UserError, match=f"holds w as a {kind} tensor: save weights as dense"):
        read_weights(path)


def test_notes_of_other_types_are_left_out(save, caplog):
    notes = {"class_names": 7, "preprocessing": "x", "config": 7}
    loaded = read_weights(save({"model": {"w": torch.ones(1)}, **notes}))
    assert loaded.keys() == {"model"}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "a int as its class_names, which is left out" in caplog.text


def test_a_pickle_that_asks_for_too_much_memory(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"c__builtin__\nbytearray\n(I100000000000000\ntR.")
    with pytest.raises(UserError, match=f"MODEL.WEIGHTS {path} asks for more memory than there is"):
        read_weights(str(path))


def test_a_program_of_torchscript(tmp_path):
    path = str(tmp_path / "traced.pt")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(UserError, match="is a program of TorchScript"):
        read_weights(path)


def test_a_file_that_cannot_be_fetched():
    with pytest.raises(UserError, match=r"catalog://none\.pkl cannot be fetched .* download the"):
        read_weights("catalog://none.pkl")


# ------------------------------------------------------------------ the one line


@pytest.fixture
def said(new_model, cfg, caplog):
    """``said(path)``: the level and the text of what is said when weights are loaded."""

    def load(path):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            Checkpointer(new_model(), cfg=cfg).load(path)
        (record,) = caplog.records
        assert "\n" not in record.getMessage()
        return record.levelname, record.getMessage().removeprefix(f"MODEL.WEIGHTS {path}: ")

    return load


def test_all_loads(said, state, save):
    assert said(save(state)) == ("INFO", "all of the model's parameters load")


def test_the_backbone_loads(said, state, save):
    state = {name: x for name, x in state.items() if name.startswith("backbone.bottom_up.")}
    level, line = said(save({**state, "fc.weight": torch.zeros(3)}))
    assert level == "INFO"
    assert " % of the model's parameters load (backbone.bottom_up), " in line
    assert " % are new (backbone.fpn_lateral3, " in line
    assert line.endswith("the file's fc.weight are not used")


def test_a_class_head_of_another_size(said, state, save):
    for name in ("head.cls_score.weight", "head.cls_score.bias"):
        state[name] = torch.cat([state[name]] * 2)
    level, line = said(save(state))
    assert level == "INFO"
    assert line.startswith("99 % of the model's parameters load (backbone, ")
    assert line.endswith("head.cls_score is new (6 classes in the file, 3 here)")


def test_classes_of_other_names(said, state, save):
    level, line = said(save({"model": state, "class_names": ["cat", "dog", "cow"]}))
    assert level == "INFO"
    assert "its classes are cat, dog, cow, those of the data disc, square, bar" in line


def test_a_deeper_network(said, state, save):
    state["backbone.bottom_up.res4.6.conv1.weight"] = torch.zeros(3)
    level, line = said(save(state))
    assert level == "WARNING"
    assert "the file's backbone.bottom_up are not used" in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"preprocessing": {"format": "RGB"}}, "FORMAT RGB and not BGR"),
        ({"pixel_std": torch.full((3, 1, 1), 57.0)}, "PIXEL_STD [57.0, 57.0, 57.0] and not [1.0"),
    ],
)
def test_images_of_another_kind(said, state, save, more, message):
    buffers = {key: x for key, x in more.items() if key.startswith("pixel")}
    level, line = said(save({"model": {**state, **buffers}, **more}))
    assert level == "WARNING"
    assert f"but it was trained on images with {message}" in line


# ------------------------------------------------------------------ what is refused


def with_weights(cfg, path):
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = path
    return cfg


@pytest.fixture
def refused(cfg, new_model, save):
    """``refused(content, eval_only)``: the sentence, or with ``accepted``, that there is none."""

    def check(content, eval_only, accepted=False):
        path = save(content)
        arguments = with_weights(cfg, path), new_model(), None, eval_only
        if accepted:
            check_weights_fit(*arguments)
            return ""
        with pytest.raises(UserError) as error:
            check_weights_fit(*arguments)
        message = str(error.value)
        assert message.startswith(f"MODEL.WEIGHTS {path} ")
        assert "\n" not in message
        return message

    return check


def test_weights_that_fit(refused, state):
    refused(state, eval_only=True, accepted=True)
    refused(state, eval_only=False, accepted=True)


def test_evaluation_with_a_class_head_of_another_size(refused, state):
    for name in ("head.cls_score.weight", "head.cls_score.bias"):
        state[name] = torch.cat([state[name]] * 2)
    refused(state, eval_only=False, accepted=True)
    message = refused(state, eval_only=True)
    assert "head.cls_score.weight is for other classes (6 classes in the file, 3 here)" in message
    assert "MODEL.RETINANET.NUM_CLASSES" in message


def test_evaluation_with_missing_and_other_parameters(refused, state):
    del state["head.bbox_pred.weight"], state["backbone.fpn_lateral3.weight"]
    refused(state, eval_only=False, accepted=True)
    assert "has no backbone.fpn_lateral3.weight, and 1 more" in refused(state, eval_only=True)


def test_evaluation_with_a_parameter_of_another_shape(refused, state):
    state["head.bbox_pred.bias"] = torch.zeros(7)
    message = refused(state, eval_only=True)
    assert "head.bbox_pred.bias is (7,) there and (12,) here" in message


def test_a_head_of_other_channels_or_anchors_is_not_of_other_classes(refused, state, cfg):
    text = cfg.dump()
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    wide = {"head.cls_score.weight": torch.zeros(9, 2 * channels, 3, 3)}
    config = text.replace(f"OUT_CHANNELS: {channels}", f"OUT_CHANNELS: {2 * channels}")
    message = refused({"model": {**state, **wide}, "config": config}, eval_only=True)
    shapes = f"(9, {2 * channels}, 3, 3) there and (9, {channels}, 3, 3) here"
    assert f"head.cls_score.weight is {shapes}" in message
    assert f"MODEL.FPN.OUT_CHANNELS was {2 * channels}, is {channels}" in message
    for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"):
        state[f"head.{name}"] = torch.cat([state[f"head.{name}"]] * 3)
    message = refused({"model": state, "config": 7}, eval_only=True)
    assert "head.cls_score.weight is (27, " in message


def test_evaluation_of_another_network(refused, state):
    state["backbone.bottom_up.res4.6.conv1.weight"] = torch.zeros(3)
    message = refused(state, eval_only=True)
    assert "it also has backbone.bottom_up.res4.6.conv1.weight, which this model lacks" in message


def test_evaluation_on_other_classes(refused, state):
    content = {"model": state, "class_names": ["disc", "bar", "square"]}
    refused(dict(content), eval_only=False, accepted=True)
    message = refused(content, eval_only=True)
    assert "its classes are disc, bar, square, and those of the data disc, square, bar" in message


FOREIGN = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(9)}


@pytest.mark.parametrize("eval_only", [True, False])
def test_weights_of_which_nothing_fits(refused, eval_only):
    message = refused(FOREIGN, eval_only)
    assert "fits the model in nothing: its names are conv1.weight, fc.bias, and" in message


@pytest.mark.parametrize("eval_only", [True, False])
def test_weights_of_torchvision(refused, eval_only):
    names = (
        "backbone.body.conv1",
        "backbone.fpn.inner_blocks.0.0",
        "head.classification_head.cls_logits",
    )
    message = refused({f"{name}.weight": torch.zeros(9, 3, 3, 3) for name in names}, eval_only)
    assert "python -m retinanet_plugin import-weights torchvision FILE OUTPUT converts" in message


@pytest.mark.parametrize("eval_only", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_failed(refused, state, eval_only, value):
    state["head.cls_score.bias"][0] = value
    assert "NaN or infinite numbers in head.cls_score.bias" in refused(state, eval_only)


def test_frozen_layers_without_weights(cfg, state, save):
    cfg = with_weights(cfg, "")
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build_model(cfg)
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS is empty, but layers are frozen"):
        check_weights_fit(cfg, model, None, eval_only=False)
    head = {name: x for name, x in state.items() if name.startswith("head.")}
    with pytest.raises(UserError, match=r"has nothing for backbone\.bottom_up\.res2, backbone"):
        check_weights_fit(with_weights(cfg, save(head)), model, None, eval_only=False)


def test_a_checkpoint_that_does_not_fit_is_not_resumed(cfg, state, new_model, save):
    state["head.bbox_pred.bias"] = torch.zeros(7)
    path = save({"model": state}, "model_0000001.pth")
    with pytest.raises(UserError, match=f"the checkpoint {path} does not fit the model"):
        check_weights_fit(cfg, new_model(), path, eval_only=False)


# ------------------------------------------------------------------ convert-weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_convert_weights(cfg, trained, new_model, tmp_path, capsys, suffix):
    Checkpointer(trained, str(tmp_path), cfg=cfg).save("model_final", iteration=1, state=[0] * 9)
    source, target = str(tmp_path / "model_final.pth"), str(tmp_path / "shared") + suffix
    main(["convert-weights", source, target])
    assert f"3 classes: {target}" in capsys.readouterr().out
    model = new_model()
    more = Checkpointer(model, cfg=cfg).load(target)
    assert_equal_weights(model, trained)
    assert more.keys() == {"class_names", "preprocessing", "config", "versions"}
    assert more["class_names"] == ["disc", "square", "bar"]
    assert "META_ARCHITECTURE: ModularRetinaNet" in more["config"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_convert_weights_of_the_zoo(state, new_model, save, tmp_path, suffix):
    source, target = save(caffe2(state), "R-50.pkl"), str(tmp_path / "R-50") + suffix
    main(["convert-weights", source, target])
    model, wanted = new_model(), new_model()
    Checkpointer(model).load(target)
    Checkpointer(wanted).load(source)
    assert_equal_weights(model, wanted)


def test_convert_weights_to_another_kind(state, save, tmp_path):
    with pytest.raises(SystemExit, match=r"weights can be written as \.safetensors or \.pth, not"):
        main(["convert-weights", save(state), str(tmp_path / "weights.onnx")])


def test_convert_weights_writes_over_nothing(state, save):
    source = save(state)
    with pytest.raises(SystemExit, match=f"error: {source} exists already: delete it, or name an"):
        main(["convert-weights", source, source])


def test_a_config_of_a_file_may_have_a_whole_number_where_a_key_has_become_a_float():
    """SOLVER.WEIGHT_AVERAGE.START was one: every checkpoint of before was refused."""
    cfg = config_of("SOLVER: {WEIGHT_AVERAGE: {START: 0}, BASE_LR: 1}", "the checkpoint a.pth")
    assert isinstance(cfg.SOLVER.WEIGHT_AVERAGE.START, float)
    assert isinstance(cfg.SOLVER.BASE_LR, float)
