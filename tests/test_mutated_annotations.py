"""Annotation files with random mistakes: each is one sentence, or read just as it says.

``python tests/test_mutated_annotations.py 10000`` tries as many as asked for.
"""

import json
import math
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import Boxes, BoxMode, Instances

from retinanet_plugin import UserError, add_retinanet_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.annotations.truth import coco_evaluator
from retinanet_plugin.data.checks import check_datasets

NAME = "mutated"
VALUES = [None, True, False, 0, 1, 2, -1, 3.0, 0.5, 1e300, math.nan, math.inf, 10**400, 2**63]
VALUES += ["", "0", "1", "2", "a", "ü", "\ud800", "a\nb", "\x1b[0m", [], {}, [1], [[]], {"id": 1}]
FIELDS = ["id", "image_id", "category_id", "bbox", "iscrowd", "ignore", "area", "segmentation"]
FIELDS += ["file_name", "height", "width", "name"]


def draw_coco(rng):
    """A small file as good as any."""
    coco = {
        "categories": [{"id": 3 * i + 1, "name": f"class {i}"} for i in range(3)],
        "images": [
            {"id": 10 + i, "file_name": f"{i}.jpg", "height": 100, "width": 80 + i}
            for i in range(4)
        ],
        "annotations": [],
    }
    for number in range(8):
        x, y, w, h = (rng.randrange(1, 40) for _ in range(4))
        coco["annotations"].append(
            {
                "id": number + 1,
                "image_id": 10 + number % 3,
                "category_id": 3 * (number % 3) + 1,
                "bbox": [x, y, w, h + 0.25],
                "area": w * h,
                "iscrowd": int(number == 5),
                "segmentation": [[x, y, x + w, y, x + w, y + h]],
            }
        )
    return coco


def places(node, parent=None, key=None):
    """Every (dict or list, key or index) in a tree of JSON."""
    if parent is not None:
        yield parent, key
    if isinstance(node, (dict, list)):
        for child_key in list(node if isinstance(node, dict) else range(len(node))):
            yield from places(node[child_key], node, child_key)


def mutate(coco, rng):
    """Change one thing, in place."""
    parent, key = rng.choice(list(places(coco)))
    value = parent[key]
    change = rng.randrange(9)
    if change == 0:
        parent[key] = rng.choice(VALUES)
    elif change == 1:
        parent.pop(key)
    elif change == 2:
        parent[key] = str(value)
    elif change == 3 and isinstance(value, (int, float)):
        parent[key] = value * rng.choice([-1, 0, 1.0, 0.01, 10, 1e12])
    elif change == 4 and isinstance(parent, list):
        parent.append(json.loads(json.dumps(value)))
    elif change == 5 and isinstance(value, list):
        rng.shuffle(value)
    elif change == 6 and isinstance(parent, dict):
        parent[rng.choice(FIELDS)] = parent.pop(key)
    elif change == 7 and isinstance(parent, dict):
        parent[rng.choice(FIELDS)] = rng.choice(VALUES)
    elif isinstance(parent, list):  # the same field in all
        field = rng.choice(FIELDS)
        new = rng.choice([str, float, lambda x: None, lambda x: 1, lambda x: x])
        for entry in parent:
            if isinstance(entry, dict) and field in entry:
                entry[field] = new(entry[field]) if isinstance(entry[field], int) else None


def mutated_file(rng):
    """The bytes of a file with one to three mistakes."""
    coco = draw_coco(rng)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutate(coco, rng)
    content = json.dumps(coco).encode()
    change = rng.randrange(12)
    if change == 0:
        content = content[: rng.randrange(len(content))]
    elif change == 1:
        place = rng.randrange(len(content))
        content = content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    elif change == 2:
        content = content.decode().encode(rng.choice(["utf-8-sig", "utf-16", "utf-32"]))
    elif change == 3:
        content = content.replace(b'"bbox"', b'"bbox": [1, 2, 3, 4], "bbox"', 1)
    return content


def boxes_of_file(content):
    """What a file says, read naively: (file, class, box, whether it is ignored) of each box."""
    coco = json.loads(content)

    def find(key, wanted):
        (found,) = [x for x in coco[key] if x["id"] == wanted and type(wanted) is not bool]
        return found

    return Counter(
        (
            find("images", a["image_id"])["file_name"],
            find("categories", a["category_id"])["name"],
            tuple(a["bbox"]),
            any(a.get(key) in (1, "1") for key in ("iscrowd", "ignore")),
        )
        for a in coco["annotations"]
    )


def boxes_of_dicts(dicts, class_names):
    """The same, of Detectron2's dataset dicts."""
    assert all(a["bbox_mode"] == BoxMode.XYWH_ABS for x in dicts for a in x["annotations"])
    return Counter(
        (x["file_name"], class_names[a["category_id"]], tuple(a["bbox"]), a["iscrowd"] == 1)
        for x in dicts
        for a in x["annotations"]
    )


def evaluate(dicts, folder):
    """AP in per cent of detections that are the truth."""
    evaluator = coco_evaluator(NAME, folder, 100)
    evaluator.reset()
    for x in dicts:
        truth = [a for a in x["annotations"] if not a["iscrowd"]]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in truth]
        found = Instances((100, 100))
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4))
        found.scores = torch.ones(len(truth))
        found.pred_classes = torch.tensor([a["category_id"] for a in truth], dtype=torch.int64)
        evaluator.process([x], [{"instances": found}])
    return evaluator.evaluate().get("bbox", {}).get("AP", math.nan)


def read(content, folder):
    """Whether a file is read; it is read as it says then, and "refused" in one sentence if not."""
    path = Path(folder) / "mutated.json"
    path.write_bytes(content)
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
    register_coco_json([(NAME, str(path), "")])
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    try:
        check_datasets(cfg)
    except UserError as error:
        sentence = str(error)
    else:
        sentence = ""
    if sentence:
        assert sentence.isprintable()
        return False
    dicts = DatasetCatalog.get(NAME)
    classes = MetadataCatalog.get(NAME).thing_classes
    assert boxes_of_dicts(dicts, classes) == boxes_of_file(content)
    assert get_detection_dataset_dicts(NAME)
    evaluate(dicts, folder)
    return True


def test_a_good_file_is_read_and_evaluated(tmp_path):
    content = json.dumps(draw_coco(random.Random(0))).encode()
    assert read(content, str(tmp_path))
    assert evaluate(DatasetCatalog.get(NAME), str(tmp_path)) == pytest.approx(100)


@pytest.mark.parametrize("seed", [*range(100), 1110, 2421])  # the last: ids of both types
def test_a_mutated_file_is_refused_or_read_as_it_says(tmp_path, seed, capsys):
    read(mutated_file(random.Random(seed)), str(tmp_path))


if __name__ == "__main__":
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(int(sys.argv[1])):
            content = mutated_file(random.Random(seed))
            try:
                counts["read" if read(content, folder) else "refused"] += 1
            except Exception as error:
                counts["wrong"] += 1
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    print(dict(counts))
    sys.exit(counts["wrong"] > 0)
