"""How far this package's numbers are from Detectron2's, with the same weights and input."""

from typing import Any

import torch
from models import OURS, STOCK, Subject, Workload


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
    losses = [subject.loss() for subject in (ours, stock)]
    for loss in losses:
        loss.backward()
    grads = [
        {n: p.grad for n, p in subject.model.named_parameters() if p.grad is not None}
        for subject in (ours, stock)
    ]
    return {
        "loss": abs(losses[0].item() / losses[1].item() - 1),
        "gradient": max(
            ((grads[0][name] - grad).norm() / grad.norm()).item() for name, grad in grads[1].items()
        ),
        **_detections(ours.infer(), stock.infer()),
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
