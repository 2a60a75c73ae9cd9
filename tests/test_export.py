"""python -m retinanet_plugin export: each format detects what PyTorch does."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_equal_detections
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes, Instances
from PIL import Image
from small_detector import write_small_detector
from torch import nn

from retinanet_plugin import Predictor, UserError
from retinanet_plugin.__main__ import main
from retinanet_plugin.commands.export import roles_of
from retinanet_plugin.data.images.read_image import read_image
from retinanet_plugin.deploy.comparison import Comparison, compare, differences
from retinanet_plugin.deploy.exported_graph import exported_graph
from retinanet_plugin.deploy.exports import detecting_onnx, write_program
from retinanet_plugin.deploy.pictures import Preprocessing
from retinanet_plugin.deploy.plain_detectron2 import write_detectron2
from retinanet_plugin.engine import Checkpointer
from retinanet_plugin.inference import RetinaNetInference

EXAMPLE = ROOT / "examples/onnx_predict.py"
HEAD = """
_BASE_: "{root}/configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml"
MODEL:
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}
  RETINANET: {{IOU_BRANCH: True, BOX_SCALES: True}}
"""
# All else that detects otherwise than Detectron2.
EVERYTHING = """
  BACKBONE: {NAME: "build_fpn_linear_p7_backbone"}
  RETINANET:
    IOU_BRANCH: True
    BOX_SCALES: True
    SCORE_VOTING: True
    CLIP_BEFORE_NMS: True
    BFLOAT16: True
    IN_FEATURES: ["p3", "p4", "p5", "p6"]
  ANCHOR_GENERATOR: {SIZES: [[16, 24], [32, 48], [64, 96], [128, 192]]}
"""


VOTING = "MODEL.RETINANET.SCORE_VOTING"
CANDIDATES_OF_LEVEL = "MODEL.RETINANET.TOPK_CANDIDATES_TEST"


def write_detector(folder, config, name):
    """With IoUs and scales of boxes that differ."""
    path = folder / "given.yaml"
    path.write_text(config)
    detector = write_small_detector(folder, str(path), name)
    head = detector.model.head
    with torch.no_grad():
        head.iou_pred.weight.normal_(std=0.05)
        head.iou_pred.bias.fill_(2.0)
        head.box_scales.copy_(torch.linspace(0.5, 1.5, len(head.box_scales)))
    Checkpointer(detector.model, str(folder), cfg=detector.cfg).save("model")
    return detector


def export(*args):
    main(["export", *map(str, args)])


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A ResNet-18, which is exported fast, and the parts that only this package's head has."""
    return write_detector(tmp_path_factory.mktemp("iou"), HEAD.format(root=ROOT), "iou_ants")


@pytest.fixture(scope="module")
def onnx_file(detector, tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export("onnx", detector.weights, path, "--images", detector.images)
    return path


def assert_detects_the_same(path, detector):
    exported, expected = Predictor(path), Predictor(detector.weights)
    assert exported.class_names == expected.class_names
    found = exported(detector.files)  # of several sizes, some of them in batches
    assert_equal_detections(found, expected(detector.files))
    voted, expected = (Predictor(x, opts=[VOTING, True]) for x in (path, detector.weights))
    assert_equal_detections(voted(detector.files), expected(detector.files))
    strict = Predictor(path, opts=["MODEL.RETINANET.SCORE_THRESH_TEST", 0.6])
    for some, many in zip(strict(detector.files), found):
        assert len(some) == (many.scores > 0.6).sum()


def test_onnx_detects_the_same_in_batches_of_any_size(onnx_file, detector):
    assert_detects_the_same(onnx_file, detector)


@pytest.fixture(scope="module")
def unequal_images(tmp_path_factory):
    """Files of 50 sizes, upright and lying, none a multiple of the stride."""
    folder = tmp_path_factory.mktemp("unequal")
    rng = np.random.default_rng(0)
    for i in range(50):
        height, width = (101 + 3 * i, 213 - 2 * i)[:: 1 if i % 2 else -1]
        coarse = rng.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("kind", [("onnx", "model.onnx"), ("openvino", "model.xml")], ids=str)
def test_50_images_of_unequal_sizes(kind, detector, unequal_images, tmp_path, capsys):
    """The command refuses other numbers of detections, 1e-4 in score and 0.1 px."""
    pytest.importorskip("onnxscript" if kind[0] == "onnx" else "openvino")
    export(kind[0], detector.weights, tmp_path / kind[1], "--images", unequal_images)
    (count,) = re.findall(r"([\d,]+) detections in 50 images, the same", capsys.readouterr().out)
    assert int(count.replace(",", "")) > 500


def test_onnx_has_1x1_convolutions_as_they_were(onnx_file):
    import onnx

    dilations = [x for node in onnx.load(onnx_file).graph.node for x in node.attribute]
    assert {tuple(x.ints) for x in dilations if x.name == "dilations"} == {(1, 1)}


def test_onnx_says_what_it_is(onnx_file):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    notes = {key: json.loads(text) for key, text in notes.items()}
    assert notes["class_names"] == ["bee", "ant"]
    assert notes["preprocessing"]["min_size_test"] == 160
    assert [level["stride"] for level in notes["anchors"]] == [8, 16, 32]
    assert "WEIGHTS: ''" in notes["config"]  # no path of this machine
    shape = session.get_inputs()[0].shape
    assert [type(side) for side in shape] == [str, int, str, str]


def run_example(*args):
    """In a process that has neither PyTorch nor Detectron2."""
    code = (
        "import runpy, sys; sys.modules.update(torch=None, detectron2=None, retinanet_plugin=None);"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    )
    command = [sys.executable, "-c", code, str(EXAMPLE), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("decoding", "opts"),
    [
        ({}, []),
        ({"score_voting": True, "topk_candidates": 30}, [VOTING, True, CANDIDATES_OF_LEVEL, 30]),
        ({"clip_before_nms": True}, ["MODEL.RETINANET.CLIP_BEFORE_NMS", True]),
    ],
    ids=str,
)
def test_the_example_needs_neither_pytorch_nor_detectron2(
    decoding, opts, onnx_file, detector, tmp_path
):
    import onnx

    model = onnx.load(onnx_file)
    notes = {x.key: x.value for x in model.metadata_props}
    notes["decoding"] = json.dumps(json.loads(notes["decoding"]) | decoding)
    onnx.helper.set_model_props(model, notes)
    onnx.save(model, tmp_path / "model.onnx")
    predictor = Predictor(detector.weights, opts=opts)
    for path in detector.files[1:4]:  # one of them is turned by EXIF
        ran = run_example(tmp_path / "model.onnx", path)
        assert ran.returncode == 0, ran.stderr
        (expected,) = predictor(path)
        rows = [line.split() for line in ran.stdout.splitlines()]
        assert len(rows) == len(expected) > 0
        found = torch.tensor([[float(x) for x in row[1:]] for row in rows])
        wanted = torch.cat([expected.scores[:, None], expected.pred_boxes.tensor], dim=1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
        assert [r[0] for r in rows] == [predictor.class_names[c] for c in expected.pred_classes]


def test_mistakes_of_the_example_are_sentences(onnx_file, detector, tmp_path):
    half = tmp_path / "half.png"
    half.write_bytes(detector.files[0].read_bytes()[:500])
    model = tmp_path / "half.onnx"
    model.write_bytes(onnx_file.read_bytes()[:500])
    for args, sentence in (
        ((onnx_file, half), f"error: {half} cannot be read"),
        ((onnx_file, tmp_path / "none.png"), f"error: {tmp_path}/none.png cannot be read"),
        ((model, half), f"error: {model} is no file of export onnx"),
        ((tmp_path / "none.onnx", half), f"error: {tmp_path}/none.onnx is no file of export onnx"),
        ((onnx_file, half, half), "error: 3 files are given, not a model and one image: onnx_pr"),
    ):
        ran = run_example(*args)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith(sentence), ran.stderr
        assert "Traceback" not in ran.stderr


def test_nms_and_voting_in_the_graph_detect_the_same(detector, tmp_path, onnx_file):
    path, opts = tmp_path / "model.onnx", [CANDIDATES_OF_LEVEL, 30, VOTING, True]
    export("onnx", detector.weights, path, "--nms", "--images", detector.images, "--opts", *opts)
    predictor = Predictor(path)
    found, names = predictor(detector.files), predictor.class_names
    assert_equal_detections(found, Predictor(detector.weights, opts=opts)(detector.files))
    ran = run_example(path, detector.files[1])
    of_graph = [line.split()[0] for line in ran.stdout.splitlines()]
    assert of_graph == [names[c] for c in found[1].pred_classes] != []
    for i in (0, 2):  # each does something
        other = Predictor(detector.weights, opts=opts[i : i + 2])(detector.files)
        with pytest.raises(AssertionError):
            assert_equal_detections(found, other)
    with pytest.raises(UserError, match=r"runs on the CPU: leave out the device cuda:0"):
        Predictor(path, device="cuda:0")
    with pytest.raises(UserError, match="has NMS and its thresholds in it"):
        Predictor(path, opts=["MODEL.RETINANET.SCORE_THRESH_TEST", 0.6])


class CandidatesOfPixels(nn.Module):
    """In place of a network: each row of an image (1, 1, C, 6) is a box, a score and a class."""

    def __init__(self, score_voting):
        super().__init__()
        self.raw = SimpleNamespace(model=SimpleNamespace(num_classes=3))
        transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
        self.inference = RetinaNetInference(
            box2box_transform=transform, max_detections_per_image=20, score_voting=score_voting
        )

    def forward(self, images):
        rows = images[0, 0]
        rows = rows[(rows[:, 4] > self.inference.score_thresh).nonzero(as_tuple=True)[0]]
        return rows[:, :4], rows[:, 4], rows[:, 5].long()


@pytest.mark.filterwarnings("ignore:# The axis name")  # of dimensions that are the same
@pytest.mark.parametrize("score_voting", [False, True])
def test_detections_of_no_one_and_many_candidates(score_voting):
    """Of three classes, boxes without an area among them, and more than are kept."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    candidates = CandidatesOfPixels(score_voting).eval()
    sides = {2: torch.export.Dim("rows")}
    content = detecting_onnx(candidates, torch.rand(1, 1, 5, 6), sides).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    for count in (0, 1, 2, 3, 30, 400):
        centres, sizes = torch.rand(count, 2) * 60 + 20, torch.rand(count, 2) * 40
        sizes[1::7] = 0
        boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)
        scores, classes = torch.rand(count), torch.randint(3, (count,))
        logits = torch.full((1, 1, count, 1, 3), -math.inf)
        logits[0, 0, range(count), 0, classes] = scores.logit()
        (expected,) = candidates.inference(
            [Boxes(boxes)], [logits], [torch.zeros(1, 1, count, 1, 4)], [(100, 100)]
        )
        rows = torch.cat([boxes, scores[:, None], classes[:, None]], dim=1)
        outputs = session.run(None, {"images": rows[None, None].numpy()})
        boxes, scores, classes = (torch.as_tensor(x) for x in outputs)
        found = Instances((100, 100), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        score, pixels = differences(expected, found)
        assert score < 1e-5
        assert pixels < 0.01


def test_a_program_of_everything_at_once_detects_the_same(tmp_path, capsys):
    config = HEAD.format(root=ROOT).partition("  RETINANET")[0] + EVERYTHING
    detector = write_detector(tmp_path, config, "all_ants")
    path = tmp_path / "model.pt2"
    export("torch", detector.weights, path)
    predictors = (
        Predictor(path),
        Predictor(detector.weights, opts=["MODEL.RETINANET.BFLOAT16", False]),
    )
    found, expected = (predictor(detector.files) for predictor in predictors)
    assert_equal_detections(found, expected)
    for key in ("SCORE_VOTING", "CLIP_BEFORE_NMS"):  # each is there, and does something
        other = Predictor(path, opts=[f"MODEL.RETINANET.{key}", False])(detector.files)
        with pytest.raises(AssertionError):
            assert_equal_detections(other, expected)
    with pytest.raises(SystemExit, match=r"CLIP_BEFORE_NMS is True, .*: leave --nms out, or add"):
        export("onnx", detector.weights, tmp_path / "model.onnx", "--nms")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        Predictor(path)


def test_openvino_detects_the_same(detector, tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    export("openvino", detector.weights, path, "--images", detector.images)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert_detects_the_same(path, detector)
    (tmp_path / "model.bin").write_bytes(b"half of it")
    with pytest.raises(UserError, match="cannot be read"):
        Predictor(path)


def test_openvino_that_was_not_written_leaves_nothing(detector, tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")

    def stop(model, path, **_):
        Path(path).write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino, "save_model", stop)
    with pytest.raises(SystemExit, match=r"error: .*model.xml cannot be written .*No space left"):
        export("openvino", detector.weights, tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_openvino_is_heard(detector, tmp_path, clean_env):
    """OpenVINO leaves a stack for signals behind, in memory that it takes back."""
    pytest.importorskip("openvino")
    code = """
import signal, sys
from retinanet_plugin import Predictor
from retinanet_plugin.__main__ import main
from retinanet_plugin.engine import stop_signals
main(["export", "openvino", sys.argv[1], sys.argv[2]])
Predictor(sys.argv[2])
with stop_signals():
    signal.raise_signal(signal.SIGTERM)
"""
    command = [sys.executable, "-c", code, str(detector.weights), str(tmp_path / "model.xml")]
    ran = subprocess.run(command, capture_output=True, text=True, env=clean_env)
    assert ran.returncode == 143, ran.stderr


def test_openvino_in_8_bits_has_integers_and_tells_nobody(detector, tmp_path, clean_env):
    pytest.importorskip("nncf")
    code = """
import sys
network = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"}
sys.addaudithook(lambda event, args: print("tried", event, args) if event in network else None)
from retinanet_plugin.__main__ import main
main(sys.argv[1:])
print("telemetry:", sys.modules["openvino_telemetry"])
"""
    path = tmp_path / "model.xml"
    truth = detector.folder / "truth.json"
    args = ["export", "openvino", detector.weights, path, "--int8"]
    args += ["--images", detector.images, "--truth", truth]
    command = [sys.executable, "-c", code, *map(str, args)]  # pytest turns NNCF's reports off
    ran = subprocess.run(command, capture_output=True, text=True, env=clean_env)
    assert ran.returncode == 0, ran.stderr
    assert 'element_type="i8"' in path.read_text()
    assert Predictor(path)(detector.files[0])[0].image_size == (90, 120)
    assert re.search(r"detections in 6 images.* AP \d+\.\d, PyTorch \d", ran.stdout)
    assert "Average Recall" not in ran.stdout
    assert "tried" not in ran.stdout
    assert "telemetry: None" in ran.stdout


def images_of_which_are_damaged(folder, detector, names):
    """The detector's six images, and others that are cut off."""
    shutil.copytree(detector.images, folder)
    for name in names:
        (folder / name).write_bytes(detector.files[0].read_bytes()[:999])
    return folder


def test_a_damaged_image_gives_no_ranges_and_is_not_compared(
    detector, tmp_path, monkeypatch, capfd
):
    used = []
    module = "retinanet_plugin.commands.export"
    monkeypatch.setattr(f"{module}.write_openvino", lambda *args: used.append(args[2]))
    monkeypatch.setattr(f"{module}.compare", lambda *args: used.append(args[2]))
    monkeypatch.setattr(f"{module}.Predictor", str)
    images = images_of_which_are_damaged(tmp_path / "images", detector, ["00.png"])
    export("openvino", detector.weights, tmp_path / "a.xml", "--int8", "--images", images)
    assert used == [[str(images / f"{i}.png") for i in range(6)]] * 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if "WARNING" in x]
    assert line.startswith(f"WARNING: left out: the image {images / '00.png'} cannot be read")


def test_images_of_which_most_are_damaged_are_an_error(detector, tmp_path):
    names = [f"0{i}.png" for i in range(7)]
    images = images_of_which_are_damaged(tmp_path / "images", detector, names)
    with pytest.raises(SystemExit, match="error: 7 of 13 images of --images cannot be read"):
        export("torch", detector.weights, tmp_path / "model.pt2", "--images", images)
    assert not (tmp_path / "model.pt2").exists()


def test_images_without_truth_give_the_ranges_and_those_with_it_are_compared(detector, tmp_path):
    """As plans have it: images to train on and for validation in one folder."""
    truth = json.loads((detector.folder / "truth.json").read_text())
    kept = {image["id"] for image in truth["images"][:2]}
    truth["images"] = [x for x in truth["images"] if x["id"] in kept]
    truth["annotations"] = [x for x in truth["annotations"] if x["image_id"] in kept]
    (tmp_path / "val.json").write_text(json.dumps(truth))
    names = [str(path) for path in detector.files]
    known = [name for name in names if Path(name).name in {x["file_name"] for x in truth["images"]}]

    compared, ranged = roles_of(names, str(tmp_path / "val.json"), [])
    assert (len(known), compared) == (2, known)
    assert ranged == [name for name in names if name not in known]
    assert roles_of(known, str(tmp_path / "val.json"), []) == (known, known)
    with pytest.raises(UserError, match="is not one of the images in"):
        roles_of(ranged, str(tmp_path / "val.json"), [])


def test_plain_detectron2_opens_its_export(tmp_path, small_cfg, capsys):
    config = tmp_path / "small.yaml"
    small_cfg.INPUT.MIN_SIZE_TEST, small_cfg.INPUT.MAX_SIZE_TEST = 96, 128
    small_cfg.MODEL.RETINANET.SCORE_VOTING = True
    small_cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupStableDecayLR"
    config.write_text(small_cfg.dump())
    detector = write_small_detector(tmp_path, str(config), "plain_ants")
    output = tmp_path / "plain/model.yaml"
    with pytest.raises(SystemExit, match=f"or add --opts {VOTING} False, which costs about 1 AP"):
        export("detectron2", detector.weights, output)
    export("detectron2", detector.weights, output, "--opts", VOTING, False)
    cfg = get_cfg()  # without this package's keys
    cfg.merge_from_file(str(output))
    plain = DefaultPredictor(cfg)
    build_lr_scheduler(cfg, torch.optim.SGD(plain.model.parameters(), lr=1.0))  # can be trained
    assert type(plain.model).__module__.startswith("detectron2.")
    assert "the same within" in capsys.readouterr().out
    for path in detector.files:
        found = plain(read_image({"file_name": str(path)}, "BGR"))["instances"]
        expected = Predictor(detector.weights, opts=[VOTING, False])(path)
        assert_equal_detections([found], expected)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["onnx", "model.pt2"], r"onnx is written to a \.onnx file"),
        (["torch", "model.pt2", "--int8"], "--int8 is for openvino"),
        (["torch", "model.pt2", "--nms"], "--nms is for onnx"),
        (["openvino", "model.xml", "--int8"], "give --images"),
        (["onnx", "model.onnx", "--truth", "truth.json"], "give --images FOLDER as well"),
        (["detectron2", "model.yaml"], "MODEL.FPN.TOP_BLOCK_IN_FEATURE is 'res4'"),
        (["onnx", "model.onnx", "--images", "{tmp}"], "has no images"),
        (["onnx", "model.onnx", "--images", __file__], "is no folder"),
        (["onnx", f"{__file__}/model.onnx"], "cannot be written to"),
    ],
)
def test_mistakes_are_sentences(args, sentence, detector, tmp_path):
    kind, output, *more = (arg.format(tmp=tmp_path) for arg in args)
    with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
        export(kind, detector.weights, tmp_path / output, *more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        (["onnx", "model.onnx"], ["onnxscript", "onnxruntime"]),
        (["openvino", "model.xml", "--int8", "--images", "."], ["nncf"]),
    ],
)
def test_missing_packages_are_named_before_the_work(args, missing, tmp_path, monkeypatch):
    find = importlib.util.find_spec

    def find_others(name, *rest):
        known = "json" if name in ("onnx", "openvino") else name  # wherever this runs
        return None if name in missing else find(known, *rest)

    monkeypatch.setattr("importlib.util.find_spec", find_others)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("image.png")
    kind, output, *more = args
    # Of weights that are not there.
    with pytest.raises(SystemExit, match=f"error: .* packages: pip install {' '.join(missing)}$"):
        export(kind, tmp_path / "none.pth", tmp_path / output, *more)


def test_what_does_not_detect_the_same_is_not_left(detector, tmp_path, monkeypatch):
    def differs(*_):
        return Comparison(1, 9, 8, 1, 0, 0.0, 0.0, (1.0, 1.0), None)

    monkeypatch.setattr("retinanet_plugin.commands.export.compare", differs)
    monkeypatch.setattr("retinanet_plugin.commands.export.Predictor", str)
    with pytest.raises(SystemExit, match=r"error: .*model\.pt2 would not detect the same"):
        export("torch", detector.weights, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_too_small_for_a_program(small_cfg, tmp_path):
    small_cfg.INPUT.MIN_SIZE_TEST = 128
    network = SimpleNamespace(
        model=build_model(small_cfg), cfg=small_cfg, preprocessing=Preprocessing.of(small_cfg)
    )
    with pytest.raises(
        UserError, match=r"MIN_SIZE_TEST is 128.*takes images of \d+ pixels or more"
    ):
        write_program(network, str(tmp_path / "model.pt2"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.BACKBONE.NAME", "build_fpn_linear_p7_backbone"),
        ("MODEL.FPN.BOTTOM_UP", "build_timm_backbone"),
        ("MODEL.RETINANET.BOX_SCALES", True),
        ("MODEL.RETINANET.IOU_BRANCH", True),
        ("MODEL.RETINANET.SCORE_VOTING", True),
        ("MODEL.RETINANET.CLIP_BEFORE_NMS", True),
        ("MODEL.ANCHOR_GENERATOR.NAME", "WholePixelAnchorGenerator"),
    ],
)
def test_plain_detectron2_is_not_given_what_it_lacks(key, value, small_cfg, tmp_path):
    small_cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=f"{key} is {value!r}, which Detectron2"):
        write_detectron2(small_cfg, str(tmp_path / "model.yaml"))
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_not_exported_again(tmp_path):
    with pytest.raises(SystemExit, match=r"error: model.onnx is an export: give the checkpoint"):
        export("torch", "model.onnx", tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("output", "there"),
    [
        (["onnx", "model.onnx"], "model.onnx"),
        (["openvino", "model.xml"], "model.bin"),
        (["detectron2", "model.yaml"], "model.pth"),
    ],
)
def test_files_that_are_there_stay(output, there, detector, tmp_path):
    (tmp_path / there).write_text("mine")
    kind, name = output
    with pytest.raises(SystemExit, match=f"error: .*{there} exists already: delete it, or name an"):
        export(kind, detector.weights, tmp_path / name)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(there, "mine")]


def test_detections_of_equal_scores_are_the_same_in_any_order():
    boxes = Boxes(torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20], [30, 30, 40, 40]]))
    scores, classes = torch.tensor([0.5, 0.5, 0.4]), torch.tensor([0, 1, 0])
    found = Instances((50, 50), pred_boxes=boxes, scores=scores, pred_classes=classes)
    assert differences(found, found[[1, 0, 2]]) == (0, 0)
    moved = Boxes(boxes.tensor + 0.05)
    other = Instances((50, 50), pred_boxes=moved, scores=scores - 0.1, pred_classes=classes)
    assert differences(found, other) == pytest.approx((0.1, 0.05), abs=1e-5)
    assert differences(found, found[:2]) == (math.inf, math.inf)
    broken = Instances((50, 50), pred_boxes=boxes, scores=scores * math.nan, pred_classes=classes)
    assert all(map(math.isnan, differences(found, broken)))
    other.pred_classes = torch.tensor([0, 0, 0])
    assert differences(found, other) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        ("aab bb", "aab bb", "5 detections in 2 images, the same within 0.0e+00"),
        ("aab bb", "aa bbb", "5 detections in 2 images, PyTorch 5, others in 2 of 2 images"),
        ("aab bb", "abb bb", "5 detections in 2 images, PyTorch 5, others in 1 of 2 images"),
        ("aab bb", "aab bx", "5 detections in 2 images, PyTorch 5, NaN in 1 of 2 images"),
        (
            "aab bb",
            "a xx",
            "3 detections in 2 images, PyTorch 5, others in 1 of 2 images, NaN in 1",
        ),
    ],
)
def test_what_is_not_the_same_is_told(expected, found, told):
    """A letter is a detection of this class, x one whose box is NaN."""

    def detections(letters):
        boxes = [[i, 0.0, i + 1, math.nan if x == "x" else 1] for i, x in enumerate(letters)]
        return Instances(
            (9, 9),
            pred_boxes=Boxes(torch.tensor(boxes)),
            scores=torch.full((len(letters),), 0.5),
            pred_classes=torch.tensor(["ab".find(x) % 2 for x in letters]),
        )

    images = [np.zeros((9, 9, 3), np.uint8)] * 2
    of_torch, of_export = map(detections, expected.split()), map(detections, found.split())
    network = SimpleNamespace(
        preprocessing=SimpleNamespace(prepare=lambda image: image),
        detect=lambda batch: [next(of_torch)],
    )
    comparison = compare(network, lambda batch: [next(of_export)], images)
    assert str(comparison).startswith(told)
    if expected == found:
        comparison.refuse_unless_equal("model.onnx")
    else:
        with pytest.raises(UserError, match=r"model.onnx would not detect the same \("):
            comparison.refuse_unless_equal("model.onnx")


def test_anchors_that_a_file_does_not_describe_are_refused(small_cfg):
    small_cfg.MODEL.ANCHOR_GENERATOR.NAME = "WholePixelAnchorGenerator"
    model = build_model(small_cfg)
    with pytest.raises(UserError, match=r"ANCHOR_GENERATOR\.NAME is WholePixelAnchorGenerator"):
        exported_graph(SimpleNamespace(model=model, cfg=small_cfg))


def test_onnx_files_of_others_and_halves_are_sentences(onnx_file, tmp_path):
    import onnx

    other = onnx.load(onnx_file)
    kept = [x for x in other.metadata_props if x.key != "padding"]
    del other.metadata_props[:]
    other.metadata_props.extend(kept)
    onnx.save(other, tmp_path / "older.onnx")
    with pytest.raises(UserError, match=r"was exported by version \d.* of this package, which"):
        Predictor(tmp_path / "older.onnx")
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="does not say what it was made from"):
        Predictor(tmp_path / "other.onnx")
    content = onnx_file.read_bytes()
    (tmp_path / "half.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        Predictor(tmp_path / "half.onnx")


def test_files_of_others_are_sentences(tmp_path):
    for name in ("x.onnx", "x.xml", "x.pt2"):
        with pytest.raises(ValueError, match="is not there"):
            Predictor(tmp_path / name)
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"cannot be read|needs a package"):
            Predictor(tmp_path / name)
