"""The numbers of a report: counted by hand, by brute force, and by pycocotools."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet_plugin.report.detections import coco_metrics as coco_metrics_module
from retinanet_plugin.report.detections.bootstrap import (
    draw_images,
    interval,
    match_at_all_thresholds,
    resampled_ap,
)
from retinanet_plugin.report.detections.boxes import (
    MOST_DETECTIONS,
    Detections,
    best_first,
    read_truth,
)
from retinanet_plugin.report.detections.coco_metrics import METRICS, coco_metrics
from retinanet_plugin.report.detections.errors import (
    KINDS,
    confusion_matrix,
    kinds_of_false_alarms,
)
from retinanet_plugin.report.detections.evaluation import ap_samples, evaluate, to_json
from retinanet_plugin.report.detections.matching import match_detections
from retinanet_plugin.report.detections.overlaps import find_overlaps
from retinanet_plugin.report.detections.results_file import to_detections
from retinanet_plugin.report.detections.scores import best_threshold, calibration, sweep

CAT, DOG = 7, 9  # category ids; classes 0 and 1


def annotation(category, box, image=1, **more):
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def detection(category, box, score, image=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def read(folder, annotations, results, num_images=1):
    """(Truth, Detections) of annotations and results as files have them."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 200}
            for i in range(1, num_images + 1)
        ],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations, 1)],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    truth = read_truth(str(folder / "truth.json"), "")
    return truth, to_detections(results, truth, "results", "a detector")


def random_files(folder, seed, num_images=20, decimals=1):
    """Boxes, crowds among them, and detections near them, many of equal scores."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, num_images + 1):
        for _ in range(rng.integers(0, 8)):
            _, _, w, h = box = rng.integers((0, 0, 5, 5), (120, 120, 110, 110)).tolist()
            area = 0.7 * w * h
            crowd = int(rng.random() < 0.15)
            category = int(rng.choice([CAT, DOG]))
            annotations.append(annotation(category, box, image, area=area, iscrowd=crowd))
            for _ in range(rng.integers(0, 4)):
                near = [v + d for v, d in zip(box, rng.normal(0, 0.08 * min(w, h), 4))]
                near = [*map(float, near[:2]), *map(abs, map(float, near[2:]))]
                found = category if rng.random() < 0.8 else DOG
                results.append(detection(found, near, round(float(rng.random()), decimals), image))
    return (*read(folder, annotations, results, num_images), results)


def by_pycocotools(folder, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


# ------------------------------------------------------------------ AP


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_pycocotools(tmp_path, seed):
    truth, detections, results = random_files(tmp_path, seed)
    expected = by_pycocotools(tmp_path, results)
    found = coco_metrics(detections, truth)
    values = [-1 if found.metrics[name] is None else found.metrics[name] for name in METRICS]
    np.testing.assert_allclose(values, expected.stats, atol=1e-6)
    precision = expected.eval["precision"]
    for k, metrics in enumerate(found.by_class):
        for name, part in (
            ("AP", precision[:, :, k, 0, 2]),
            ("AP50", precision[0, :, k, 0, 2]),
            ("AP75", precision[5, :, k, 0, 2]),
            ("APs", precision[:, :, k, 1, 2]),
            ("APl", precision[:, :, k, 3, 2]),
            ("AR100", expected.eval["recall"][:, k, 0, 2]),
        ):
            value = -1 if metrics[name] is None else metrics[name]
            assert value == pytest.approx(part.mean(), abs=1e-6)
    # The bootstrap's own AP, on the images themselves.
    overlaps = find_overlaps(detections, truth)
    matches = match_at_all_thresholds(detections, truth, overlaps)
    own = resampled_ap(detections, truth, matches, np.ones((1, len(truth.images)), int))[0]
    np.testing.assert_allclose(own, precision[..., 0, 2].mean(axis=1).T, atol=1e-12)


def test_of_no_detections_everything_is_missed(tmp_path):
    truth, *_ = random_files(tmp_path, 0)
    none = Detections("none", *(np.empty(shape, int) for shape in (0, 0, (0, 4), 0)))
    assert coco_metrics(none, truth).metrics["AP"] == 0


def test_a_truth_with_fewer_boxes_than_classes_is_none(tmp_path):
    truth, detections, _ = random_files(tmp_path, 0)
    with pytest.raises(ValueError, match="zip"):
        coco_metrics(detections, replace(truth, boxes=truth.boxes[:-1]))


def test_both_libraries_say_the_same(tmp_path, monkeypatch):
    truth, detections, _ = random_files(tmp_path, 3)
    faster = coco_metrics(detections, truth)
    monkeypatch.setattr(coco_metrics_module, "COCO", COCO)
    monkeypatch.setattr(coco_metrics_module, "COCOeval", COCOeval)
    assert coco_metrics(detections, truth).metrics == pytest.approx(faster.metrics, abs=1e-9)


def test_ap_of_a_sample_is_that_of_the_sample_as_a_data_set(tmp_path):
    """Images drawn twice are there twice: evaluated as copies, AP is the same."""
    truth, detections, results = random_files(tmp_path, 4, num_images=6, decimals=9)
    counts = np.array([[2, 0, 1, 0, 3, 0]])
    overlaps = find_overlaps(detections, truth)
    matches = match_at_all_thresholds(detections, truth, overlaps)
    sampled = ap_samples(resampled_ap(detections, truth, matches, counts))
    annotations = json.loads((tmp_path / "truth.json").read_text())["annotations"]
    images = np.repeat(np.arange(1, 7), counts[0])

    def copies(entries):
        return [
            {**entry, "image_id": new}
            for new, old in enumerate(images.tolist(), 1)
            for entry in entries
            if entry["image_id"] == old
        ]

    boxes = [{k: v for k, v in a.items() if k != "id"} for a in copies(annotations)]
    read(tmp_path, boxes, copies(results), len(images))
    expected = by_pycocotools(tmp_path, copies(results)).stats
    for name, value in zip(("AP", "AP50", "AP75"), expected):
        assert sampled[name][0] == pytest.approx(value, abs=1e-9)


# ------------------------------------------------------------------ intervals


def test_interval_of_what_does_not_vary_is_a_point(tmp_path):
    """Images that are all alike give each sample the same AP: 1/2, since each second is missed."""
    boxes = [[10, 10, 50, 50], [100, 100, 50, 50]]
    annotations = [annotation(CAT, box, i) for i in range(1, 9) for box in boxes]
    results = [detection(CAT, boxes[0], 0.8, i) for i in range(1, 9)]
    evaluation = evaluate(*reversed(read(tmp_path, annotations, results, 8)))
    for samples in ap_samples(evaluation.samples).values():
        low, high = interval(samples)
        assert low == high == pytest.approx(51 / 101)  # recalls 0, 0.01, ... 0.5


def test_samples_depend_on_the_seed_alone():
    draws = [draw_images(9, 50, seed) for seed in (0, 0, 1)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    assert (draws[0].sum(axis=1) == 9).all()
    assert interval(np.full(3, np.nan)) is None


# ------------------------------------------------------------------ kinds of errors


A, B = [10, 10, 40, 40], [100, 100, 60, 60]


def test_confusions_and_kinds_by_hand(tmp_path):
    """A cat at A and a dog at B, and a detection of each kind."""
    annotations = [annotation(CAT, A), annotation(DOG, B)]
    results = [
        detection(CAT, A, 0.9),  # hit
        detection(CAT, [10, 10, 40, 38], 0.8),  # double
        detection(CAT, [10, 10, 40, 10], 0.7),  # poor box: IoU 1/4
        detection(CAT, B, 0.6),  # wrong class
        detection(DOG, [160, 10, 20, 20], 0.5),  # background
        detection(CAT, [100, 100, 60, 20], 0.4),  # wrong class and poor box: IoU 1/3
        detection(CAT, [170, 10, 20, 20], 0.2),  # below the threshold of the matrix
    ]
    truth, detections = read(tmp_path, annotations, results)
    overlaps = find_overlaps(detections, truth)
    matches = match_detections(detections, truth, overlaps)
    kinds = kinds_of_false_alarms(detections, truth, overlaps, matches)
    named = [None if kind < 0 else list(KINDS)[kind] for kind in kinds]
    expected = [None, "double", "poor_box", "wrong_class", "background"]
    assert named == [*expected, "wrong_class_and_poor_box", "background"]
    # cat: found, dog: taken for a cat; background: three cats, one dog
    matrix = confusion_matrix(detections, truth, overlaps, 0.3)
    assert matrix.tolist() == [[1, 0, 0], [1, 0, 0], [3, 1, 0]]
    matrix = confusion_matrix(detections, truth, overlaps, 0.7)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 1], [2, 0, 0]]


def test_the_highest_score_takes_a_box_of_any_class_in_the_matrix(tmp_path):
    truth, detections = read(
        tmp_path, [annotation(CAT, A)], [detection(CAT, A, 0.6), detection(DOG, A, 0.7)]
    )
    matrix = confusion_matrix(detections, truth, find_overlaps(detections, truth), 0.5)
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_what_lies_in_a_crowd_is_nothing(tmp_path):
    """As often as it likes, unless it is of another class."""
    annotations = [annotation(CAT, [0, 0, 100, 100], iscrowd=1), annotation(CAT, B)]
    results = [detection(CAT, [5, 5, 20, 20], 0.9), detection(CAT, [50, 50, 20, 20], 0.8)]
    results += [detection(DOG, [5, 5, 20, 20], 0.7)]
    truth, detections = read(tmp_path, annotations, results)
    overlaps = find_overlaps(detections, truth)
    matches = match_detections(detections, truth, overlaps)
    assert matches.is_ignored.tolist() == [True, True, False]
    assert truth.counts.tolist() == [1, 0]
    kinds = kinds_of_false_alarms(detections, truth, overlaps, matches)
    assert kinds.tolist() == [-1, -1, list(KINDS).index("background")]
    matrix = confusion_matrix(detections, truth, overlaps, 0.5)
    assert matrix.tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_each_takes_the_free_box_that_it_overlaps_most(tmp_path):
    near = [10, 10, 40, 36]
    annotations = [annotation(CAT, A), annotation(CAT, near)]
    results = [detection(CAT, A, 0.9), detection(CAT, A, 0.8), detection(CAT, A, 0.7)]
    truth, detections = read(tmp_path, annotations, results)
    matches = match_detections(detections, truth, find_overlaps(detections, truth))
    assert matches.box.tolist() == [0, 1, -1]
    matches = match_detections(detections, truth, find_overlaps(detections, truth), 0.95)
    assert matches.box.tolist() == [0, -1, -1]


# ------------------------------------------------------------------ scores


def test_best_thresholds_by_brute_force(tmp_path):
    truth, detections, _ = random_files(tmp_path, 5)
    evaluation = evaluate(detections, truth)
    matches = evaluation.matches
    for k, chosen in enumerate(evaluation.score_thresholds):
        of_class = (detections.classes == k) & ~matches.is_ignored

        def f1(thresh, of_class=of_class, k=k):
            kept = of_class & (detections.scores >= thresh)
            hits = (kept & matches.is_hit).sum()
            return 2 * hits / (kept.sum() + truth.counts[k])

        assert f1(chosen) == max(map(f1, np.arange(-0.05, 1, 0.1)))  # scores are 0, 0.1, ...
        assert not (detections.scores == chosen).any()  # > and >= say the same


@pytest.mark.parametrize(
    ("scores", "is_hit", "num_boxes", "expected"),
    [
        ([0.9, 0.8, 0.4], [1, 1, 0], 2, 0.6),  # both boxes: F1 is 1 after two
        ([0.9, 0.8, 0.4], [0, 0, 0], 2, None),
        ([0.9], [1], 1, 0.45),  # midway to 0
        ([0.8, 0.8], [1, 0], 1, 0.4),  # equal scores go together
        ([], [], 3, None),
    ],
)
def test_best_threshold_by_hand(scores, is_hit, num_boxes, expected):
    found = best_threshold(np.array(scores), np.array(is_hit, bool), num_boxes)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_sweep_counts_above_each_threshold(tmp_path):
    truth, detections, _ = random_files(tmp_path, 6)
    matches = match_detections(detections, truth, find_overlaps(detections, truth))
    counts = sweep(detections, truth, matches)
    for i in range(101):
        kept = detections.scores >= i / 100
        for k in (0, 1):
            of_class = kept & (detections.classes == k)
            assert counts.hits[k, i] == (of_class & matches.is_hit).sum()
            assert counts.false_alarms[k, i] == (of_class & matches.is_false_alarm).sum()


def test_calibration_by_hand(tmp_path):
    """Two detections of score 0.92 and 0.98, one a hit; one of 0.3, no hit; one of 1, a hit."""
    far = [150, 150, 10, 10]
    results = [detection(CAT, A, 0.92), detection(CAT, far, 0.98), detection(CAT, far, 0.3)]
    results += [detection(DOG, B, 1)]
    truth, detections = read(tmp_path, [annotation(CAT, A), annotation(DOG, B)], results)
    matches = match_detections(detections, truth, find_overlaps(detections, truth))
    found = calibration(detections, matches)
    assert found.counts.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 3]
    assert found.scores[[3, 9]] == pytest.approx([0.3, 2.9 / 3])
    assert found.precision[[3, 9]] == pytest.approx([0, 2 / 3])
    assert found.error == pytest.approx((0.3 + 3 * (2.9 - 2) / 3) / 4)


def test_at_most_a_hundred_of_a_class_in_an_image():
    scores = np.linspace(1, 0, 150)
    kept = best_first("a", np.zeros(150, int), np.zeros(150, int), np.ones((150, 4)), scores)
    assert kept.scores.tolist() == scores[:MOST_DETECTIONS].tolist()
    classes = np.arange(150) % 2
    kept = best_first("a", np.zeros(150, int), classes, np.ones((150, 4)), scores[::-1])
    assert len(kept) == 150
    assert (np.diff(kept.scores) < 0).all()


def test_numbers_agree_with_each_other(tmp_path):
    truth, detections, _ = random_files(tmp_path, 7)
    evaluation = evaluate(detections, truth)
    numbers = to_json(evaluation, truth)
    json.dumps(numbers, allow_nan=False)
    matrix = np.array(numbers["confusion_matrix"]["matrix"])
    assert matrix[:-1].sum(axis=1).tolist() == truth.counts.tolist()
    at = round(100 * numbers["score_thresh"])
    errors = numbers["errors"]
    curves = numbers["curves"]
    assert errors["hits"] == sum(hits[at] for hits in curves["hits"].values())
    kinds = sum(errors[kind] for kind in KINDS)
    assert kinds == sum(counts[at] for counts in curves["false_alarms"].values())
    assert errors["hits"] + errors["misses"] == truth.counts.sum()
    for name, (low, high) in numbers["intervals"].items():
        assert low <= numbers["metrics"][name] <= high
