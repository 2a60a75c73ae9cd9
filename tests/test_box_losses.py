"""Box losses: Detectron2's own values, no foreground, and boxes without area."""
import detectron2.modeling.box_regression as d2
import pytest
import torch
from detectron2.structures import Boxes

from retinanet_plugin import BOX_LOSS_REGISTRY
from retinanet_plugin.config import load_config

NAMES = ["smooth_l1", "giou", "diou", "ciou"]


def build_loss(name, beta=0.1):
    cfg = load_config("")
    cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = beta
    return BOX_LOSS_REGISTRY.get(name)(cfg)


def make_batch(count=50):
    """Deltas (count, 4), anchors and matched boxes, from disjoint to nearly equal."""
    corner = torch.rand(count, 2) * 100
    anchors = torch.cat([corner, corner + 10 + torch.rand(count, 2) * 80], dim=1)
    gt_boxes = anchors + (torch.rand(count, 4) - 0.5) * torch.linspace(0, 20, count)[:, None]
    gt_boxes[::10] += 200
    return (torch.randn(count, 4) * 0.3).requires_grad_(), anchors, gt_boxes


def formula(name, pred, gt):
    """The papers' DIoU (arXiv 1911.08287, eq. 7) and CIoU (eq. 8 to 11) loss of each box."""
    (px, py), (gx, gy) = ((b[:, 2:] - b[:, :2]).unbind(1) for b in (pred, gt))
    overlap = torch.min(pred[:, 2:], gt[:, 2:]) - torch.max(pred[:, :2], gt[:, :2])
    intersection = overlap.clamp(min=0).prod(1)
    iou = intersection / (px * py + gx * gy - intersection)
    enclosing = torch.max(pred[:, 2:], gt[:, 2:]) - torch.min(pred[:, :2], gt[:, :2])
    between_centers = (pred[:, :2] + pred[:, 2:] - gt[:, :2] - gt[:, 2:]) / 2
    loss = 1 - iou + (between_centers**2).sum(1) / (enclosing**2).sum(1)
    if name == "ciou":
        v = 4 / torch.pi**2 * (torch.atan(gx / gy) - torch.atan(px / py)) ** 2
        loss = loss + v * (v / (1 - iou + v)).detach()
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_equals_detectron2(name):
    if f"{name}_loss" not in vars(d2):
        pytest.skip("Detectron2 0.5 has no such loss")
    loss, (deltas, anchors, gt_boxes) = build_loss(name), make_batch()
    ours = loss(deltas, anchors, gt_boxes)
    stock = d2._dense_box_regression_loss(
        [Boxes(anchors)], loss.box2box_transform, [deltas[None]], [gt_boxes],
        torch.ones(1, len(anchors), dtype=torch.bool), name, 0.1,
    )  # fmt: skip
    torch.testing.assert_close(ours, stock)
    torch.testing.assert_close(
        torch.autograd.grad(ours, deltas), torch.autograd.grad(stock, deltas)
    )


@pytest.mark.parametrize("name", ["diou", "ciou"])
def test_equals_the_paper(name):
    loss, (deltas, anchors, gt_boxes) = build_loss(name), make_batch()
    ours = loss(deltas, anchors, gt_boxes)
    right = formula(name, loss.box2box_transform.apply_deltas(deltas, anchors), gt_boxes).sum()
    torch.testing.assert_close(ours, right)
    torch.testing.assert_close(
        torch.autograd.grad(ours, deltas), torch.autograd.grad(right, deltas), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_perfect_deltas_cost_nothing(name):
    loss, (_, anchors, gt_boxes) = build_loss(name), make_batch()
    deltas = loss.box2box_transform.get_deltas(anchors, gt_boxes)
    assert loss(deltas, anchors, gt_boxes).item() == pytest.approx(0, abs=1e-3)
    assert loss(deltas + 0.1, anchors, gt_boxes).item() > 1


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_no_foreground_is_exactly_zero(name, beta):
    all_deltas = torch.randn(6, 4, requires_grad=True)
    none = torch.zeros(0, 4)
    loss = build_loss(name, beta)(all_deltas[none[:, 0].long()], none, none)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(all_deltas.grad, torch.zeros(6, 4))


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_boxes_without_width_stay_finite(name, beta):
    deltas, anchors, gt_boxes = make_batch()
    gt_boxes[:, 2] = gt_boxes[:, 0]
    loss = build_loss(name, beta)(deltas, anchors, gt_boxes)
    (grad,) = torch.autograd.grad(loss, deltas)
    assert loss.isfinite()
    assert grad.isfinite().all()
    if name == "smooth_l1":  # the side of no length is left out, the others count
        assert (grad[:, 2] == 0).all()
        assert (grad[:, [0, 1, 3]] != 0).all()
