"""Classification losses: formulas, identities, extreme numbers, memory, and a loss of one's own."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import fvcore.nn
import omegaconf
import pytest
import torch
import torch.nn.functional as F
from conftest import make_batch as make_inputs
from detectron2.config import configurable
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint

from retinanet_plugin import CLS_LOSS_REGISTRY, UserError, sigmoid_focal_loss
from retinanet_plugin.config import load_config
from retinanet_plugin.losses import FocalLoss, SigmoidLoss, chunks, sigmoid_pass

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
    """First derivatives, and second ones: there PyTorch differentiates other operations."""
    loss = build_loss(name, **keys)
    logits, labels = make_batch(torch.float64)
    logits = [logits[0][:1, :1, :1].detach().requires_grad_()]
    labels = [torch.tensor([-1, 2, K]).view(1, 1, 1, A)]
    assert torch.autograd.gradcheck(lambda x: loss([x], labels, None), logits)
    assert torch.autograd.gradgradcheck(lambda x: loss([x], labels, None), logits)


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
    monkeypatch.setitem(chunks.CHUNK_SIZE, "cpu", chunk_size)
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
    held, _ = tree_flatten(vars(loss.grad_fn))
    assert [t.shape for t in held if isinstance(t, torch.Tensor)] == [x.shape]


# ------------------------------------------------------------------------- numbers at the limit


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38])
@pytest.mark.parametrize("name", NAMES)
def test_ignored_anchors_hide_what_is_not_finite(name, value, layout):
    loss = build_loss(name)
    (x, _), (y, _) = make_batch()
    right = with_grads(loss([x], [y], None), x)
    with torch.no_grad():
        x = x.clone() if layout == "channels_first" else x.contiguous()
        x[(y < 0).nonzero(as_tuple=True)] = value
    result = with_grads(loss([x.requires_grad_()], [y], None), x)
    torch.testing.assert_close(result, right)
    anchor_losses = sigmoid_pass.dense_anchor_losses(x, y, loss.loss_and_slope)
    assert (anchor_losses[y < 0] == 0).all()
    assert anchor_losses.isfinite().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("label", [0, 1])
def test_what_is_not_finite_is_never_a_finite_mistake(label, value):
    """As in stock; a truth that is infinitely sure costs 0, stock's 0 * inf is not a number."""
    logits = torch.tensor([[value]], requires_grad=True)
    loss, (grad,) = with_grads(
        sigmoid_focal_loss(logits, torch.tensor([label]), alpha=0.25, gamma=2), [logits]
    )
    is_right = value == (math.inf if label == 0 else -math.inf)
    assert loss.isfinite().item() is is_right
    assert grad.isfinite().item() is is_right


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_normal_numbers_or_0(name, dtype):
    """Others, such as 1e-40 in float32, make a step of some processors several times slower.

    So do products with weights that are such: what is nearly as small is 0 as well.
    """
    lowest = -800 if dtype == torch.float64 else -120
    logits = torch.linspace(lowest, 0, 8000, dtype=torch.float64).to(dtype).view(-1, 1)
    labels = torch.ones(len(logits), dtype=torch.int64)
    tiny = torch.finfo(dtype).tiny
    for normalizer in (1.0, 100.0):
        loss = build_loss(name)([logits.requires_grad_()], [labels], None) / normalizer
        (grad,) = torch.autograd.grad(loss, logits)
        assert (grad == 0).any()
        assert grad[grad != 0].min() >= 2**26 * tiny
        (right,) = torch.autograd.grad(
            build_loss(name)([x := logits.detach().double().requires_grad_()], [labels], None), x
        )
        kept = right / normalizer > 2**27 * tiny
        rtol = max(1e-5, 2 * torch.finfo(dtype).eps)
        torch.testing.assert_close(grad.double()[kept], right[kept] / normalizer, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_fast_formulas_have_the_digits_of_pytorchs_operations(name, dtype):
    """Error by error, against the same formula in float64 without the shortcut of the logarithm."""
    formula = build_loss(name).loss_and_slope
    errors = torch.linspace(-20, 100, 30001, dtype=dtype)
    loss, slope, *spare = (torch.empty_like(errors) for _ in range(4))
    formula.write(errors, loss, slope, spare)
    right_loss, right_slope = formula(errors.double())
    if dtype == torch.float64:  # above 20, F.softplus is its argument
        keep = errors <= (5 if name == "FocalStarLoss" else 20)
        loss, slope, right_loss, right_slope = (
            t[keep] for t in (loss, slope, right_loss, right_slope)
        )
    # exp(x) has the relative error of x, which gamma multiplies.
    rtol = 16 * torch.finfo(dtype).eps
    kept = right_slope > 1e-30
    torch.testing.assert_close(loss.double()[kept], right_loss[kept], rtol=rtol, atol=0)
    torch.testing.assert_close(slope.double()[kept], right_slope[kept], rtol=rtol, atol=0)


# ---------------------------------------------------------------- wherever PyTorch takes the loss


def focal_loss(logits, labels):
    return sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0)


@pytest.fixture
def one_level():
    """Logits (2, 4, 5, 3, K) without gradient, labels, the loss and its gradient."""
    (x, _), (y, _) = make_batch()
    loss, grad = with_grads(focal_loss(x, y), [x])
    return x.detach(), y, loss.detach(), grad[0]


def test_the_same_value_to_the_last_bit_with_and_without_gradients(one_level):
    x, y, loss, _ = one_level
    assert torch.equal(focal_loss(x, y), loss)
    with torch.no_grad():
        assert torch.equal(focal_loss(x.clone().requires_grad_(), y), loss)
    with torch.inference_mode():
        assert torch.equal(focal_loss(x, y), loss)
    loss_after, _ = with_grads(focal_loss(x.requires_grad_(), y), x)
    assert torch.equal(loss_after, loss)


@pytest.mark.parametrize("num_classes", [1, 80])
def test_the_sum_of_anchors_is_the_same_with_any_number_of_threads(num_classes):
    losses = torch.rand(300_000 // num_classes) * 10
    before = torch.get_num_threads()
    try:
        sums = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.add(sigmoid_pass.sum_in_order(losses).item())
    finally:
        torch.set_num_threads(before)
    assert len(sums) == 1


def test_func_grad_vmap_jvp(one_level):
    x, y, loss, grad = one_level
    torch.testing.assert_close(torch.func.grad(focal_loss)(x, y), grad)
    of_images = torch.func.vmap(torch.func.grad_and_value(focal_loss))
    grads, losses = of_images(x, y)
    torch.testing.assert_close(grads, grad)
    torch.testing.assert_close(losses.sum(), loss)
    tangent = torch.randn(x.shape)
    _, change = torch.func.jvp(lambda x: focal_loss(x, y), (x,), (tangent,))
    torch.testing.assert_close(change, (grad * tangent).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        change = torch.autograd.forward_ad.unpack_dual(focal_loss(dual, y)).tangent
    torch.testing.assert_close(change, (grad * tangent).sum())


def test_second_derivatives(one_level):
    x, y, *_ = one_level
    x, y = x[0, 0, 0], y[0, 0, 0]
    hessian = torch.func.hessian(focal_loss)(x, y)
    for vectorize in (False, True):
        other = torch.autograd.functional.hessian(
            lambda x: focal_loss(x, y), x, vectorize=vectorize
        )
        torch.testing.assert_close(other, hessian)
    # A gradient penalty, whose first derivative is the same as without it.
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(focal_loss(x, y), x, create_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(focal_loss(x, y), x)[0])
    (penalty_grad,) = torch.autograd.grad((grad**2).sum(), x)
    torch.testing.assert_close(
        penalty_grad, 2 * torch.einsum("abcd,cd->ab", hessian, grad.detach())
    )


def test_a_batch_of_backwards(one_level):
    x, y, _, grad = one_level
    loss = focal_loss(x.requires_grad_(), y)
    (grads,) = torch.autograd.grad(loss, x, torch.tensor([1.0, 3.0]), is_grads_batched=True)
    torch.testing.assert_close(grads, torch.stack([grad, 3 * grad]))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(one_level, use_reentrant):
    x, y, loss, grad = one_level
    x.requires_grad_()
    value = checkpoint(focal_loss, x, y, use_reentrant=use_reentrant)
    value.backward()
    assert torch.equal(value, loss)
    assert torch.equal(x.grad, grad)


def test_traced_exported_and_compiled(one_level):
    """With another number of images than was traced, so that no constant of those can hide."""
    x, y, loss, grad = one_level
    one = x[:1], y[:1]
    traced = torch.jit.trace(focal_loss, one)
    torch.testing.assert_close(traced(x, y), loss)
    torch.testing.assert_close(make_fx(focal_loss)(*one)(*one), focal_loss(*one))
    compiled = torch.compile(focal_loss, fullgraph=True, backend="aot_eager")
    value, grads = with_grads(compiled(x.requires_grad_(), y), x)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(grads, (grad,))


@pytest.mark.parametrize("name", ["FocalLoss", "FocalStarLoss"])
def test_module_is_exported_with_any_number_of_images(one_level, name):
    class Losses(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = build_loss(name, **PER_CLASS_KEY)

        def forward(self, logits, labels):
            return self.loss([logits], [labels], None)

    x, y, *_ = one_level
    images = {0: torch.export.Dim("images")}
    program = torch.export.export(Losses(), (x, y), dynamic_shapes=(images, images)).module()
    torch.testing.assert_close(program(x[:1], y[:1]), Losses()(x[:1], y[:1]))
    torch.testing.assert_close(Losses()(x, y), program(x, y))


def test_fake_and_meta_tensors_leave_nothing_behind(one_level):
    x, y, loss, _ = one_level
    real = x.clone().requires_grad_()
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(real)
        value, (grad,) = with_grads(focal_loss(fake, mode.from_tensor(y)), [fake])
        assert value.shape == ()
        assert grad.shape == x.shape
    meta = x.to("meta").requires_grad_()
    value, (grad,) = with_grads(focal_loss(meta, y.to("meta")), [meta])
    assert value.shape == ()
    assert grad.shape == x.shape
    assert torch.equal(focal_loss(x, y), loss)


@pytest.mark.parametrize("name", [*NAMES, "OHEMLoss"])
def test_copies_and_threads(name):
    loss = build_loss(name)
    logits, labels = make_batch()
    boxes = [Boxes(torch.rand(h * w * A, 4).cumsum(1) * 50) for h, w in SIZES]
    right = with_grads(loss(logits, labels, boxes), logits)

    def same(module):
        result = with_grads(module(logits, labels, boxes), logits)
        return torch.equal(result[0], right[0]) and all(map(torch.equal, result[1], right[1]))

    assert same(copy.deepcopy(loss))
    assert same(pickle.loads(pickle.dumps(loss)))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, [loss] * 16))


# ---------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(one_level, dtype):
    x, y, *_ = one_level
    y = y.clamp(min=0) if dtype == torch.uint8 else y
    assert torch.equal(focal_loss(x, y.to(dtype)), focal_loss(x, y))


def test_labels_beyond_are_background_or_ignored(one_level):
    x, y, loss, grad = one_level
    y = torch.where(y == K, K + torch.arange(3)[y % 3], torch.where(y < 0, y - 7, y))
    assert y.max() == K + 1
    value, grads = with_grads(focal_loss(x.requires_grad_(), y), x)
    assert torch.equal(value, loss)
    assert torch.equal(grads[0], grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:, :2]), r"shape \(2, 2, 5, 3\) but the logits \(2, 4, 5, 3, 4\)"),
        (lambda x, y: (x, y[:1]), "give one label for each anchor"),
        (lambda x, y: (x, y.unsqueeze(-1)), "give one label for each anchor"),
        (lambda x, y: (x, F.one_hot(y.clamp(min=0), K + 1)[..., :K]), "give one label"),
        (lambda x, y: (x, y.float()), r"labels are torch.float32: give integers"),
        (lambda x, y: (x, y > 0), r"labels are torch.bool: give integers"),
        (lambda x, y: (x, y.to("meta")), "labels are on meta but the logits on cpu"),
        (lambda x, y: (x > 0, y), r"logits are torch.bool of shape .*give floating-point"),
        (lambda x, y: (x.long(), y), r"logits are torch.int64"),
        (lambda x, y: (x[..., :0], y), r"shape \(2, 4, 5, 3, 0\)"),
        (lambda x, y: (x[0, 0, 0, 0, 0], y[0, 0, 0, 0]), r"of shape \(\)"),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused(one_level, change, message):
    x, y, *_ = one_level
    with pytest.raises(UserError, match=message):
        focal_loss(*change(x, y))


@pytest.mark.parametrize(("num_logits", "num_labels"), [(0, 0), (2, 1), (1, 2)])
def test_levels_that_do_not_fit_are_refused(one_level, num_logits, num_labels):
    x, y, *_ = one_level
    loss = CLS_LOSS_REGISTRY.get("FocalLoss")(alpha=0.25, gamma=2.0)
    with pytest.raises(UserError, match=rf"are of \[{num_logits}, {num_labels}\] levels: give as"):
        loss([x] * num_logits, [y] * num_labels, None)


@pytest.mark.parametrize("value", [-0.1, 5.1, math.inf, math.nan])
def test_function_and_module_refuse_the_same_gammas(one_level, value):
    x, y, *_ = one_level
    with pytest.raises(UserError, match=f"gamma of sigmoid_focal_loss is {value}: choose"):
        sigmoid_focal_loss(x, y, alpha=0.25, gamma=value)
    with pytest.raises(UserError, match=f"FOCAL_LOSS_GAMMA is {value}: choose"):
        FocalLoss(alpha=0.25, gamma=value)


@pytest.mark.parametrize("value", [1.1, math.inf, math.nan])
def test_function_and_module_refuse_the_same_alphas(one_level, value):
    x, y, *_ = one_level
    with pytest.raises(UserError, match=f"alpha of sigmoid_focal_loss is {value}: choose"):
        sigmoid_focal_loss(x, y, alpha=value, gamma=2)
    with pytest.raises(UserError, match=f"FOCAL_LOSS_ALPHA is {value}: choose"):
        FocalLoss(alpha=value, gamma=2)
    with pytest.raises(UserError, match=f"PER_CLASS has the value {value}: choose"):
        FocalLoss(alpha=[0.25, value], gamma=2)


def test_one_anchor_without_further_dimensions():
    x = torch.tensor([0.0, 0.0, 0.0])
    loss = sigmoid_focal_loss(x, torch.tensor(1), alpha=-1, gamma=0)
    assert loss.item() == pytest.approx(3 * math.log(2))
    half = sigmoid_focal_loss(x.view(1, 3), torch.tensor([1]), alpha=0.25, gamma=2)
    assert half.item() == pytest.approx((0.25 + 2 * 0.75) * math.log(2) / 4)


# ------------------------------------------------------------------------------ parts of one's own


def test_lists_of_a_lazy_config():
    alpha = omegaconf.OmegaConf.create({"alpha": PER_CLASS}).alpha
    assert repr(FocalLoss(alpha=alpha, gamma=2.0)) == repr(FocalLoss(alpha=PER_CLASS, gamma=2.0))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CrossEntropyLoss", {}),
        ("BalancedCrossEntropyLoss", {"alpha": 0.25}),
        ("FocalLoss", {"alpha": 0.25, "gamma": 2.0}),
        ("FocalStarLoss", {"alpha": 0.25, "gamma": 4.0, "beta": 0.0}),
        ("OHEMLoss", {"batch_size_per_image": 128, "nms_thresh": 0.5}),
    ],
)
def test_built_from_arguments_as_from_a_config(name, arguments):
    loss = CLS_LOSS_REGISTRY.get(name)(**arguments)
    assert repr(loss) == repr(build_loss(name))


def test_loss_of_another_project(small_cfg):
    """A decorated class and a config value: no file of this package is touched."""

    @CLS_LOSS_REGISTRY.register()
    class SquaredErrorLoss(SigmoidLoss):
        """``weight (1 - p_t)^2``, balanced by alpha as every :class:`SigmoidLoss` is."""

        @configurable
        def __init__(self, *, alpha, weight):
            super().__init__(alpha=alpha)
            self.weight = weight

        @classmethod
        def from_config(cls, cfg):
            return {**super().from_config(cfg), "weight": cfg.MODEL.RETINANET.MY_WEIGHT}

        def loss_and_slope(self, error_logits):
            q = error_logits.sigmoid()
            return self.weight * q * q, self.weight * 2 * q * q * (1 - q)

    small_cfg.MODEL.RETINANET.update(CLS_LOSS_NAME="SquaredErrorLoss", MY_WEIGHT=2.0)
    model = build_model(small_cfg)
    inputs = make_inputs(5, num_boxes=[3], sizes=[(64, 64)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with EventStorage():
        sums = []
        for _ in range(2):
            loss = model(inputs)["loss_cls"] * model.loss_normalizer
            loss.backward()
            optimizer.step()
            sums.append(loss.item())
    assert sums[1] < sums[0]
    logits, labels = make_batch(torch.float64)
    assert torch.autograd.gradcheck(lambda x: model.cls_loss([x], labels[:1], None), logits[0])
    compare = torch.func.grad(lambda x: model.cls_loss([x], labels[:1], None))
    right = torch.autograd.grad(model.cls_loss(logits[:1], labels[:1], None), logits[0])
    torch.testing.assert_close((compare(logits[0].detach()),), right)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("FocalLoss", "FOCAL_LOSS_GAMMA", 5.1),
        ("FocalLoss", "FOCAL_LOSS_GAMMA", -0.1),
        ("FocalLoss", "FOCAL_LOSS_ALPHA", 1.1),
        ("BalancedCrossEntropyLoss", "FOCAL_LOSS_ALPHA", float("nan")),
        ("FocalStarLoss", "FOCAL_STAR_GAMMA", 0.0),
        ("FocalStarLoss", "FOCAL_STAR_GAMMA", float("inf")),
        ("FocalStarLoss", "FOCAL_STAR_BETA", float("nan")),
        ("OHEMLoss", "OHEM_BATCH_SIZE_PER_IMAGE", 0),
        ("OHEMLoss", "OHEM_NMS_THRESH", 1.5),
    ],
)
def test_errors_name_key_and_value(name, key, value):
    with pytest.raises(UserError, match=rf"MODEL\.RETINANET\.{key} is {value}: choose"):
        build_loss(name, **{key: value})
