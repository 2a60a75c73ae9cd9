"""Evaluation compares with the annotations that a data set has now, as training reads them."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from retinanet_plugin import UserError
from retinanet_plugin.compat import coco_evaluator as stock_evaluator
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.annotations.truth import TRUTH_FILE, coco_evaluator


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
    assert ours == pytest.approx(stock, nan_ok=True, abs=0)
    assert 10 < ours["AP"] < 100


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
