"""The focal loss's Triton kernel: in Triton's interpreter on the CPU, and compiled for a GPU.

The interpreter runs the kernel's formula and indices, with NumPy in place of the GPU.
"""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import NEEDS_TRITON

from retinanet_plugin import UserError, losses, triton_kernels
from retinanet_plugin.config import load_config
from retinanet_plugin.losses import (
    FocalLoss,
    FocalStarLoss,
    dense_sigmoid,
    dense_sigmoid_loss,
    focal_kernel,
)
from retinanet_plugin.losses.formulas import (
    FocalFormula,
    QualityFocalFormula,
    VarifocalFormula,
)

N, H, W, A = 2, 3, 5, 3


@pytest.fixture(scope="module")
def interpreted(triton_interpreter):
    """:func:`kernel_pass` where Triton interprets."""
    return lambda *args, function=kernel_pass: triton_interpreter(function, *args)


def kernel_pass(logits, labels, gamma, alpha, loss_scale=1.0, qualities=None):
    """As :func:`pytorch_pass`, from the kernel; for a process of its own, which it changes."""
    from retinanet_plugin.losses import focal_triton

    assert focal_triton.can_run(logits)
    dense_sigmoid.focal_kernel = lambda pred_logits, pytorch_pass: focal_triton
    return pytorch_pass(logits, labels, gamma, alpha, loss_scale, qualities)


def comparison(factor):
    """The message of the one-time comparison where the kernel's gradients are ``factor`` times
    what they should be, else None; for a process of its own.
    """
    from retinanet_plugin.losses import focal_triton

    def changed(*arguments):
        loss = focal_triton.loss_and_grads(*arguments)
        for grad in arguments[-1]:
            grad.mul_(factor)
        return loss

    kernel = SimpleNamespace(loss_and_grads=changed)
    try:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            focal_kernel._compare(kernel, "cpu", dtype, dense_sigmoid._pytorch_loss)
    except ArithmeticError as error:
        return str(error)


def pytorch_pass(logits, labels, gamma, alpha, loss_scale=1.0, qualities=None):
    """The loss, and the gradient of it times ``loss_scale`` unless that is None.

    ``gamma`` is that of the focal loss, or another formula.
    """
    logits.requires_grad_(loss_scale is not None)
    formula = FocalFormula(gamma) if isinstance(gamma, float) else gamma
    loss = dense_sigmoid_loss(logits, labels, formula, alpha, gt_qualities=qualities)
    if loss_scale is None:
        return loss, None
    (grad,) = torch.autograd.grad(loss * loss_scale, logits)
    return loss.detach(), grad


def make_batch(num_classes, layout="pixels_innermost", dtype=torch.float32):
    """Logits (N, H, W, A, K), in memory as the head's are, and labels of all kinds."""
    logits = torch.randn(N, A, num_classes, H, W) * 3
    logits = logits.to(dtype).permute(0, 3, 4, 1, 2)
    if layout == "classes_innermost":  # channels-last
        logits = logits.contiguous()
    return logits, torch.randint(-1, num_classes + 1, (N, H, W, A))


def assert_equals_pytorch(result, inputs, rtol=5e-6, atol=1e-9):
    """That loss and gradient are those of PyTorch's pass in float64 on the same numbers."""
    logits, *others = inputs
    labels = others[0]
    loss, grad = result
    right_loss, right_grad = pytorch_pass(logits.double(), *others)
    assert loss.dtype == torch.float32
    assert grad.dtype == logits.dtype
    assert grad.stride() == logits.stride()
    torch.testing.assert_close(loss.double(), right_loss, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad.double(), right_grad, rtol=rtol, atol=atol)
    assert (grad[labels < 0] == 0).all()


ALPHAS = {"none": lambda k: None, "one": lambda k: 0.25, "per_class": lambda k: torch.rand(k)}


SOFT_FORMULAS = {
    "cross_entropy": QualityFocalFormula(0.0),
    "quality_1": QualityFocalFormula(1.0),
    "quality_1.5": QualityFocalFormula(1.5),
    "quality": QualityFocalFormula(2.0),
    "varifocal": VarifocalFormula(2.0, alpha=0.75),
}


@pytest.mark.parametrize("formula", SOFT_FORMULAS.values(), ids=SOFT_FORMULAS)
@pytest.mark.parametrize("layout", ["pixels_innermost", "classes_innermost"])
def test_soft_targets(interpreted, layout, formula):
    logits, labels = make_batch(80, layout)
    qualities = torch.rand(labels.shape)
    qualities[..., 0] = 0  # for the varifocal loss, background
    inputs = logits, labels, formula, 0.25, 1.0, qualities
    # The slope is about y - p, where both are rounded.
    assert_equals_pytorch(interpreted(*inputs), inputs, atol=torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("layout", ["pixels_innermost", "classes_innermost"])
def test_formula(interpreted, layout, alpha, gamma):
    inputs = *make_batch(80, layout), gamma, ALPHAS[alpha](80)  # 7,200 entries: 7.03 blocks
    assert_equals_pytorch(interpreted(*inputs), inputs)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("layout", ["pixels_innermost", "classes_innermost"])
def test_one_class(interpreted, layout, alpha):
    inputs = *make_batch(1, layout), 2.0, ALPHAS[alpha](1)
    assert_equals_pytorch(interpreted(*inputs), inputs)


def test_without_a_gradient(interpreted):
    inputs = *make_batch(7), 2.0, 0.25
    loss, grad = interpreted(*inputs, None)
    assert grad is None
    assert torch.equal(loss, interpreted(*inputs)[0])


# The smallest float16 is 2**-24. The interpreter cuts bfloat16 where a GPU rounds it.
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.bfloat16, 2**-7, 1e-9), (torch.float16, 2**-11, 2**-24)]
)
@pytest.mark.parametrize("layout", ["pixels_innermost", "classes_innermost"])
def test_16_bit(interpreted, layout, dtype, rtol, atol):
    """The arithmetic is float32; only the gradient is of the logits' type."""
    inputs = *make_batch(20, layout, dtype), 2.0, 0.25
    assert_equals_pytorch(interpreted(*inputs), inputs, rtol + 5e-6, atol)


def test_float16_gradients_under_a_loss_scale(interpreted):
    """The scale 2**16 does not fit float16; gradients of easy background, 3 p^3, are below it."""
    logits, labels = make_batch(20)
    inputs = (logits / 3 - 6).half(), labels, 2.0, 0.25
    _, grad = interpreted(*inputs, 2.0**16)
    _, right_grad = pytorch_pass(inputs[0].float(), *inputs[1:])
    torch.testing.assert_close(grad.float() / 2**16, right_grad, rtol=2e-3, atol=1e-10)


@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (1, 4, 0, 2, 3), (3, 0, 4, 1, 2)])
def test_any_order_of_dimensions_in_memory(interpreted, order):
    logits, labels = make_batch(7)
    inverse = sorted(range(5), key=order.__getitem__)
    inputs = logits.permute(order).contiguous().permute(inverse), labels, 2.0, torch.rand(7)
    assert_equals_pytorch(interpreted(*inputs), inputs)


def test_runs_longer_than_a_block(interpreted):
    logits, labels = torch.randn(3, 1100).t(), torch.randint(-1, 4, (1100,))
    inputs = logits, labels, 2.0, torch.rand(3)
    assert_equals_pytorch(interpreted(*inputs), inputs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_small_losses_keep_their_digits(interpreted, gamma):
    """Where log(1 + exp(x)) in float32 is 0, or rounds exp(x) to a multiple of 2^-24."""
    logits = torch.linspace(-20, 20, 400).view(-1, 1)
    for label in (0, 1):
        inputs = logits, torch.full((400,), label), gamma, None
        loss, grad = interpreted(*inputs)
        right_loss, right_grad = pytorch_pass(logits.double(), *inputs[1:])
        torch.testing.assert_close(loss.double(), right_loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(grad.double(), right_grad, rtol=1e-5, atol=2**-99)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_extreme_logits(interpreted, gamma):
    """A sure mistake costs its logit and has slope 1, a sure truth costs nothing."""
    logits = torch.tensor([[-1e4, 1e4, 1e4, -1e4]])
    loss, grad = interpreted(logits, torch.tensor([2]), gamma, None)
    assert loss.item() == 1e4
    assert grad.tolist() == [[0, 1, 0, 0]]
    loss, grad = interpreted(logits, torch.tensor([0]), gamma, None)
    assert loss.item() == 3e4
    assert grad.tolist() == [[-1, 1, 1, 0]]


def test_ignored_anchors_hide_what_is_not_a_number(interpreted):
    logits = torch.tensor([[math.nan, math.inf], [0.0, 0.0]])
    loss, grad = interpreted(logits, torch.tensor([-1, 2]), 0.0, None)
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert grad.tolist() == [[0, 0], [0.5, 0.5]]


def test_tensors_that_are_too_small_are_refused(interpreted):
    logits, labels = make_batch(7)
    with pytest.raises(UserError, match="labels have shape"):
        interpreted(logits, labels[:, :2], 2.0, None)
    with pytest.raises(UserError, match="alpha has shape"):
        interpreted(logits, labels, 2.0, torch.rand(6))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_and_size(interpreted, dtype):
    logits, _ = make_batch(7)
    labels = torch.randint(0, 9, (N, H, W, A))
    if dtype == torch.int64:  # 2^32 + 3 is not class 3
        labels[0, 0] = torch.tensor([2**32 + 3, -(2**32) + 3, -5])
    loss, grad = interpreted(logits, labels.to(dtype), 2.0, 0.25)
    right_loss, right_grad = pytorch_pass(logits, labels.clamp(-1, 7), 2.0, 0.25)
    torch.testing.assert_close(loss, right_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, right_grad, rtol=5e-6, atol=1e-9)


def test_gradients_are_normal_numbers_or_0(interpreted):
    logits = torch.linspace(-60, 0, 4001).view(-1, 1)
    _, grad = interpreted(logits, torch.ones(4001, dtype=torch.int64), 2.0, 0.25)
    assert (grad == 0).any()
    assert grad[grad != 0].min() >= torch.finfo(torch.float32).tiny


def test_numbers_are_compared_with_pytorchs(interpreted):
    assert interpreted(1.0, function=comparison) is None
    assert "the kernel gives the loss" in interpreted(1.02, function=comparison)
    assert "the kernel gives the loss" in interpreted(math.nan, function=comparison)


def test_empty_level(interpreted):
    logits, labels = torch.zeros(2, 0, 5, 3, 80), torch.zeros(2, 0, 5, 3, dtype=torch.int64)
    loss, grad = interpreted(logits, labels, 2.0, 0.25)
    assert loss.item() == 0
    assert grad.shape == logits.shape


@pytest.mark.parametrize(
    ("dtype", "per_class", "targets"),
    [
        ("fp32", False, "hard"),
        ("fp16", False, "hard"),
        ("bf16", False, "hard"),
        ("bf16", True, "hard"),
        ("fp32", False, "quality"),
        ("bf16", False, "varifocal"),
    ],
)
def test_compiles_without_a_gpu(tmp_path, monkeypatch, dtype, per_class, targets):
    """More than 2^31 entries, types that the interpreter does not check, and wide accesses."""
    triton = pytest.importorskip("triton", minversion="3.2", reason=NEEDS_TRITON)
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton does not compile for CUDA")
    from retinanet_plugin.losses.focal_triton import _focal_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = dict.fromkeys(_focal_kernel.arg_names, "fp32")
    signature.update(logits=f"*{dtype}", grad=f"*{dtype}", labels="*i64", alphas="*fp32")
    signature.update(qualities="*fp32")
    signature.update(block_losses="*fp32", num_entries="i64", run_length="i32")
    constants = {"NUM_CLASSES": 80, "PER_CLASS": per_class, "TARGETS": targets}
    constants.update(WITH_GRAD=True, BLOCK_SIZE=1024)
    signature.update(dict.fromkeys(constants, "constexpr"))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(7)}  # as tensors' memory is
    source = triton.compiler.ASTSource(_focal_kernel, signature, constants, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", 80, 32)
    ptx = triton.compile(source, target=target, options={"num_warps": 8}).asm["ptx"]
    wide = {"fp32": "v4", "fp16": "v2", "bf16": "v2"}[dtype]  # the four entries of a thread
    assert f"ld.global.{wide}.b32" in ptx
    assert f"st.global.{wide}.b32" in ptx
    assert dtype == "fp32" or "cvt.rn." in ptx  # rounds to nearest


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float32, 2e-5), (torch.float16, 2**-11 + 2e-5), (torch.bfloat16, 2**-8 + 2e-5)],
)
@pytest.mark.parametrize("layout", ["pixels_innermost", "classes_innermost"])
def test_on_a_gpu_without_waiting(layout, dtype, rtol):
    logits, labels = (x.cuda() for x in make_batch(80, layout, dtype))
    inputs = logits, labels, 2.0, torch.rand(80, device="cuda")
    pytorch_pass(*inputs)  # tries the kernel, for which the GPU is waited for
    assert focal_kernel.focal_kernel([logits], dense_sigmoid._pytorch_loss) is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = pytorch_pass(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equals_pytorch(result, inputs, rtol, 2**-24)
    assert torch.equal(result[0], pytorch_pass(*inputs)[0])


def gpu_logits(dtype=torch.float32):
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda:0"))


def asked_for(monkeypatch, loss):
    """Whether a kernel is asked for in the pass of ``loss``."""
    asked = []
    monkeypatch.setattr(dense_sigmoid, "focal_kernel", lambda *arguments: asked.append(arguments))
    loss([torch.zeros(1, 1)], [torch.zeros(1, dtype=torch.int64)], None)
    return len(asked) > 0


def test_only_the_focal_formula_takes_the_kernel(monkeypatch):
    class OwnLoss(FocalLoss):
        def loss_and_slope(self, error_logits):
            return FocalFormula(self.gamma)(error_logits)

    assert asked_for(monkeypatch, losses.CrossEntropyLoss())
    assert asked_for(monkeypatch, FocalLoss(alpha=0.25, gamma=2.0))
    assert not asked_for(monkeypatch, OwnLoss(alpha=0.25, gamma=2.0))
    assert not asked_for(monkeypatch, FocalStarLoss(alpha=0.25, gamma=2.0, beta=0.0))


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "BalancedCrossEntropyLoss", "FocalLoss"])
def test_a_key_turns_the_kernel_off(monkeypatch, name):
    cfg = load_config("")
    assert asked_for(monkeypatch, losses.CLS_LOSS_REGISTRY.get(name)(cfg))
    cfg.MODEL.RETINANET.TRITON_LOSS = False
    assert not asked_for(monkeypatch, losses.CLS_LOSS_REGISTRY.get(name)(cfg))


def test_the_kernel_is_for_cuda_up_to_float32(monkeypatch):
    kernel = SimpleNamespace(can_run=lambda pred_logits: True)
    monkeypatch.setattr(focal_kernel, "_tried_kernel", lambda *arguments: kernel)
    assert focal_kernel.focal_kernel([gpu_logits()], None) is kernel
    assert focal_kernel.focal_kernel([gpu_logits(), gpu_logits(torch.float64)], None) is None
    assert focal_kernel.focal_kernel([torch.zeros(1, 1)], None) is None


def test_memory_with_gaps_is_left_to_pytorch():
    pytest.importorskip("triton", minversion="3.2", reason=NEEDS_TRITON)
    from retinanet_plugin.losses import focal_triton

    logits, _ = make_batch(4)
    assert focal_triton.can_run(logits)
    assert not focal_triton.can_run(logits[:, :, 1:])
    assert not focal_triton.can_run(logits[..., :1].expand(logits.shape))


@pytest.fixture
def no_earlier_trial(monkeypatch):
    """As if this machine had a GPU, and the kernel had not been tried yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    caches = focal_kernel._tried_kernel, triton_kernels._warn_once
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_without_triton_a_warning_and_pytorch(monkeypatch, caplog, no_earlier_trial):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "retinanet_plugin.losses.focal_triton", raising=False)
    monkeypatch.delattr(losses, "focal_triton", raising=False)
    for dtype in (torch.float32, torch.float32, torch.float16):
        assert focal_kernel.focal_kernel([gpu_logits(dtype)], None) is None
    (record,) = caplog.records
    assert "PyTorch's operations" in record.message
    assert "triton" in record.message


def test_other_numbers_are_a_warning_and_pytorch(monkeypatch, caplog, no_earlier_trial):
    pytest.importorskip("triton", minversion="3.2", reason=NEEDS_TRITON)

    def disagree(*arguments):
        raise ArithmeticError("the kernel gives the loss 1, not 2")

    monkeypatch.setattr(focal_kernel, "_compare", disagree)
    for _ in range(2):
        assert focal_kernel.focal_kernel([gpu_logits()], None) is None
    (record,) = caplog.records
    assert "the loss 1, not 2" in record.message
