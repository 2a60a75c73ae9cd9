"""python -m retinanet_plugin predict: formats, stopping and going on, mistakes."""

import csv
import functools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
import tqdm
from conftest import assert_equal_detections
from detectron2.structures import Boxes, Instances
from PIL import Image

from retinanet_plugin import Predictor
from retinanet_plugin.__main__ import end_at_sigterm, main
from retinanet_plugin.deploy.formats import file_names, write_csv, write_yolo
from retinanet_plugin.deploy.journal import Journal
from retinanet_plugin.deploy.tiles import best_of_shared, detect_in_tiles
from retinanet_plugin.deploy.videos import Camera, Video, frames_of, mean_rate, open_video
from retinanet_plugin.errors import UserError

supervision = pytest.importorskip("supervision")

RECORD = {
    "path": "/a/cat.jpg", "frame": None, "name": "cat", "width": 200, "height": 100,
    "detections": [{"category_id": 1, "bbox": [20.0, 10.0, 40.0, 20.0], "score": 0.75}],
}  # fmt: skip


def predict(detector, *args):
    main(["predict", str(detector.weights), *map(str, args)])


@pytest.fixture
def looked_at(monkeypatch):
    """The sources that predictors have detected in, in this test."""
    looked_at, stream = [], Predictor.stream

    def noted(self, images, **kwargs):
        def sources():
            for image in images:
                looked_at.append(image)
                yield image

        return stream(self, sources(), **kwargs)

    monkeypatch.setattr(Predictor, "stream", noted)
    return looked_at


@pytest.mark.parametrize(
    ("handler", "number"),
    [(signal.default_int_handler, signal.SIGINT), (end_at_sigterm, signal.SIGTERM)],
)
def test_what_is_written_at_the_end_is_written_by_one_process(
    handler, number, detector, tmp_path, monkeypatch, capsys
):
    """The journal is held, and a run that is stopped then says how it goes on."""

    def stopped(folder, *_):
        lock = (
            "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_SH | fcntl.LOCK_NB)"
        )
        command = [sys.executable, "-c", lock, os.path.join(folder, "detections.jsonl")]
        assert b"BlockingIOError" in subprocess.run(command, capture_output=True).stderr
        handler(number, None)

    monkeypatch.setattr("retinanet_plugin.commands.predict.write_coco", stopped)
    with pytest.raises(SystemExit, match=str(128 + number)):
        predict(detector, detector.files[0], "--output", tmp_path / "out")
    assert "what is done is kept: the same command goes on\n" in capsys.readouterr().err


# ------------------------------------------------------------------ formats


def test_yolo_and_csv_by_hand(tmp_path):
    write_yolo(str(tmp_path), [RECORD], ["ant", "bee"])
    label = (tmp_path / "labels/cat.txt").read_text()
    assert label == "1 0.200000 0.200000 0.200000 0.200000 0.750000\n"
    assert (tmp_path / "classes.txt").read_text() == "ant\nbee\n"
    write_csv(str(tmp_path), [RECORD], ["ant", "bee"])
    with open(tmp_path / "predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["path"], row["class"], row["frame"]) == ("/a/cat.jpg", "bee", "")
    assert [float(row[key]) for key in ("score", "x1", "y1", "x2", "y2")] == [0.75, 20, 10, 60, 30]


def test_all_formats_of_a_folder(detector, tmp_path):
    output = tmp_path / "out"
    predict(detector, detector.images, "--output", output, "--format",
            "coco", "yolo", "csv", "images", "crops", "--truth", detector.folder / "truth.json",
            "--score-thresh", 0.5)  # fmt: skip
    results = json.loads((output / "predictions.json").read_text())
    expected = Predictor(detector.weights)(detector.images)
    expected = [found[found.scores > 0.5] for found in expected]
    assert len(results) == sum(map(len, expected)) > 0
    assert {result["category_id"] for result in results} <= {3, 7}
    for i, found in enumerate(expected):
        of_image = [result for result in results if result["image_id"] == 10 + i]
        scores = torch.tensor([result["score"] for result in of_image])
        torch.testing.assert_close(scores, found.scores, rtol=0, atol=1e-5)
        label = (output / f"labels/{i}.txt").read_text()
        assert label.count("\n") == len(found)
        assert cv2.imread(str(output / f"images/{i}.jpg")).shape[:2] == found.image_size
    crops = len(list(output.glob("crops/*/*.jpg")))
    assert 0 < crops <= len(results)  # none of what is smaller than a pixel


def test_without_truth_images_and_categories_are_counted_from_1(detector, tmp_path):
    predict(detector, detector.files[1], detector.files[0], "--output", tmp_path)
    listed = json.loads((tmp_path / "annotations.json").read_text())
    assert [image["id"] for image in listed["images"]] == [1, 2]
    assert listed["images"][0]["path"] == str(detector.files[1])
    assert listed["images"][0]["file_name"] == detector.files[1].name
    assert [(c["id"], c["name"]) for c in listed["categories"]] == [(1, "bee"), (2, "ant")]


# ------------------------------------------------------------------ stopping and going on


def test_a_run_that_was_stopped_goes_on_and_repeats_nothing(
    detector, tmp_path, looked_at, monkeypatch, capsys
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    predict(detector, detector.images, "--output", whole)
    looked_at.clear()
    stream, number = Predictor.stream, 0

    def stops(self, images, **kwargs):
        for number, found in enumerate(stream(self, images, **kwargs)):
            if number == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Predictor, "stream", stops)
    with pytest.raises(SystemExit, match="130"):
        predict(detector, detector.images, "--output", parts)
    assert "what is done is kept: the same command goes on\n" in capsys.readouterr().err
    monkeypatch.setattr(Predictor, "stream", stream)
    with open(parts / "detections.jsonl", "ab") as file:
        file.write(b'{"path": "cut o')  # by a power failure
    looked_at.clear()
    predict(detector, detector.images, "--output", parts)
    assert looked_at == [str(path) for path in detector.files[2:]]
    for name in ("predictions.json", "annotations.json", "detections.jsonl"):
        assert (parts / name).read_text() == (whole / name).read_text(), number
    looked_at.clear()
    predict(detector, detector.images, "--output", parts)
    assert looked_at == []


def test_other_options_do_not_go_on(detector, tmp_path):
    predict(detector, detector.files[0], "--output", tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*--score-thresh none, now 0\.7:"):
        predict(detector, detector.files[0], "--output", tmp_path, "--score-thresh", 0.7)


def test_score_thresholds_of_a_report(detector, tmp_path):
    """Each class has its own; the same in Python."""
    (found,) = Predictor(detector.weights)(detector.files[0])
    thresholds = {"ant": 1.0, "bee": float(found.scores[found.pred_classes == 0].median())}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"score_thresholds": thresholds}))
    kept = found[(found.pred_classes == 0) & (found.scores >= thresholds["bee"])]
    assert 0 < len(kept) < len(found)
    predictor = Predictor(detector.weights, score_thresholds=report)
    assert_equal_detections(predictor(detector.files[0]), [kept])
    assert_equal_detections(pickle.loads(pickle.dumps(predictor))(detector.files[0]), [kept])

    arguments = (detector.files[0], "--output", tmp_path / "out", "--score-thresholds", report)
    predict(detector, *arguments)
    results = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [r["score"] for r in results] == pytest.approx(kept.scores.tolist(), abs=1e-5)
    report.write_text(json.dumps({"score_thresholds": {**thresholds, "bee": 0.5}}))
    with pytest.raises(SystemExit, match="another size or time of --score-thresholds"):
        predict(detector, *arguments)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", r"report\.json has no score thresholds of classes: give report\.json"),
        ("[1", "has no score thresholds of classes"),
        ('{"score_thresholds": {"bee": 0.5}}', "has no score threshold of the class 'ant'"),
        (None, "cannot be read"),
    ],
)
def test_what_are_no_score_thresholds(detector, tmp_path, content, sentence):
    report = tmp_path / "report.json"
    if content:
        report.write_text(content)
    with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
        predict(detector, detector.files[0], "--output", tmp_path / "out", "--score-thresholds",
                report)  # fmt: skip


def test_detections_of_other_files_or_of_others_are_not_mixed(detector, tmp_path):
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    shutil.copy(detector.files[0], first)
    shutil.copy(detector.files[1], second)
    output = tmp_path / "out"

    def refused(sentence, *inputs, folder=output, formats=("coco",)):
        with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
            predict(detector, *inputs, "--output", folder, "--format", *formats)

    predict(detector, first, "--output", output, "--format", "coco", "csv")
    refused(r"of /.*first\.png too, which is not among the inputs", second)
    predict(detector, first, second, "--output", output)  # more of them
    shutil.copy(detector.files[3], first)
    refused(r"of /.*first\.png as it was before it changed", first, second)
    (output / "detections.jsonl").write_text("[1]\nno\n")
    refused("damaged, or of another program", first, second)

    (tmp_path / "images").mkdir()
    third = tmp_path / "images/third.png"
    shutil.copy(second, third)
    refused("images would be written to", first, folder=tmp_path, formats=["images"])
    predict(detector, third, "--output", tmp_path)
    refused("images would be written to", third, folder=tmp_path, formats=["images"])
    assert list((tmp_path / "images").iterdir()) == [third]


def test_with_truth_the_ids_are_its_own(detector, tmp_path):
    """Also after a run without."""
    predict(detector, detector.files[1], "--output", tmp_path)
    truth = detector.folder / "truth.json"
    predict(detector, detector.files[1], "--output", tmp_path, "--truth", truth)
    listed = json.loads((tmp_path / "annotations.json").read_text())
    assert [(image["id"], image["path"]) for image in listed["images"]] == [
        (11, str(detector.files[1]))
    ]
    assert [(c["id"], c["name"]) for c in listed["categories"]] == [(3, "bee"), (7, "ant")]


# ------------------------------------------------------------------ videos and cameras


def write_film(path, code="mp4v", size=(128, 96), num_frames=6):
    """Frames (their sides even, in some formats) of a grey each."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 5.0, size)
    for i in range(num_frames):
        writer.write(np.full((size[1], size[0], 3), 6 * i, np.uint8))
    writer.release()


def test_videos(detector, tmp_path, looked_at):
    path, output = tmp_path / "film.mp4", tmp_path / "out"
    write_film(path)
    predict(detector, path, "--output", output, "--format", "coco", "images")
    assert len(looked_at) == 6
    lines = (output / "detections.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["frame"] for line in lines[1:]] == list(range(6))
    drawn = cv2.VideoCapture(str(output / "videos/film.mp4"))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (6, 5)
    results = (output / "predictions.json").read_text()
    # As if it had been stopped after three frames.
    (output / "detections.jsonl").write_bytes(b"".join(lines[:4]))
    looked_at.clear()
    predict(detector, path, "--output", output)
    assert len(looked_at) == 3
    assert (output / "predictions.json").read_text() == results


def test_a_video_for_which_there_was_no_room_is_not_there(detector, tmp_path, monkeypatch):
    """OpenCV goes on as if it wrote the rest."""
    write_film(tmp_path / "film.mp4")
    to_the_end = supervision.VideoSink.__exit__

    def full_disk(sink, *error):
        to_the_end(sink, *error)
        with open(sink.target_path, "r+b") as file:
            file.truncate(1000)

    monkeypatch.setattr(supervision.VideoSink, "__exit__", full_disk)
    given = [tmp_path / "film.mp4", "--output", tmp_path / "out", "--format", "images"]
    with pytest.raises(SystemExit, match=r"film\.mp4 cannot be written \(no room is left\)"):
        predict(detector, *given)
    assert list((tmp_path / "out/videos").iterdir()) == []
    monkeypatch.setattr(supervision.VideoSink, "__exit__", to_the_end)
    predict(detector, *given)
    assert [path.name for path in (tmp_path / "out/videos").iterdir()] == ["film.mp4"]


@pytest.mark.parametrize(("code", "name"), [("VP90", "film.webm"), ("MJPG", "film.avi")])
def test_videos_of_other_formats_and_odd_sizes(code, name, detector, tmp_path, looked_at):
    write_film(tmp_path / name, code, (127, 95))
    predict(detector, tmp_path / name, "--output", tmp_path / "out", "--format", "images", "crops")
    assert [frame.shape[2] for frame in looked_at] == [3] * 6
    height, width = looked_at[0].shape[:2]
    drawn = cv2.VideoCapture(str(tmp_path / "out/videos/film.mp4"))
    sides = drawn.get(cv2.CAP_PROP_FRAME_HEIGHT), drawn.get(cv2.CAP_PROP_FRAME_WIDTH)
    assert sides == (height, width)
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 6


def test_broken_videos_are_named_and_the_rest_is_done(detector, tmp_path, capsys):
    """One without a frame, and one that ends in the middle."""
    whole, cut, empty = (tmp_path / name for name in ("a.avi", "b.avi", "c.avi"))
    write_film(whole, "MJPG", num_frames=40)
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    empty.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"error: 2 of 3 files could not be read"):
        predict(detector, tmp_path / "*.avi", "--output", tmp_path / "out")
    warned = capsys.readouterr().err
    assert f"WARNING: the video {empty} cannot be read: convert it" in warned
    assert re.search(rf"WARNING: the video {cut} ends after \d+ of 40 frames: its", warned)
    listed = json.loads((tmp_path / "out/annotations.json").read_text())["images"]
    frames = Counter(image["path"] for image in listed)
    assert frames[str(whole)] == 40
    assert 10 < frames[str(cut)] < 30


def test_only_a_file_that_counts_its_frames_can_lack_some(tmp_path):
    """What is said of a .webm's frames is of its length, which its sound may have."""
    paths = [tmp_path / "film.avi", tmp_path / "film.webm"]
    for path, code in zip(paths, ("MJPG", "VP90")):
        write_film(path, code)
    counted, guessed = (open_video(str(path))._replace(num_frames=100) for path in paths)
    assert sum(1 for _ in frames_of(guessed)) == 6
    with pytest.raises(UserError, match=r"film\.avi ends after 6 of 100 frames"):
        list(frames_of(counted))


def test_the_rate_of_a_video_whose_frames_are_uneven(monkeypatch):
    """The header of such a file can have any: here 25, and three frames in 0.9 seconds."""
    times = [0.0, 33.0, 900.0]

    class Uneven:
        def __init__(self, path):
            self.number = -1

        def grab(self):
            self.number += 1
            return self.number < len(times)

        def get(self, what):
            return times[self.number] if what == cv2.CAP_PROP_POS_MSEC else None

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Uneven)
    assert mean_rate(Video("film.webm", 128, 96, 25.0, 22)) == pytest.approx(2 / 0.9, abs=0.005)


class StandInCamera:
    """In the place of ``cv2.VideoCapture``: after some frames, somebody presses Ctrl-C."""

    def __init__(self, number):
        self.frames = 0 if number == 3 else 4

    def grab(self):
        return self.frames > 0

    def read(self):
        self.frames -= 1
        if self.frames == 0:
            signal.raise_signal(signal.SIGINT)
        return True, np.full((96, 128, 3), 40 * self.frames, np.uint8)

    def release(self):
        self.is_released = True


def test_a_camera_is_given_back_after_an_error(tmp_path, monkeypatch):
    capture = StandInCamera(0)
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: capture)
    frames = Camera(0, str(tmp_path)).frames()
    next(frames)
    with pytest.raises(RuntimeError, match="of the detector"):
        frames.throw(RuntimeError("of the detector"))
    assert capture.is_released


def test_a_camera_until_ctrl_c(detector, tmp_path, monkeypatch, capsys):
    """What was found is kept; another run goes on with new frames."""
    monkeypatch.setattr(cv2, "VideoCapture", StandInCamera)
    command = ["0", "--output", tmp_path / "out", "--format", "coco", "images"]
    for count in (3, 6):
        predict(detector, *command)
        assert f" detections in {count} images" in capsys.readouterr().out
        kept = sorted((tmp_path / "out/camera-0").iterdir())
        assert [path.name for path in kept] == [f"camera-0_{i:06d}.jpg" for i in range(count)]
        listed = json.loads((tmp_path / "out/annotations.json").read_text())["images"]
        assert [image["path"] for image in listed] == list(map(str, kept))
        assert len(list((tmp_path / "out/images").iterdir())) == count
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(SystemExit, match="error: 2 cameras are given, and each is looked at until"):
        predict(detector, "0", "1", "--output", tmp_path / "other")
    with pytest.raises(SystemExit, match="error: the camera 3 gives no picture: connect it"):
        predict(detector, "3", "--output", tmp_path / "other")
    truth = detector.folder / "truth.json"
    with pytest.raises(SystemExit, match="error: --truth has the ids of files"):
        predict(detector, "0", "--output", tmp_path / "other", "--truth", truth)
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------ tiles


class OneBoxPredictor:
    """Finds what is white."""

    def __call__(self, images):
        found = []
        for image in images:
            ys, xs = np.nonzero(image[:, :, 0])
            boxes = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]] if len(xs) else []
            found.append(Instances(
                image.shape[:2],
                pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
                scores=torch.full((len(boxes),), 0.001 * len(xs)),  # most for what is whole
                pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
            ))  # fmt: skip
        return found

    def to_supervision(self, found):
        return Predictor.to_supervision(self, found)

    class_names = ("white",)


@pytest.mark.parametrize("place", [(0, 0), (45, 40), (90, 180), (30, 100)])
def test_tiles_put_boxes_where_they_are_and_merge_what_two_tiles_see(place):
    y, x = place
    image = np.zeros((100, 200, 3), np.uint8)
    image[y : y + 10, x : x + 10] = 255
    found = detect_in_tiles(OneBoxPredictor(), image, 64)
    assert found.image_size == (100, 200)
    assert found.pred_boxes.tensor.tolist() == [[x, y, x + 10, y + 10]]


def test_tiles_without_any_detection():
    assert len(detect_in_tiles(OneBoxPredictor(), np.zeros((100, 200, 3), np.uint8), 64)) == 0


def test_tiles_merge_boxes_of_one_class_by_the_share_of_the_smaller():
    boxes = [[0, 0, 10, 10], [0, 0, 40, 40], [30, 30, 50, 50], [0, 0, 10, 10.0]]
    found = Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor([0.5, 0.9, 0.8, 0.4]),
        pred_classes=torch.tensor([0, 0, 0, 1]),
    )
    assert best_of_shared(found) == [1, 2, 3]  # of the third, a quarter is in the second


def test_an_image_no_larger_than_a_tile_is_as_without(detector):
    predictor = Predictor(detector.weights)
    path = detector.files[2]  # turned by EXIF
    assert_equal_detections([detect_in_tiles(predictor, path, 640)], predictor(path))


# ------------------------------------------------------------------ mistakes


def test_unreadable_files_are_named_and_left_out(detector, tmp_path, looked_at, capsys):
    folder = tmp_path / "in"
    shutil.copytree(detector.images, folder)
    (folder / "bad.png").write_bytes(b"no image")
    for expected in (sorted(folder.iterdir()), [folder / "bad.png"]):  # again: what is not done
        with pytest.raises(SystemExit, match=r"error: 1 of 7 files could not be read.*bad\.png"):
            predict(detector, folder, "--output", tmp_path / "out", "--format", "coco", "yolo")
        assert looked_at == list(map(str, expected))
        looked_at.clear()
        assert f"WARNING: the image {folder}/bad.png cannot be read" in capsys.readouterr().err
        listed = json.loads((tmp_path / "out/annotations.json").read_text())["images"]
        assert [image["file_name"] for image in listed] == [path.name for path in detector.files]
        assert len(list((tmp_path / "out/labels").iterdir())) == 6


def test_an_error_begins_its_line(detector, tmp_path, monkeypatch, capsys):
    """After a bar that a warning has shown before its time: see keep_console_readable."""
    delayed = functools.partialmethod(tqdm.tqdm.__init__, delay=1000)
    monkeypatch.setattr(tqdm.tqdm, "__init__", delayed)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="error: 1 of 2 files"):
        predict(detector, tmp_path / "bad.png", detector.files[0], "--output", tmp_path / "out")
    told = capsys.readouterr().err
    assert "2/2" in told
    assert told.endswith("\n")


def test_files_of_one_name_keep_what_tells_them_apart():
    """Whatever their order: tools look for the label of an image by its name."""
    assert file_names(["/in/a/x.png", "/in/b/y.jpg"]) == {"/in/a/x.png": "x", "/in/b/y.jpg": "y"}
    paths = ["/in/b/x.png", "/in/a/x.png"]
    assert file_names(paths) == {"/in/b/x.png": "b/x", "/in/a/x.png": "a/x"}
    assert file_names(["/in/x.png", "/in/x.jpg"]) == {"/in/x.png": "x.png", "/in/x.jpg": "x.jpg"}


def test_two_files_of_one_name(detector, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "x.png")
    predict(detector, tmp_path / "*" / "x.png", "--output", tmp_path / "out", "--format", "yolo")
    labels = (tmp_path / "out/labels").rglob("*.txt")
    assert {str(p.relative_to(tmp_path / "out/labels")) for p in labels} == {"a/x.txt", "b/x.txt"}


def test_a_name_that_is_no_text(detector, tmp_path):
    path = os.fsencode(tmp_path) + b"/bad\xff.png"
    shutil.copy(detector.files[0], path)
    predict(detector, os.fsdecode(path), "--output", tmp_path / "out", "--format", "csv", "yolo")
    assert b"bad\xff.png" in (tmp_path / "out/predictions.csv").read_bytes()


def test_two_at_a_time_do_not_share_a_folder(detector, tmp_path):
    predict(detector, detector.files[0], "--output", tmp_path)
    code = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "detections.jsonl")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(SystemExit, match=f"error: another predict writes to {tmp_path}: wait"):
            predict(detector, detector.files[0], "--output", tmp_path)
    finally:
        other.communicate()


def test_without_room_what_is_noted_stays(tmp_path):
    found = Instances((8, 8), scores=torch.ones(1), pred_classes=torch.zeros(1, dtype=torch.long))
    found.pred_boxes = Boxes(torch.ones(1, 4))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(str(tmp_path), {}, ["a", "b"])
    journal.add("a", None, found)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(journal.path) + 5, limits[1]))
    try:
        with journal, pytest.raises(UserError, match=r"jsonl could not be .* same command goes on"):
            journal.add("b", None, found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Journal(str(tmp_path), {}, ["a", "b"]) as journal:
        assert journal.done() == {("a", None)}


@pytest.mark.parametrize("given", ["1.5", "50", "-1", "nan", "half"])
def test_a_score_is_from_0_to_1(detector, tmp_path, given, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict(detector, detector.files[0], "--output", tmp_path / "out", "--score-thresh", given)
    assert f"{given!r} is not a number from 0 to 1" in capsys.readouterr().err


def test_mistakes_are_sentences(detector, tmp_path):
    truth = detector.folder / "truth.json"
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    renamed = tmp_path / "renamed.json"
    renamed.write_text(truth.read_text().replace('"bee"', '"wasp"'))
    for inputs, sentence in (
        ([tmp_path / "nothing"], rf"has no images .* by a glob such as '{tmp_path}/nothing/\*\*/"),
        (["nothing.jpg"], "there is no file or folder nothing.jpg"),
        ([tmp_path / "empty.mp4"], "the video .* cannot be read"),
        ([tmp_path / "other.png", "--truth", truth], "is not one of the images in"),
        ([detector.files[0], "--truth", renamed], "has no category 'bee'"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
            predict(detector, *inputs, "--output", tmp_path / "out")
    for output in ("", truth):
        with pytest.raises(SystemExit, match=f"error: --output '{output}' is no folder: name one"):
            predict(detector, detector.files[0], "--output", output)
