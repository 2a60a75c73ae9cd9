"""Losses with soft targets: their formulas, gradients, identities, extreme numbers and errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from retinanet_plugin import UserError
from retinanet_plugin.config import load_config
from retinanet_plugin.losses import (
    CLS_LOSS_REGISTRY,
    CrossEntropyLoss,
    FocalLoss,
    QualityFocalLoss,
    VarifocalLoss,
    dense_sigmoid_loss,
)
from retinanet_plugin.losses.formulas import FocalFormula

N, H, W, A, K = 2, 4, 5, 3, 4


def make_batch(dtype=torch.float64, scale=3.0):
    """Logits, labels of all kinds, qualities; one level of the pyramid each."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(N, A, K, H, W, generator=rng, dtype=torch.float64) * scale
    logits = logits.to(dtype).permute(0, 3, 4, 1, 2).requires_grad_()
    labels = torch.randint(-1, K + 1, (N, H, W, A), generator=rng)
    qualities = torch.rand(N, H, W, A, generator=rng, dtype=torch.float64)
    qualities[:, 0] = 0
    qualities[:, 1] = 1
    return [logits], [labels], [qualities]


def dense_targets(labels, qualities):
    """y of every entry (..., K): the quality in the anchor's class, 0 elsewhere."""
    return F.one_hot(labels.clamp(min=0), K + 1)[..., :K] * qualities[..., None]


def quality_focal(beta):
    """arXiv 2006.04388, eq. 2, written out."""

    def loss(x, y):
        p = x.sigmoid()
        return -((y - p).abs() ** beta) * (y * p.log() + (1 - y) * (1 - p).log())

    return loss


def varifocal(alpha, gamma):
    """arXiv 2008.13367, eq. 2, written out."""

    def loss(x, q):
        p = x.sigmoid()
        positive = -q * (q * p.log() + (1 - q) * (1 - p).log())
        return torch.where(q > 0, positive, -alpha * p**gamma * (1 - p).log())

    return loss


CASES = [
    (QualityFocalLoss(), quality_focal(2)),
    (QualityFocalLoss(beta=0), quality_focal(0)),
    (QualityFocalLoss(beta=1), quality_focal(1)),
    (QualityFocalLoss(beta=2.5), quality_focal(2.5)),
    (VarifocalLoss(), varifocal(0.75, 2)),
    (VarifocalLoss(alpha=0.3, gamma=1.5), varifocal(0.3, 1.5)),
    (VarifocalLoss(alpha=0.0, gamma=0.0), varifocal(0.0, 0.0)),
]
KINK = "QualityFocalLoss(beta=1)"  # at p = y
each_case = pytest.mark.parametrize(
    ("loss", "formula"), CASES, ids=[repr(loss) for loss, _ in CASES]
)


@each_case
def test_is_its_formula_with_gradient(loss, formula):
    logits, labels, qualities = make_batch()
    known = labels[0] >= 0
    right = formula(logits[0], dense_targets(labels[0], qualities[0]))[known].sum()
    (right_grad,) = torch.autograd.grad(right, logits)
    found = loss(logits, labels, None, qualities)
    (grad,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, right_grad, rtol=1e-9, atol=1e-12)
    assert (grad[~known] == 0).all()


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arithmetic_is_float32(loss, formula, dtype):
    logits, labels, qualities = make_batch(dtype)
    found = loss(logits, labels, None, [qualities[0].float()])
    exact = [logits[0].detach().double().requires_grad_()]
    right = loss(exact, labels, None, qualities)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), right, rtol=2e-6, atol=0)
    (grad,), (right_grad,) = torch.autograd.grad(found, logits), torch.autograd.grad(right, exact)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, right_grad.to(dtype), rtol=2e-5, atol=5e-7)


@pytest.mark.parametrize("loss", [QualityFocalLoss(beta=2.5), VarifocalLoss()])
def test_both_derivatives_agree_with_differences(loss):
    """The one in closed form, and the second, for which PyTorch differentiates."""
    logits, labels, qualities = make_batch(scale=1.0)
    logits = logits[0].detach()[:, :2, :2].requires_grad_()
    labels, qualities = labels[0][:, :2, :2], qualities[0][:, :2, :2]

    def sum_of(x):
        return loss([x], [labels], None, [qualities])

    assert gradcheck(sum_of, logits)
    assert gradgradcheck(sum_of, logits)


def test_hard_targets_are_what_they_were():
    """QFL is the focal loss without alpha, at beta 0 cross entropy; VFL's positives are -log p."""
    logits, labels, _ = make_batch()
    ones = [torch.ones(labels[0].shape, dtype=torch.float64)]
    for qualities in (ones, None):
        plain = CrossEntropyLoss()(logits, labels, None)
        torch.testing.assert_close(QualityFocalLoss(beta=0)(logits, labels, None, qualities), plain)
        focal = FocalLoss(alpha=-1.0, gamma=2.0)(logits, labels, None)
        torch.testing.assert_close(QualityFocalLoss()(logits, labels, None, qualities), focal)
        positives = VarifocalLoss(alpha=0.0)(logits, labels, None, qualities)
        foreground = (labels[0] >= 0) & (labels[0] < K)
        x = logits[0][foreground].gather(1, labels[0][foreground][:, None])
        torch.testing.assert_close(positives, -F.logsigmoid(x).sum())


@pytest.mark.parametrize("loss", [loss for loss, _ in CASES if repr(loss) != KINK])
def test_a_perfect_score_has_no_slope(loss):
    quality = torch.tensor([0.3, 0.9], dtype=torch.float64)
    logits = torch.logit(quality)[:, None].requires_grad_()
    found = loss([logits], [torch.tensor([0, 0])], None, [quality])
    (grad,) = torch.autograd.grad(found, logits)
    assert grad.abs().max() < 1e-12


@each_case
def test_extreme_logits_are_finite(loss, formula):
    logits = torch.tensor([[-1e4], [-100.0], [100.0], [1e4]]).repeat(3, 1).requires_grad_()
    qualities = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(4)
    found = loss([logits], [torch.zeros(12, dtype=torch.int64)], None, [qualities])
    (grad,) = torch.autograd.grad(found, logits)
    assert found.isfinite()
    assert grad.isfinite().all()


@each_case
def test_traced_by_torch_func(loss, formula):
    logits, labels, qualities = make_batch()
    grad = torch.func.grad(lambda x: loss([x], labels, None, qualities))(logits[0].detach())
    (right,) = torch.autograd.grad(loss(logits, labels, None, qualities), logits)
    torch.testing.assert_close(grad, right)


def test_no_gradient_flows_into_qualities():
    logits, labels, qualities = make_batch()
    qualities[0].requires_grad_()
    loss = QualityFocalLoss()(logits, labels, None, qualities)
    loss.backward()
    assert qualities[0].grad is None


def test_a_graph_kept_gives_the_gradient_again():
    logits, labels, qualities = make_batch()
    loss = VarifocalLoss()(logits, labels, None, qualities)
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
    assert torch.equal(first, torch.autograd.grad(loss, logits)[0])


def test_from_config_and_copies():
    cfg = load_config("", ["MODEL.RETINANET.QUALITY_FOCAL_BETA", "1.5"])
    cfg.MODEL.RETINANET.VARIFOCAL_ALPHA = 0.5
    quality = copy.deepcopy(CLS_LOSS_REGISTRY.get("QualityFocalLoss")(cfg))
    assert repr(quality) == "QualityFocalLoss(beta=1.5)"
    assert (
        repr(CLS_LOSS_REGISTRY.get("VarifocalLoss")(cfg)) == "VarifocalLoss(alpha=0.5, gamma=2.0)"
    )
    assert quality.needs_qualities
    assert quality.fixed_shapes


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: QualityFocalLoss(beta=-1.0), "QUALITY_FOCAL_BETA is -1.0"),
        (lambda: QualityFocalLoss(beta=0.5), "QUALITY_FOCAL_BETA is 0.5"),
        (lambda: QualityFocalLoss(beta=float("nan")), "QUALITY_FOCAL_BETA is nan"),
        (lambda: VarifocalLoss(alpha=1.5), "VARIFOCAL_ALPHA is 1.5"),
        (lambda: VarifocalLoss(gamma=9.0), "VARIFOCAL_GAMMA is 9.0"),
    ],
)
def test_a_number_out_of_range_is_a_sentence(build, key):
    with pytest.raises(UserError, match=f"MODEL.RETINANET.{key}: choose "):
        build()


def test_what_does_not_fit_is_a_sentence():
    logits, labels, qualities = (levels[0] for levels in make_batch())
    formula = QualityFocalLoss().loss_and_slope
    with pytest.raises(UserError, match=r"the qualities are torch.float64 of shape \(2, 4, 5\) on"):
        dense_sigmoid_loss(logits, labels, formula, gt_qualities=qualities[..., 0])
    with pytest.raises(UserError, match=r"the qualities are torch.int64 of shape"):
        dense_sigmoid_loss(logits, labels, formula, gt_qualities=labels)
    with pytest.raises(UserError, match=r"has no method soft_foreground: derive it from Quality"):
        dense_sigmoid_loss(logits, labels, FocalFormula(2.0), gt_qualities=qualities)
