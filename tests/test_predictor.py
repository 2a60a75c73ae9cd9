"""Predictor: the detections of evaluation, from files, arrays, lists and folders."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import assert_equal_detections
from detectron2.modeling import build_model
from PIL import Image

from retinanet_plugin import Predictor, UserError
from retinanet_plugin.data.images.read_image import read_image
from retinanet_plugin.deploy.cpu_convolutions import dilate_pointwise, fold_norms
from retinanet_plugin.deploy.pictures import images_in, picture_of, to_picture
from retinanet_plugin.engine import Trainer


@pytest.fixture(scope="module")
def predictor(detector):
    return Predictor(detector.weights)


# ------------------------------------------------------------------ the detections of evaluation


def test_detections_are_those_that_evaluation_writes(detector, predictor):
    Trainer.test(detector.cfg, detector.model)
    path = detector.folder / "output/inference/ants/coco_instances_results.json"
    evaluated = defaultdict(list)
    for detection in json.loads(path.read_text()):
        evaluated[detection["image_id"]].append(detection)
    for i, found in enumerate(predictor(detector.images)):
        expected = evaluated[10 + i]
        assert len(found) == len(expected) > 5
        boxes = torch.tensor([d["bbox"] for d in expected])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=0, atol=0.01)
        scores = torch.tensor([d["score"] for d in expected])
        torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-5)
        categories = [{"ant": 7, "bee": 3}[predictor.class_names[c]] for c in found.pred_classes]
        assert categories == [d["category_id"] for d in expected]


def test_a_batch_finds_what_single_images_have(detector, predictor):
    single = [predictor(path)[0] for path in detector.files]
    assert_equal_detections(predictor(detector.files), single)
    in_batches = Predictor(detector.weights)
    in_batches._network.runs_on_cpu = False  # as on a GPU
    assert_equal_detections(in_batches(detector.files), single)


def test_folded_norms_change_rounding_alone(detector):
    folded = Predictor(detector.config, detector.weights)._network.model
    assert not [x for x in folded.backbone.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for name, expected in detector.model.eval().backbone(images).items():
            found = folded.backbone(images)[name]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_norms_of_a_batch_are_not_folded(small_cfg):
    small_cfg.MODEL.RESNETS.NORM = "GN"
    model = build_model(small_cfg)
    before = str(model)
    fold_norms(model)
    assert str(model) == before


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_one_thread_leaves_1x1_convolutions_to_onednn(one_thread):
    model = torch.nn.Sequential(torch.nn.Conv2d(32, 64, 1), torch.nn.Conv2d(64, 32, 3)).eval()
    images = torch.rand(1, 32, 60, 80)
    with torch.no_grad():
        expected = model(images)
        assert "thnn" in operators(model, images)
        dilate_pointwise(model)
        assert "thnn" not in operators(model, images)
        torch.testing.assert_close(model(images), expected)


def with_threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    yield from with_threads(1)


def operators(model, images):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(images)
    return " ".join(event.key for event in profile.key_averages())


def test_config_and_weights_are_as_good_as_a_checkpoint(detector, predictor):
    other = Predictor(str(detector.config), str(detector.weights), device="cpu")
    assert other.class_names == predictor.class_names
    assert set(other.class_names) == {"ant", "bee"}
    assert_equal_detections(other(detector.files), predictor(detector.files))


def test_keys_can_be_set(detector):
    opts = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.6, "MODEL.RETINANET.BFLOAT16", True]
    strict = Predictor(detector.weights, opts=opts)
    found = strict(detector.images)
    assert all((x.scores > 0.6).all() for x in found)
    assert sum(map(len, found)) > 0


def test_threads_share_a_predictor_and_pytorchs_threads_stay(detector, predictor):
    expected, results, before = predictor(detector.files), {}, torch.get_num_threads()

    def call(i):
        results[i] = predictor(detector.files)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert_equal_detections(results[i], expected)
    assert torch.get_num_threads() == before
    new = []
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [before]


def test_pickles_and_forks_predict(detector, two_torch_threads):
    predictor = Predictor(detector.weights, device="cpu")
    expected = predictor(detector.files[:2])  # with threads, which a fork does not have
    predictor(detector.files[0])
    assert_equal_detections(pickle.loads(pickle.dumps(predictor))(detector.files[:2]), expected)
    assert_equal_detections(in_a_fork(predictor, detector.files[:2]), expected)
    assert_equal_detections(in_a_fork(predictor, detector.files[:1]), expected[:1])
    on_gpu = Predictor(detector.weights, device="cpu")
    on_gpu._network.runs_on_cpu = False
    assert "open it in each process" in str(in_a_fork(on_gpu, detector.files))


def in_a_fork(predictor, files):
    """What ``predictor`` finds, or raises, in a fork of this process."""
    ours, theirs = multiprocessing.Pipe()

    def call():
        try:
            theirs.send_bytes(pickle.dumps(predictor(files)))  # send() would share tensors' memory
        except UserError as error:
            theirs.send_bytes(pickle.dumps(error))

    child = multiprocessing.get_context("fork").Process(target=call)
    child.start()
    try:
        assert ours.poll(60), "it hangs"
        return pickle.loads(ours.recv_bytes())
    finally:
        child.kill()
        child.join()


@pytest.fixture
def two_torch_threads():
    yield from with_threads(2)


def test_a_script_says_nothing_but_what_it_prints(detector, clean_env):
    script = (
        "import sys; from retinanet_plugin import Predictor; Predictor(sys.argv[1])(sys.argv[2])"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, detector.weights, detector.files[0]],
        env=clean_env, capture_output=True, text=True,
    )  # fmt: skip
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_a_stream_reads_only_a_few_ahead(detector, predictor):
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield detector.files[0]

    stream = predictor.stream(endless())
    for _ in range(3):
        next(stream)
    assert len(asked) < 3 + 2 * predictor._workers.count + 2


# ------------------------------------------------------------------ arrays


def test_arrays_are_as_files(detector, predictor):
    path = detector.files[0]
    rgb = np.asarray(Image.open(path))
    expected = predictor(path)
    assert_equal_detections(predictor(rgb[:, :, ::-1]), expected)
    assert_equal_detections(predictor([rgb], order="RGB"), expected)
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    assert_equal_detections(predictor(np.dstack([rgb, alpha]), order="RGB"), expected)
    assert_equal_detections(predictor(rgb.astype(np.uint16) * 257, order="RGB"), expected)


def test_images_of_pillow_are_as_files(detector, predictor, tmp_path):
    for path in detector.files[1:3]:  # one is turned by EXIF
        assert_equal_detections(predictor(Image.open(path)), predictor(path))
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as deep:
        assert np.array_equal(
            picture_of(deep, "BGR", "BGR"), picture_of(tmp_path / "deep.png", "BGR", "BGR")
        )


def test_a_stream_of_one_path_or_folder(detector, predictor):
    assert_equal_detections(
        list(predictor.stream(str(detector.files[0]))), predictor(detector.files[:1])
    )
    assert len(list(predictor.stream(detector.images))) == len(detector.files)


def test_grey_arrays_and_16_bits(tmp_path):
    words = np.array([[0, 65535], [257, 128]], np.uint16)
    Image.fromarray(words).save(tmp_path / "words.png")

    expected = read_image({"file_name": str(tmp_path / "words.png")}, "BGR")
    assert expected[:, :, 0].tolist() == [[0, 255], [1, 0]]
    for grey in (words, words[:, :, None]):
        assert np.array_equal(to_picture(grey, "BGR", "BGR"), expected)
    colours = np.array([[[1, 2, 3]]], np.uint8)
    assert to_picture(colours, "RGB", "BGR").tolist() == [[[3, 2, 1]]]
    assert to_picture(colours, "BGR", "BGR").tolist() == [[[1, 2, 3]]]
    assert to_picture(colours[:, :, :1], "L", "BGR").shape == (1, 1, 1)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 60, 80), np.uint8),
        np.zeros((2, 60, 80, 3), np.uint8),
        np.zeros((60, 80, 3), np.float32),
        np.zeros((60, 80), bool),
        np.zeros((0, 80, 3), np.uint8),
        np.zeros((60, 80, 2), np.uint8),
    ],
)
def test_what_is_no_picture_is_a_sentence_with_its_shape(array, predictor):
    with pytest.raises(UserError, match=r"shape \(.*: give \(height, width\)") as raised:
        predictor([array])
    assert f"{array.shape}, {array.dtype}" in str(raised.value)


# ------------------------------------------------------------------ mistakes


def test_unreadable_files_are_named_and_a_stream_goes_on(detector, predictor, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"the image .*bad\.jpg cannot be read"):
        predictor([detector.files[0], bad])
    with pytest.raises(UserError, match=r"gone\.jpg cannot be read .*: correct the path$"):
        predictor(tmp_path / "gone.jpg")
    flat = np.zeros((1, 20000, 3), np.uint8)  # of which resizing leaves nothing
    others = [bad, None, torch.zeros(3, 64, 64), flat]
    first, *errors, last = predictor.stream(iter([detector.files[0], *others, detector.files[0]]))
    assert [type(error) for error in errors] == [UserError] * 4
    assert "an image is of type NoneType: give" in str(errors[1])
    assert "an image is 20000 x 1 pixels, and none would be left of its shorter" in str(errors[3])
    assert_equal_detections([last], [first])


def test_mistakes_are_sentences(detector, predictor, tmp_path):
    for call, sentence in (
        (lambda: predictor(3), "an image is of type int: give the path"),
        (lambda: predictor(tmp_path), "has no images"),
        (lambda: predictor(detector.files, order="GBR"), "the order of colours is 'GBR'"),
        (lambda: Predictor(detector.folder / "missing.pth"), r"missing\.pth cannot be read"),
        (
            lambda: Predictor(detector.weights, detector.weights),
            r"a \.yaml file",
        ),
        (lambda: Predictor(detector.weights, device="cuda:99"), "the device cuda:99"),
        (lambda: Predictor(detector.weights, opts=["MODEL.NO", "1"]), "MODEL.NO"),
    ):
        with pytest.raises(UserError, match=sentence):
            call()


def test_it_says_what_it_is(detector):
    weights = detector.weights
    opts = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.6]
    described = f"<Predictor {weights} on cpu: 2 classes (bee, ant), scores from 0.6>"
    assert repr(Predictor(weights, device="cpu", opts=opts)) == described


def test_folders_give_their_images_alone(detector, tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "c.pdf", "._b.JPG"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    assert [path.rpartition("/")[2] for path in images_in(str(tmp_path))] == ["a.png", "b.JPG"]


def test_to_supervision(detector, predictor):
    pytest.importorskip("supervision")
    (found,) = predictor(detector.files[0])
    detections = predictor.to_supervision(found)
    assert np.array_equal(detections.xyxy, found.pred_boxes.tensor.numpy())
    assert np.array_equal(detections.confidence, found.scores.numpy())
    names = [predictor.class_names[i] for i in found.pred_classes]
    assert detections.data["class_name"].tolist() == names
    empty = predictor.to_supervision(found[:0])
    assert len(empty) == 0
