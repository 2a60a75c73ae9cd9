"""What the tests share: small configs, small batches, a small data set on disk."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

from retinanet_plugin import add_retinanet_config
from retinanet_plugin.data.digits import write_digits

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # train_net.py


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)


@pytest.fixture
def small_cfg():
    """The paper's RetinaNet on a ResNet-18 with 64 channels: fast, and alike in every part."""
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/Base-RetinaNet.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.RETINANET.NUM_CONVS = 2
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    return cfg


def make_batch(num_classes, num_boxes=(3, 5), sizes=((96, 128), (120, 90))):
    """Training inputs as DatasetMapper makes them: images of unequal sizes, random boxes."""
    batch = []
    for (height, width), count in zip(sizes, num_boxes):
        size = torch.tensor([width, height])
        corners = torch.rand(count, 2) * size * 0.6
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(
            torch.cat([corners, corners + 4 + torch.rand(count, 2) * 0.35 * size], dim=1)
        )
        instances.gt_classes = torch.randint(num_classes, (count,))
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        batch.append(
            {"image": image, "instances": instances, "height": 2 * height, "width": 2 * width}
        )
    return batch


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with eight training and four val images of the digits data set."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(str(folder), seed=1, num_images={"train": 8, "val": 4})
    return folder


@pytest.fixture
def digits_entries(digits, request):
    """Entries of ``DATASETS.COCO_JSON`` for the digits, under names of this test's own."""
    test = request.node.name
    return [
        (f"{test}_{split}", str(digits / "annotations" / f"{split}.json"), str(digits / split))
        for split in ("train", "val")
    ]


@pytest.fixture
def broken_annotations(digits, tmp_path):
    """``broken_annotations(change)``: the path of a val.json that ``change(coco)`` has edited."""

    def write(change):
        coco = json.loads((digits / "annotations/val.json").read_text())
        change(coco)
        path = tmp_path / "broken.json"
        path.write_text(json.dumps(coco))
        return str(path)

    return write


@pytest.fixture
def clean_env():
    """The environment for subprocesses: this checkout first, one thread."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
