"""Box losses: Detectron2's own values, no foreground, boxes without area, anchors under a mask."""

import copy

import detectron2.modeling.box_regression as d2
import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou

from retinanet_plugin import BOX_LOSS_REGISTRY
from retinanet_plugin.config import load_config
from retinanet_plugin.losses import (
    IoUBoxLoss,
    SmoothL1BoxLoss,
    box_deltas,
    ciou_loss,
    diou_loss,
    foreground_box_loss,
    giou_loss,
    iou_qualities,
)

NAMES = ["smooth_l1", "giou", "diou", "ciou"]
WEIGHTS = (10.0, 5.0, 1.0, 2.0)


def build_loss(name, beta=0.1):
    cfg = load_config("")
    cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = beta
    cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS = WEIGHTS
    return BOX_LOSS_REGISTRY.get(name)(cfg)


def make_batch(count=50):
    """Deltas (count, 4), anchors and matched boxes, from disjoint to nearly equal."""
    corner = torch.rand(count, 2) * 100
    anchors = torch.cat([corner, corner + 10 + torch.rand(count, 2) * 80], dim=1)
    gt_boxes = anchors + (torch.rand(count, 4) - 0.5) * torch.linspace(0, 20, count)[:, None]
    gt_boxes[::10] += 200
    return (torch.randn(count, 4) * torch.tensor(WEIGHTS) * 0.3).requires_grad_(), anchors, gt_boxes


def test_deltas_and_boxes_equal_detectron2s_to_the_last_bit():
    (pred, anchors, gt_boxes), transform = make_batch(), d2.Box2BoxTransform(weights=WEIGHTS)
    pred = pred.detach() * 10  # beyond the clamp too
    gt_boxes[0, 2:] = gt_boxes[0, :2]
    assert torch.equal(
        box_deltas.deltas_of(anchors, gt_boxes, WEIGHTS), transform.get_deltas(anchors, gt_boxes)
    )
    boxes = box_deltas.boxes_of(pred, anchors, WEIGHTS)
    assert torch.equal(boxes, transform.apply_deltas(pred, anchors))
    assert (pred[:, 2] > box_deltas.SCALE_CLAMP).any()


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
    pred, anchors, gt_boxes = make_batch()
    ours = build_loss(name)(pred, anchors, gt_boxes)
    assert ours.shape == (len(anchors),)
    stock = d2._dense_box_regression_loss(
        [Boxes(anchors)], d2.Box2BoxTransform(weights=WEIGHTS), [pred[None]], [gt_boxes],
        torch.ones(1, len(anchors), dtype=torch.bool), name, 0.1,
    )  # fmt: skip
    torch.testing.assert_close(ours.sum(), stock)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), pred), torch.autograd.grad(stock, pred)
    )


@pytest.mark.parametrize("name", ["diou", "ciou"])
def test_equals_the_paper(name):
    pred, anchors, gt_boxes = make_batch()
    ours = build_loss(name)(pred, anchors, gt_boxes)
    right = formula(name, box_deltas.boxes_of(pred, anchors, WEIGHTS), gt_boxes)
    torch.testing.assert_close(ours, right)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), pred),
        torch.autograd.grad(right.sum(), pred),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_boxes_that_only_touch_have_the_gradient_of_disjoint_ones_as_in_stock():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    gt_boxes = torch.tensor([[10.0, 5.0, 20.0, 15.0]])
    pred = torch.zeros(2, 1, 4).requires_grad_()
    stock_boxes = d2.Box2BoxTransform(weights=WEIGHTS).apply_deltas(pred[0], anchors)
    d2.giou_loss(stock_boxes, gt_boxes).sum().backward()
    build_loss("giou")(pred[1], anchors, gt_boxes).sum().backward()
    torch.testing.assert_close(pred.grad[1], pred.grad[0])


@pytest.mark.parametrize("name", NAMES)
def test_perfect_deltas_cost_nothing(name):
    loss, (_, anchors, gt_boxes) = build_loss(name), make_batch()
    perfect = box_deltas.deltas_of(anchors, gt_boxes, WEIGHTS)
    assert loss(perfect, anchors, gt_boxes).max().item() == pytest.approx(0, abs=1e-4)
    assert loss(perfect + 0.5, anchors, gt_boxes).sum().item() > 1


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_no_foreground_is_exactly_zero(name, beta):
    all_deltas = torch.randn(6, 4, requires_grad=True)
    none = torch.zeros(0, 4)
    loss = build_loss(name, beta)(all_deltas[none[:, 0].long()], none, none).sum()
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(all_deltas.grad, torch.zeros(6, 4))


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_boxes_without_width_stay_finite(name, beta):
    pred, anchors, gt_boxes = make_batch()
    gt_boxes[:, 2] = gt_boxes[:, 0]
    loss = build_loss(name, beta)(pred, anchors, gt_boxes)
    (grad,) = torch.autograd.grad(loss.sum(), pred)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    if name == "smooth_l1":  # the side of no length is left out, the others count
        assert (grad[:, 2] == 0).all()
        assert (grad[:, [0, 1, 3]] != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_built_from_arguments_as_from_a_config(name):
    """As a lazy config does, whose lists are no tuples."""
    iou_losses = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
    if name == "smooth_l1":
        loss = SmoothL1BoxLoss(weights=list(WEIGHTS), beta=0.1)
    else:
        loss = IoUBoxLoss(weights=list(WEIGHTS), iou_loss=iou_losses[name])
    from_config = build_loss(name)
    assert repr(loss) == repr(from_config)
    batch = make_batch()
    assert torch.equal(loss(*batch), from_config(*batch))
    assert torch.equal(copy.deepcopy(loss)(*batch), loss(*batch))


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_in_float64(name):
    pred, anchors, gt_boxes = (x.detach().double() for x in make_batch(7))
    loss, pred = build_loss(name), pred.requires_grad_()
    if name != "ciou":  # whose alpha counts as a constant
        assert torch.autograd.gradcheck(lambda x: loss(x, anchors, gt_boxes), pred)
    grads = torch.func.vmap(torch.func.grad(lambda *row: loss(*(x[None] for x in row)).sum()))
    (right,) = torch.autograd.grad(loss(pred, anchors, gt_boxes).sum(), pred)
    torch.testing.assert_close(grads(pred.detach(), anchors, gt_boxes), right)


# ------------------------------------------------------------------ on the foreground of a batch


def make_levels(num_foreground):
    """Two images on two levels, 2x3 and 1x2 locations of 2 anchors; foreground and its boxes."""
    _, anchors, _ = make_batch(16)
    _, _, gt_boxes = make_batch(32)
    foreground = torch.zeros(32, dtype=torch.bool)
    foreground[torch.randperm(32)[:num_foreground]] = True
    foreground = foreground.view(2, 16)
    gt_boxes = gt_boxes.view(2, 16, 4).masked_fill(~foreground.unsqueeze(2), 0)
    return [Boxes(anchors[:12]), Boxes(anchors[12:])], foreground, gt_boxes


def loss_of_levels(name, anchors, foreground, gt_boxes, outputs, masked):
    """The loss, and its gradients for outputs (N, A*4, Hi, Wi) of a head."""
    outputs = [x.clone().requires_grad_() for x in outputs]
    views = [x.view(2, 2, 4, *x.shape[2:]).permute(0, 3, 4, 1, 2) for x in outputs]
    loss = foreground_box_loss(build_loss(name), foreground, views, anchors, gt_boxes, masked)
    return loss.detach(), torch.autograd.grad(loss, outputs)


@pytest.mark.parametrize("num_foreground", [0, 1, 10, 32])
@pytest.mark.parametrize("name", NAMES)
def test_picked_and_masked_foreground_give_the_same(name, num_foreground):
    anchors, foreground, gt_boxes = make_levels(num_foreground)
    outputs = [torch.randn(2, 8, 2, 3), torch.randn(2, 8, 1, 2)]
    deltas = [x.view(2, 2, 4, -1).permute(0, 3, 1, 2).reshape(2, -1, 4) for x in outputs]
    losses = build_loss(name)(
        torch.cat(deltas, dim=1).view(-1, 4), Boxes.cat(anchors).tensor.repeat(2, 1),
        gt_boxes.view(-1, 4),
    )  # fmt: skip
    picked, picked_grads = loss_of_levels(name, anchors, foreground, gt_boxes, outputs, False)
    masked, masked_grads = loss_of_levels(name, anchors, foreground, gt_boxes, outputs, True)
    torch.testing.assert_close(picked, losses[foreground.flatten()].sum())
    torch.testing.assert_close(masked, picked)
    torch.testing.assert_close(masked_grads, picked_grads)
    assert sum((grad != 0).sum() for grad in picked_grads) <= 4 * num_foreground


@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_foreground_anchors(masked):
    anchors, foreground, gt_boxes = make_levels(10)
    views = [torch.randn(2, 2, 3, 2, 4), torch.randn(2, 1, 2, 2, 4)]
    weights = torch.rand(foreground.shape)
    deltas = torch.cat([x.flatten(1, 3) for x in views], dim=1).view(-1, 4)
    losses = build_loss("giou")(
        deltas, Boxes.cat(anchors).tensor.repeat(2, 1), gt_boxes.view(-1, 4)
    )
    right = (losses * weights.flatten())[foreground.flatten()].sum()
    arguments = build_loss("giou"), foreground, views, anchors, gt_boxes, masked
    torch.testing.assert_close(foreground_box_loss(*arguments, weights), right)


@pytest.mark.parametrize("num_foreground", [0, 1, 10, 32])
@pytest.mark.parametrize("masked", [False, True])
def test_qualities_are_ious_of_decoded_foreground(masked, num_foreground):
    anchors, foreground, gt_boxes = make_levels(num_foreground)
    views = [torch.randn(2, 2, 3, 2, 4), torch.randn(2, 1, 2, 2, 4)]
    views = [x.requires_grad_() for x in views]
    deltas = torch.cat([x.flatten(1, 3) for x in views], dim=1).view(-1, 4)
    all_anchors = Boxes.cat(anchors).tensor.repeat(2, 1)
    decoded = d2.Box2BoxTransform(weights=WEIGHTS).apply_deltas(deltas, all_anchors)
    right = pairwise_iou(Boxes(decoded), Boxes(gt_boxes.view(-1, 4))).diagonal().view(2, -1)
    found = iou_qualities(foreground, views, anchors, gt_boxes, WEIGHTS, masked)
    assert not found.requires_grad
    torch.testing.assert_close(found, torch.where(foreground, right, 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "loss_dtype"),
    [(torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.half, torch.float32)],
)
def test_arithmetic_is_float32_or_float64(dtype, loss_dtype, masked):
    anchors, foreground, gt_boxes = make_levels(10)
    outputs = [torch.randn(2, 8, 2, 3).to(dtype), torch.randn(2, 8, 1, 2).to(dtype)]
    loss, grads = loss_of_levels("smooth_l1", anchors, foreground, gt_boxes, outputs, masked)
    right, _ = loss_of_levels(
        "smooth_l1", anchors, foreground, gt_boxes, [x.float() for x in outputs], masked
    )
    assert loss.dtype == loss_dtype
    assert all(grad.dtype == dtype for grad in grads)
    torch.testing.assert_close(loss.float(), right)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_background_is_not_read(name, masked):
    anchors, foreground, gt_boxes = make_levels(0)
    outputs = [torch.full((2, 8, 2, 3), float("nan")), torch.full((2, 8, 1, 2), float("inf"))]
    gt_boxes.fill_(float("nan"))
    loss, grads = loss_of_levels(name, anchors, foreground, gt_boxes, outputs, masked)
    assert loss == 0
    assert not any(grad.any() for grad in grads)
