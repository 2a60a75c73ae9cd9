"""Evaluation compares with the annotations that a data set has now, as training reads them."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from retinanet_plugin import UserError
from retinanet_plugin.compat import coco_evaluator as stock_evaluator
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.annotations.truth import TRUTH_FILE, coco_evaluator

BOX_EVALUATOR = "retinanet_plugin.data.annotations.box_evaluator"


@pytest.fixture
def register(digits_entries, broken_annotations):
    """``register(change)`` registers the val set, edited by ``change(coco)``; its name and path."""
    name, _, images = digits_entries[1]

    def run(change=lambda coco: None):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        path = broken_annotations(change)
        register_coco_json([(name, path, images)])
        return name, path

    return run


def evaluate(evaluator, path, shift=0.0):
    """Metrics where the detections are the boxes of a file, moved by some pixels."""
    coco = json.loads(Path(path).read_text())
    evaluator.reset()
    for image in coco["images"]:
        truth = [
            a
            for a in coco["annotations"]
            if a["image_id"] == image["id"] and not a.get("ignore") and not a.get("iscrowd")
        ]
        found = Instances((image["height"], image["width"]))
        boxes = torch.tensor([a["bbox"] for a in truth]).reshape(-1, 4) + torch.tensor(
            [shift, 0, 0, 0]
        )
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes)
        found.scores = torch.linspace(0.9, 0.5, len(truth))
        found.pred_classes = torch.tensor([a["category_id"] - 1 for a in truth]).long()
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    return evaluator.evaluate()


def test_the_numbers_are_those_of_cocos_evaluation(register, tmp_path):
    def areas_of_masks(coco):
        for a in coco["annotations"]:
            a["area"] *= 0.4

    name, path = register(areas_of_masks)
    DatasetCatalog.get(name)
    ours = evaluate(coco_evaluator(name, str(tmp_path), 100), path, shift=1.0)["bbox"]
    stock = evaluate(stock_evaluator(name, str(tmp_path), 100), path, shift=1.0)["bbox"]
    assert ours == pytest.approx(stock, nan_ok=True, abs=1e-6)
    assert 10 < ours["AP"] < 100


def random_evaluation(folder, num_classes, num_images, seed):
    """A data set registered in Python, with crowds, and detections near its boxes."""
    rng = np.random.default_rng(seed)
    records, found = [], []
    for i in range(num_images):
        boxes = rng.uniform((0, 0, 4, 4), (120, 120, 180, 180), (rng.integers(0, 7), 4))
        classes = rng.integers(0, num_classes, len(boxes))
        annotations = [
            {"bbox": box.tolist(), "bbox_mode": BoxMode.XYWH_ABS, "category_id": int(k),
             "iscrowd": int(rng.random() < 0.2)}
            for box, k in zip(boxes, classes)
        ]  # fmt: skip
        # Ids from 0, in another order.
        image_id = (7 * i) % num_images
        records.append({"file_name": f"{i}.jpg", "image_id": image_id, "height": 400,
                        "width": 400, "annotations": annotations})  # fmt: skip
        near = np.repeat(boxes, 4, axis=0) + rng.normal(0, 4, (4 * len(boxes), 4))
        near[:, 2:] = near[:, :2] + near[:, 2:].clip(1)
        instances = Instances((400, 400))
        instances.pred_boxes = Boxes(torch.tensor(near).float())
        instances.scores = torch.tensor(rng.integers(0, 20, len(near)) / 20)  # many are equal
        near_classes = np.repeat(classes, 4)
        is_wrong = rng.random(len(near)) < 0.2
        near_classes[is_wrong] = rng.integers(0, num_classes, is_wrong.sum())
        instances.pred_classes = torch.tensor(near_classes)
        found.append(([{"image_id": image_id}], [{"instances": instances}]))
    return records, found


@pytest.fixture
def registered():
    """``registered(records, num_classes)``: the name of a data set, gone after the test."""
    name = "random_boxes"

    def register(records, num_classes):
        DatasetCatalog.register(name, lambda: records)
        classes = [f"class {k}" for k in range(num_classes)]
        MetadataCatalog.get(name).set(
            thing_classes=classes, evaluator_type="coco",
            thing_dataset_id_to_contiguous_id={3 * k: k for k in range(num_classes)},
        )  # fmt: skip
        return name

    yield register
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("num_classes", "num_images", "limit"), [(1, 1, 100), (3, 20, 100), (3, 20, 300), (90, 30, 2)]
)
def test_the_fast_evaluation_has_pycocotools_numbers(
    registered, tmp_path, num_classes, num_images, limit
):
    """Crowds, equal scores, ids from 0, classes without boxes, other limits of detections."""
    pytest.importorskip("faster_coco_eval")
    records, found = random_evaluation(tmp_path, num_classes, num_images, seed=num_classes)
    name = registered(records, num_classes)
    evaluator = coco_evaluator(name, str(tmp_path), limit)
    assert type(evaluator) is not COCOEvaluator
    stock = stock_evaluator(f"{name} as evaluated", str(tmp_path), limit)
    half = [pair[0][0]["image_id"] for pair in found[::2]]
    for image_ids in (None, half):
        results = []
        for each in (evaluator, stock):
            each.reset()
            for inputs, outputs in found:
                each.process(inputs, outputs)
            results.append(each.evaluate(img_ids=image_ids)["bbox"])
        assert results[0] == pytest.approx(results[1], abs=1e-6, nan_ok=True)
    assert results[0]["AP"] > 1


def test_without_detections_there_are_no_numbers(registered, tmp_path):
    records, found = random_evaluation(tmp_path, 2, 3, seed=0)
    evaluator = coco_evaluator(registered(records, 2), str(tmp_path), 100)
    evaluator.reset()
    for inputs, outputs in found:
        evaluator.process(inputs, [{"instances": outputs[0]["instances"][:0]}])
    assert math.isnan(evaluator.evaluate()["bbox"]["AP"])
    assert (tmp_path / "coco_instances_results.json").read_text() == "[]"


def test_ids_of_images_may_be_text(registered, tmp_path):
    records, found = random_evaluation(tmp_path, 2, 12, seed=0)
    results = []
    for change in (int, lambda image_id: f"image {image_id:02}"):
        for record, (inputs, _) in zip(records, found):
            record["image_id"] = inputs[0]["image_id"] = change(record["image_id"])
        name = "random_boxes" if results else registered(records, 2)
        evaluator = coco_evaluator(name, str(tmp_path), 100)
        evaluator.reset()
        for inputs, outputs in found:
            evaluator.process(inputs, outputs)
        results.append(evaluator.evaluate()["bbox"])
    assert results[0] == results[1]
    assert results[0]["AP"] > 1


def test_without_the_library_pycocotools_evaluates(registered, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.delitem(sys.modules, BOX_EVALUATOR, raising=False)
    records, _ = random_evaluation(tmp_path, 2, 3, seed=0)
    evaluator = coco_evaluator(registered(records, 2), str(tmp_path), 100)
    assert type(evaluator) is COCOEvaluator


@pytest.mark.parametrize(
    "fields",
    [
        {"id": 0},
        {"id": 2},
        {"ignore": 1},
        {"iscrowd": None},
        {"area": None},
        {"segmentation": [[1, 2]]},
    ],
)
def test_a_truth_that_is_read_as_meant_is_found(register, tmp_path, fields):
    name, path = register(lambda coco: coco["annotations"][0].update(fields))
    metrics = evaluate(coco_evaluator(name, str(tmp_path), 100), path)["bbox"]
    assert metrics["AP"] == pytest.approx(100)


def test_detections_keep_the_ids_of_the_data(register, tmp_path):
    def change(coco):
        for image in coco["images"]:
            image["id"] = f"image {image['id']}"
        for a in coco["annotations"]:
            a["image_id"] = f"image {a['image_id']}"

    name, path = register(change)
    assert evaluate(coco_evaluator(name, str(tmp_path), 100), path)["bbox"]["AP"] == pytest.approx(
        100
    )
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {r["image_id"] for r in results} <= {f"image {i}" for i in range(1, 5)}
    assert {r["category_id"] for r in results} <= set(range(1, 11))


@pytest.mark.parametrize(
    "change",
    [
        lambda coco: coco["annotations"].clear(),
        lambda coco: [a.update(iscrowd=1) for a in coco["annotations"]],
    ],
)
def test_nothing_to_find(register, tmp_path, change, digits):
    name, _ = register(change)
    found = evaluate(coco_evaluator(name, str(tmp_path), 100), str(digits / "annotations/val.json"))
    assert math.isnan(found.get("bbox", {}).get("AP", math.nan))


def test_a_function_is_asked_again(tmp_path, digits):
    """Detectron2 would keep what it returned first in a file, and compare with that."""
    path = digits / "annotations/val.json"
    coco = json.loads(path.read_text())
    shift = 12

    def load():
        return [
            {
                "file_name": image["file_name"],
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "annotations": [
                    {
                        "bbox": [x + shift, y, x + w + shift, y + h],
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "category_id": a["category_id"] - 1,
                        "segmentation": [[x, y, x + w, y, x + w, y + h]],
                    }
                    for a in coco["annotations"]
                    for x, y, w, h in [a["bbox"]]
                    if a["image_id"] == image["id"]
                ],
            }
            for image in coco["images"]
        ]

    DatasetCatalog.register("function", load)
    digits_classes = [str(i) for i in range(10)]
    MetadataCatalog.get("function").set(thing_classes=digits_classes, evaluator_type="coco")
    before = evaluate(coco_evaluator("function", str(tmp_path), 100), path)["bbox"]
    assert before["AP"] < 90
    shift = 0
    after = evaluate(coco_evaluator("function", str(tmp_path), 100), path)["bbox"]
    assert after["AP"] == pytest.approx(100)
    assert not hasattr(MetadataCatalog.get("function"), "json_file")
    (box, *_) = json.loads((tmp_path / TRUTH_FILE).read_text())["annotations"]
    assert box["area"] == pytest.approx(box["bbox"][2] * box["bbox"][3] / 2)  # the triangle's


def test_a_folder_that_cannot_be_written(register, tmp_path):
    name, _ = register()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/inference/.* could not be written"):
        coco_evaluator(name, str(tmp_path / "file/inference"), 100)
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


@pytest.mark.parametrize("iscrowd", [0, 1])
def test_detections_in_a_crowd_are_ignored(register, tmp_path, iscrowd):
    """Two detections in the region score highest, then a hit, then one that finds nothing."""
    box, region = [10, 10, 20, 20], [40, 0, 40, 80]

    def one_object(coco):
        image, category = coco["images"][0]["id"], coco["categories"][0]["id"]
        coco["annotations"] = [
            {"id": i, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": flag}
            for i, bbox, flag in ((1, box, 0), (2, region, iscrowd))
        ]
        coco["images"] = coco["images"][:1]
        coco["images"][0].update(width=96, height=96)

    name, path = register(one_object)
    DatasetCatalog.get(name)
    found = Instances((96, 96))
    found.pred_boxes = Boxes(
        torch.tensor([[45.0, 5, 60, 20], [50, 40, 75, 70], [10, 10, 30, 30], [0, 60, 20, 80]])
    )
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4).long()
    evaluator = coco_evaluator(name, str(tmp_path), 100)
    evaluator.reset()
    image_id = json.loads(Path(path).read_text())["images"][0]["id"]
    evaluator.process([{"image_id": image_id}], [{"instances": found}])
    # Without the crowd: two objects, of which one is found, with a precision of 1/3 up to recall
    # 1/2: 51 of COCO's 101 recalls.
    expected = 100 if iscrowd else 100 * 51 / 101 / 3
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(expected)
