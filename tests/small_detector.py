"""A small detector on disk, with images of several sizes, for what is tested after training."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.engine import Checkpointer

SIZES = [(90, 120), (120, 90), (90, 120), (60, 200), (90, 120), (90, 120)]
TURNED = 2  # the image that EXIF turns


class SmallDetector(NamedTuple):
    """``folder`` has ``images/``, ``truth.json``, ``config.yaml`` and ``model.pth``."""

    folder: Path
    cfg: CfgNode
    model: nn.Module

    @property
    def images(self):
        return self.folder / "images"

    @property
    def files(self):
        return sorted(self.images.iterdir())

    @property
    def config(self):
        return self.folder / "config.yaml"

    @property
    def weights(self):
        return self.folder / "model.pth"


def write_small_detector(folder, config_file, name="ants"):
    """Random weights whose heads find much, with scores that differ; norms and classes are no
    one's default."""
    (folder / "images").mkdir()
    write_image_folder(folder / "images")
    register_coco_json([(name, str(folder / "truth.json"), str(folder / "images"))])
    DatasetCatalog.get(name)  # which is when the names of its classes are known
    cfg = load_config(config_file)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.3
    cfg.OUTPUT_DIR = str(folder / "output")
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name, x in model.backbone.named_buffers():
            if "running" in name:
                x.copy_(torch.rand(x.shape) + 0.5)
    nn.init.normal_(model.head.cls_score.weight, std=0.05)
    nn.init.constant_(model.head.cls_score.bias, -2.0)
    Checkpointer(model, str(folder), cfg=cfg).save("model")
    (folder / "config.yaml").write_text(cfg.dump())
    return SmallDetector(folder, cfg, model)


def write_image_folder(folder):
    """Pictures of several sizes, one turned by EXIF, and their annotation file."""
    rng = np.random.default_rng(0)
    images = []
    for i, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        exif = picture.getexif()
        exif[274] = 6 if i == TURNED else 1
        picture.save(folder / f"{i}.png", exif=exif)
        size = (height, width) if i == TURNED else (width, height)
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": size[0], "height": size[1]})
    box = {"id": 1, "image_id": 10, "category_id": 7, "bbox": [5, 5, 30, 30], "iscrowd": 0}
    truth = {
        "images": images,
        "categories": [{"id": 7, "name": "ant"}, {"id": 3, "name": "bee"}],
        "annotations": [{**box, "area": 900}],
    }
    (folder.parent / "truth.json").write_text(json.dumps(truth))
