"""Classification losses: formulas, identities, extreme numbers, memory, and a loss of one's own."""

import fvcore.nn
import pytest
import torch
import torch.nn.functional as F
from conftest import make_batch as make_inputs
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from retinanet_plugin import CLS_LOSS_REGISTRY, UserError, sigmoid_focal_loss
from retinanet_plugin.config import load_config
from retinanet_plugin.losses import SigmoidLoss, sigmoid_pass

N, A, K = 2, 3, 4
SIZES = [(4, 5), (2, 3)]


def build_loss(name, **keys):
    """A registered loss from a config with ``MODEL.RETINANET`` keys set."""
    cfg = load_config("")
    cfg.MODEL.RETINANET.update(NUM_CLASSES=K, **keys)
    return CLS_LOSS_REGISTRY.get(name)(cfg)


def make_batch(dtype=torch.float32, num_classes=K, scale=3.0):
    """Logits of each level, as in the model views of (N, A*K, Hi, Wi), and labels of all kinds."""
    rng = torch.Generator().manual_seed(0)
    logits, labels = [], []
    for h, w in SIZES:
        x = torch.randn(N, A, num_classes, h, w, generator=rng) * scale
        logits.append(x.to(dtype).permute(0, 3, 4, 1, 2).requires_grad_())
        labels.append(torch.randint(-1, num_classes + 1, (N, h, w, A), generator=rng))
    return logits, labels


def with_grads(loss, logits):
    return loss, torch.autograd.grad(loss, logits)


def expected(log_losses, logits, labels, alpha=None):
    """Sum of ``alpha_t * log_losses(x_t)`` over entries with one-hot targets, in float64."""
    total = 0
    for x, y in zip(logits, labels):
        valid = y >= 0
        target = F.one_hot(y[valid], K + 1)[:, :K].double()
        x_t = x[valid].double() * (2 * target - 1)
        weight = 1 if alpha is None else target * alpha + (1 - target) * (1 - alpha)
        total = total + (weight * log_losses(x_t)).sum()
    return total


def focal(gamma):
    return lambda x_t: -((1 - x_t.sigmoid()) ** gamma) * x_t.sigmoid().log()


def cross_entropy(x_t):
    return -x_t.sigmoid().log()


def focal_star(gamma, beta):
    return lambda x_t: -(gamma * x_t + beta).sigmoid().log() / gamma


PER_CLASS = [0.1, 0.9, 0.0, 1.0]
PER_CLASS_KEY = {"FOCAL_LOSS_ALPHA_PER_CLASS": PER_CLASS}
CASES = [
    ("CrossEntropyLoss", {}, cross_entropy, None),
    ("BalancedCrossEntropyLoss", {"FOCAL_LOSS_ALPHA": 0.75}, cross_entropy, 0.75),
    ("BalancedCrossEntropyLoss", PER_CLASS_KEY, cross_entropy, PER_CLASS),
    ("FocalLoss", {}, focal(2), 0.25),
    ("FocalLoss", {"FOCAL_LOSS_ALPHA": -1.0}, focal(2), None),
    ("FocalLoss", {"FOCAL_LOSS_ALPHA": 0.0, "FOCAL_LOSS_GAMMA": 1.0}, focal(1), 0.0),
    ("FocalLoss", {"FOCAL_LOSS_ALPHA": 1.0, "FOCAL_LOSS_GAMMA": 0.5}, focal(0.5), 1.0),
    ("FocalLoss", {"FOCAL_LOSS_GAMMA": 5.0}, focal(5), 0.25),
    ("FocalLoss", PER_CLASS_KEY, focal(2), PER_CLASS),
    ("FocalStarLoss", {}, focal_star(4, 0), 0.25),
    ("FocalStarLoss", {"FOCAL_STAR_GAMMA": 2.0, "FOCAL_STAR_BETA": 1.0}, focal_star(2, 1), 0.25),
]
NAMES = ["CrossEntropyLoss", "BalancedCrossEntropyLoss", "FocalLoss", "FocalStarLoss"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "keys", "formula", "alpha"), CASES)
def test_formula(name, keys, formula, alpha, dtype):
    logits, labels = make_batch(dtype)
    loss, grads = with_grads(build_loss(name, **keys)(logits, labels, None), logits)
    alpha = torch.tensor(alpha) if isinstance(alpha, list) else alpha
    right_loss, right_grads = with_grads(expected(formula, logits, labels, alpha), logits)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), right_loss, rtol=1e-6, atol=0)
    # 1 - p in float32 costs digits where p is near 1.
    rtol = 1e-6 if dtype == torch.float64 else 5e-6
    torch.testing.assert_close(grads, right_grads, rtol=rtol, atol=1e-8)


@pytest.mark.parametrize(("name", "keys"), [case[:2] for case in CASES])
def test_gradcheck(name, keys):
    loss = build_loss(name, **keys)
    logits, labels = make_batch(torch.float64)
    assert torch.autograd.gradcheck(lambda *logits: loss(logits, labels, None), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "keys"), [case[:2] for case in CASES])
def test_extreme_logits_stay_finite(name, keys, dtype):
    x = torch.arange(-100.0, 101.0, 2.5).to(dtype)
    logits = x.view(-1, 1).repeat(1, K).requires_grad_()
    for label in range(-1, K + 1):
        labels = torch.full((len(x),), label)
        loss, (grad,) = with_grads(build_loss(name, **keys)([logits], [labels], None), [logits])
        assert loss.dtype == torch.float32
        assert grad.dtype == dtype
        assert loss.isfinite()
        assert grad.isfinite().all()


def test_confident_mistakes_cost_their_logit():
    """-log(sigmoid(-100)) is 100: a naive log of a float32 probability is infinite there."""
    loss = sigmoid_focal_loss(torch.full((1, 1), -100.0), torch.tensor([0]), alpha=-1, gamma=2)
    assert loss.item() == pytest.approx(100)


def test_gamma_0_and_alpha_half_is_half_of_cross_entropy():
    logits, labels = make_batch()
    labels = [y.clamp(min=0) for y in labels]
    loss, grads = with_grads(
        build_loss("FocalLoss", FOCAL_LOSS_ALPHA=0.5, FOCAL_LOSS_GAMMA=0.0)(logits, labels, None),
        logits,
    )
    half, half_grads = with_grads(
        0.5
        * sum(
            F.binary_cross_entropy_with_logits(
                x, F.one_hot(y, K + 1)[..., :K].float(), reduction="sum"
            )
            for x, y in zip(logits, labels)
        ),
        logits,
    )
    torch.testing.assert_close(loss, half)
    torch.testing.assert_close(grads, half_grads)


@pytest.mark.parametrize("alpha", [-1, 0.25])
@pytest.mark.parametrize("gamma", [0, 0.5, 2, 5])
def test_equals_fvcore(alpha, gamma):
    (x, _), (y, _) = make_batch()
    y = y.clamp(min=0)
    target = F.one_hot(y, K + 1)[..., :K].float()
    ours = with_grads(sigmoid_focal_loss(x, y, alpha=alpha, gamma=gamma), x)
    theirs = fvcore.nn.sigmoid_focal_loss(x, target, alpha=alpha, gamma=gamma, reduction="sum")
    torch.testing.assert_close(ours, with_grads(theirs, x), rtol=1e-5, atol=1e-6)

    if gamma > 0:
        keys = {"FOCAL_LOSS_ALPHA": float(alpha), "FOCAL_STAR_GAMMA": float(gamma)}
        ours = with_grads(build_loss("FocalStarLoss", **keys)([x], [y], None), x)
        theirs = fvcore.nn.sigmoid_focal_loss_star(x, target, alpha, gamma, reduction="sum")
        torch.testing.assert_close(ours, with_grads(theirs, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("p_t", "times", "within"), [(0.9, 100, 1e-3), (0.968, 1000, 30)])
def test_easy_examples_as_in_the_paper(p_t, times, within):
    """ "With gamma = 2, an example classified with p_t = 0.9 would have 100 times lower loss"."""
    logits, labels = torch.tensor([[p_t]]).logit(), torch.tensor([0])
    cross_entropy_of_it = build_loss("CrossEntropyLoss")([logits], [labels], None)
    focal_loss_of_it = sigmoid_focal_loss(logits, labels, alpha=-1, gamma=2)
    assert (cross_entropy_of_it / focal_loss_of_it).item() == pytest.approx(times, abs=within)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_anchors_contribute_nothing(name):
    loss = build_loss(name)
    (x, _), (y, _) = make_batch()
    kept = y >= 0
    value, (grad,) = with_grads(loss([x], [y], None), [x])
    torch.testing.assert_close(value, loss([x[kept]], [y[kept]], None))
    assert (grad[~kept] == 0).all()
    assert (grad[kept] != 0).all()


@pytest.mark.parametrize("name", [*NAMES, "OHEMLoss"])
def test_no_anchors_and_no_foreground(name):
    loss = build_loss(name)
    empty = torch.zeros(N, 0, 5, A, K, requires_grad=True)
    nothing = torch.zeros(N, 0, 5, A, dtype=torch.int64)
    value, (grad,) = with_grads(loss([empty], [nothing], [Boxes(torch.zeros(0, 4))]), [empty])
    assert value.item() == 0
    assert grad.shape == empty.shape

    logits = torch.zeros(1, 1, 1, A, K, requires_grad=True)
    boxes = [Boxes(torch.tensor([[0.0, 0, 4, 4], [9, 9, 12, 12], [20, 0, 24, 4]]))]
    value, (grad,) = with_grads(loss([logits], [torch.full((1, 1, 1, A), K)], boxes), [logits])
    assert value.item() > 0
    assert (grad > 0).all()


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 1 << 20])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "with_gaps"])
def test_layout_and_chunks_change_nothing(monkeypatch, layout, chunk_size):
    loss = build_loss("FocalLoss", **PER_CLASS_KEY)
    logits, labels = make_batch(torch.float64)
    right = with_grads(loss(logits, labels, None), logits)
    if layout == "channels_last":  # in memory (N, Hi, Wi, A, K)
        logits = [x.detach().contiguous().requires_grad_() for x in logits]
    elif layout == "with_gaps":
        logits = [torch.stack([x, x], dim=-1).detach()[..., 0].requires_grad_() for x in logits]
    monkeypatch.setitem(sigmoid_pass._CHUNK_SIZE, "cpu", chunk_size)
    torch.testing.assert_close(with_grads(loss(logits, labels, None), logits), right)


def test_second_backward_through_a_retained_graph():
    (x, _), (y, _) = make_batch()
    loss = sigmoid_focal_loss(x, y, alpha=0.25, gamma=2)
    (first,) = torch.autograd.grad(3 * loss, x, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(3 * loss, x, retain_graph=True)
    (once,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, 3 * once)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_16_bit_gradients_under_a_loss_scale(dtype, rtol):
    """The scale 2**16 does not fit float16; gradients of easy background, 3 p^3, are below it."""
    logits, labels = make_batch(dtype, scale=1.0)
    logits = [(x - 6).detach().requires_grad_() for x in logits]
    exact = [x.detach().float().requires_grad_() for x in logits]
    scale = 2.0**16
    loss = build_loss("FocalLoss")
    _, grads = with_grads(loss(logits, labels, None) * scale, logits)
    _, right = with_grads(loss(exact, labels, None), exact)
    for grad, right_grad in zip(grads, right):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.float() / scale, right_grad, rtol=rtol, atol=1e-10)


def test_arithmetic_is_float32_under_autocast():
    (x, _), (y, _) = make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sigmoid_focal_loss(x, y, alpha=0.25, gamma=2)
    assert torch.equal(loss, sigmoid_focal_loss(x, y, alpha=0.25, gamma=2))


def test_graph_holds_logits_labels_and_one_gradient():
    (x, _), (y, _) = make_batch()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = sigmoid_focal_loss(x, y, alpha=0.25, gamma=2)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), y.data_ptr()}
    held = [value for value in vars(loss.grad_fn).values() if isinstance(value, torch.Tensor)]
    assert [t.shape for t in held] == [x.shape]


def test_loss_of_another_project(small_cfg):
    """A decorated class and a config value: no file of this package is touched."""

    @CLS_LOSS_REGISTRY.register()
    class SquaredErrorLoss(SigmoidLoss):
        """``(1 - p_t)^2``, balanced by alpha as every :class:`SigmoidLoss` is."""

        def loss_and_slope(self, error_logits):
            q = error_logits.sigmoid()
            return q * q, 2 * q * q * (1 - q)

    small_cfg.MODEL.RETINANET.CLS_LOSS_NAME = "SquaredErrorLoss"
    model = build_model(small_cfg)
    inputs = make_inputs(small_cfg.MODEL.RETINANET.NUM_CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with EventStorage():
        before = model(inputs)["loss_cls"]
        before.backward()
        optimizer.step()
        after = model(inputs)["loss_cls"]
    assert after.item() < before.item()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("FocalLoss", "FOCAL_LOSS_GAMMA", 5.1),
        ("FocalLoss", "FOCAL_LOSS_GAMMA", -0.1),
        ("FocalLoss", "FOCAL_LOSS_ALPHA", 1.1),
        ("BalancedCrossEntropyLoss", "FOCAL_LOSS_ALPHA", float("nan")),
        ("FocalStarLoss", "FOCAL_STAR_GAMMA", 0.0),
        ("OHEMLoss", "OHEM_BATCH_SIZE_PER_IMAGE", 0),
        ("OHEMLoss", "OHEM_NMS_THRESH", 1.5),
    ],
)
def test_errors_name_key_and_value(name, key, value):
    with pytest.raises(UserError, match=rf"MODEL\.RETINANET\.{key} is {value}: choose"):
        build_loss(name, **{key: value})
