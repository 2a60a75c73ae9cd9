"""python -m retinanet_plugin export: each format detects what PyTorch does."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, assert_equal_detections
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from small_detector import write_small_detector

from retinanet_plugin import Predictor
from retinanet_plugin.__main__ import main
from retinanet_plugin.data.images.read_image import read_image

EXAMPLE = ROOT / "examples/onnx_predict.py"


def export(*args):
    main(["export", *map(str, args)])


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
    strict = Predictor(path, opts=["MODEL.RETINANET.SCORE_THRESH_TEST", 0.6])
    for some, many in zip(strict(detector.files), found):
        assert len(some) == (many.scores > 0.6).sum()


def test_onnx_detects_the_same_in_batches_of_any_size(onnx_file, detector):
    assert_detects_the_same(onnx_file, detector)


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


def test_the_example_needs_neither_pytorch_nor_detectron2(onnx_file, detector):
    code = (
        "import runpy, sys; sys.modules.update(torch=None, detectron2=None, retinanet_plugin=None);"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    )
    for path in detector.files[1:4]:  # one of them is turned by EXIF
        command = [sys.executable, "-c", code, str(EXAMPLE), str(onnx_file), str(path)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        predictor = Predictor(detector.weights)
        (expected,) = predictor(path)
        rows = [line.split() for line in printed.splitlines()]
        assert len(rows) == len(expected) > 0
        found = torch.tensor([[float(x) for x in row[1:]] for row in rows])
        wanted = torch.cat([expected.scores[:, None], expected.pred_boxes.tensor], dim=1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
        assert [r[0] for r in rows] == [predictor.class_names[c] for c in expected.pred_classes]


def test_a_program_of_pytorch_detects_the_same(detector, tmp_path):
    path = tmp_path / "model.pt2"
    export("torch", detector.weights, path)
    assert_detects_the_same(path, detector)


def test_openvino_detects_the_same(detector, tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    export("openvino", detector.weights, path, "--images", detector.images)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert_detects_the_same(path, detector)


def test_openvino_in_8_bits_has_integers(detector, tmp_path, capsys):
    pytest.importorskip("nncf")
    path = tmp_path / "model.xml"
    truth = detector.folder / "truth.json"
    export(
        "openvino", detector.weights, path, "--int8", "--images", detector.images, "--truth", truth
    )
    assert 'element_type="i8"' in path.read_text()
    assert Predictor(path)(detector.files[0])[0].image_size == (90, 120)
    printed = capsys.readouterr().out
    assert re.search(r"detections in 6 images.* AP \d+\.\d, PyTorch \d", printed)
    assert "Average Recall" not in printed


def test_plain_detectron2_opens_its_export(tmp_path, small_cfg):
    config = tmp_path / "small.yaml"
    small_cfg.INPUT.MIN_SIZE_TEST, small_cfg.INPUT.MAX_SIZE_TEST = 96, 128
    config.write_text(small_cfg.dump())
    detector = write_small_detector(tmp_path, str(config), "plain_ants")
    output = tmp_path / "plain/model.yaml"
    export("detectron2", detector.weights, output)
    cfg = get_cfg()  # without this package's keys
    cfg.merge_from_file(str(output))
    plain = DefaultPredictor(cfg)
    assert type(plain.model).__module__.startswith("detectron2.")
    for path in detector.files:
        found = plain(read_image({"file_name": str(path)}, "BGR"))["instances"]
        assert_equal_detections([found], Predictor(detector.weights)(path))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["onnx", "model.pt2"], r"onnx is written to a \.onnx file"),
        (["torch", "model.pt2", "--int8"], "--int8 is for openvino"),
        (["openvino", "model.xml", "--int8"], "give --images"),
        (["onnx", "model.onnx", "--truth", "truth.json"], "give --images FOLDER as well"),
        (["detectron2", "model.yaml"], "MODEL.FPN.TOP_BLOCK_IN_FEATURE is 'res4'"),
        (["onnx", "model.onnx", "--images", "{tmp}"], "has no images"),
    ],
)
def test_mistakes_are_sentences(args, sentence, detector, tmp_path):
    kind, output, *more = (arg.format(tmp=tmp_path) for arg in args)
    with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
        export(kind, detector.weights, tmp_path / output, *more)
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_sentences(tmp_path):
    for name in ("x.onnx", "x.xml", "x.pt2"):
        with pytest.raises(ValueError, match="is not there"):
            Predictor(tmp_path / name)
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"cannot be read|needs a package"):
            Predictor(tmp_path / name)
