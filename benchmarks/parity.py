"""How far this package's numbers are from Detectron2's, with the same weights and input.

As a command: at trained weights, on the images of DATASETS.TEST and a batch of DATASETS.TRAIN.
"""

import argparse
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from models import OURS, STOCK, Subject, Workload

from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.engine import Checkpointer, one_sentence_errors


def differences(workload: Workload) -> dict[str, float]:
    """Differences of one training step and of detections, as a dict of floats.

    ``loss``: relative; ``gradient``: the largest over the parameters of |difference| / |gradient|,
    Euclidean norms; ``detections`` of Detectron2's model, and of them ``lost``: without a
    counterpart of the same class whose score differs by at most 1e-5 and whose corners by at most
    0.01 px; ``score`` and ``box``: the largest differences from counterparts, in pixels.
    """
    stock, ours = Subject(STOCK, workload), Subject(OURS, workload)
    # Scores from low to high, so that there is something to detect.
    torch.nn.init.normal_(stock.model.head.cls_score.weight, std=0.02)
    torch.nn.init.constant_(stock.model.head.cls_score.bias, -2.0)
    ours.model.load_state_dict(stock.model.state_dict(), strict=False)
    return {
        **_training((ours.model, stock.model), (ours.loss(), stock.loss())),
        **_detections(ours.infer(), stock.infer()),
    }


def differences_when_trained(config_file: str, opts: list[str]) -> dict[str, float]:
    """The same as :func:`differences` at the weights of ``MODEL.WEIGHTS``, for the first batch of
    ``DATASETS.TRAIN`` and all images of ``DATASETS.TEST``."""
    cfg = load_config(config_file, opts)
    register_coco_json(cfg.DATASETS.COCO_JSON)
    stock_cfg = cfg.clone()
    stock_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    models = [build_model(each) for each in (cfg, stock_cfg)]
    for model in models:
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)

    mapper = DatasetMapper(cfg, is_train=True)
    images = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)[: cfg.SOLVER.IMS_PER_BATCH]
    batch = [mapper(image) for image in images]
    for model in models:
        model.loss_normalizer = torch.tensor(100.0, device=model.device)
    with EventStorage():
        losses = [sum(model.train()(batch).values()) for model in models]
    result = _training(models, losses)

    found, expected = [], []
    with torch.no_grad():
        for batch in build_detection_test_loader(cfg, cfg.DATASETS.TEST[0]):
            found += models[0].eval()(batch)
            expected += models[1].eval()(batch)
    return {**result, **_detections(found, expected)}


def _training(models: Iterable[Any], losses: Iterable[Any]) -> dict[str, float]:
    values, grads = [], []
    for model, loss in zip(models, losses):
        loss.backward()
        values.append(loss.item())
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    return {
        "loss": abs(values[0] / values[1] - 1),
        "gradient": max(
            ((grads[0][name] - grad).norm() / grad.norm()).item()
            for name, grad in grads[1].items()
            if grad.norm() > 1e-6  # else rounding alone, such as a bias before a norm
        ),
    }


def _detections(found: list[Any], expected: list[Any]) -> dict[str, float]:
    result: dict[str, float] = {"detections": 0, "lost": 0, "score": 0.0, "box": 0.0}
    for ours, stock in zip(found, expected):
        ours, stock = ours["instances"], stock["instances"]
        same_class = ours.pred_classes == stock.pred_classes[:, None]
        score = (ours.scores - stock.scores[:, None]).abs()
        box = (ours.pred_boxes.tensor - stock.pred_boxes.tensor[:, None]).abs().amax(2)
        is_counterpart = same_class & (score <= 1e-5) & (box <= 0.01)
        has_one = is_counterpart.any(1)
        result["detections"] += len(stock)
        result["lost"] += (~has_one).sum().item()
        if not has_one.any():
            continue
        for name, difference in (("score", score), ("box", box)):
            nearest = difference.masked_fill(~is_counterpart, torch.inf).amin(1)[has_one]
            result[name] = max([result[name], *nearest.tolist()])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--opts", nargs="...", default=[], metavar="KEY VALUE",
        help="config options, MODEL.WEIGHTS among them; write them last",
    )  # fmt: skip
    args = parser.parse_args()
    with one_sentence_errors():
        print(differences_when_trained(args.config_file, args.opts))


if __name__ == "__main__":
    main()
