"""The focal loss's Triton kernel: in Triton's interpreter on the CPU, and compiled for a GPU.

The interpreter runs the kernel's formula and indices, with NumPy in place of the GPU.
"""

import math
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from retinanet_plugin import losses
from retinanet_plugin.losses import FocalLoss, FocalStarLoss, dense, dense_sigmoid_loss
from retinanet_plugin.losses.terms import FocalTerms

N, H, W, A = 2, 3, 5, 3
NEEDS_TRITON = "no Triton 3.2 or later: PyTorch's CUDA builds for Linux bring it"


@pytest.fixture(scope="module")
def interpreted():
    """:func:`kernel_pass` in a process of its own: Triton reads the variable as it is imported."""
    pytest.importorskip("triton", minversion="3.2", reason=NEEDS_TRITON)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(int).result()  # starts the process
        yield lambda *args: pool.submit(kernel_pass, *args).result()


def kernel_pass(logits, labels, gamma, alpha, loss_scale=1.0):
    """As :func:`pytorch_pass`, from the kernel; for a process of its own, which it changes."""
    from retinanet_plugin.losses import triton_focal

    assert triton_focal.can_run(logits)
    dense._kernel_for = lambda pred_logits, terms: triton_focal
    return pytorch_pass(logits, labels, gamma, alpha, loss_scale)


def pytorch_pass(logits, labels, gamma, alpha, loss_scale=1.0):
    """The loss, and the gradient of it times ``loss_scale`` unless that is None."""
    logits.requires_grad_(loss_scale is not None)
    loss = dense_sigmoid_loss(logits, labels, FocalTerms(gamma), alpha)
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
    logits, labels, gamma, alpha = inputs
    loss, grad = result
    right_loss, right_grad = pytorch_pass(logits.double(), labels, gamma, alpha)
    assert loss.dtype == torch.float32
    assert grad.dtype == logits.dtype
    assert grad.stride() == logits.stride()
    torch.testing.assert_close(loss.double(), right_loss, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad.double(), right_grad, rtol=rtol, atol=atol)
    assert (grad[labels < 0] == 0).all()


ALPHAS = {"none": lambda k: None, "one": lambda k: 0.25, "per_class": lambda k: torch.rand(k)}


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
        torch.testing.assert_close(grad.double(), right_grad, rtol=1e-5, atol=1e-37)


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
    with pytest.raises(RuntimeError, match="expand"):
        interpreted(logits, labels[:, :2], 2.0, None)
    with pytest.raises(RuntimeError, match="expand"):
        interpreted(logits, labels, 2.0, torch.rand(6))


def test_empty_level(interpreted):
    logits, labels = torch.zeros(2, 0, 5, 3, 80), torch.zeros(2, 0, 5, 3, dtype=torch.int64)
    loss, grad = interpreted(logits, labels, 2.0, 0.25)
    assert loss.item() == 0
    assert grad.shape == logits.shape


@pytest.mark.parametrize(
    ("dtype", "per_class"), [("fp32", False), ("fp16", False), ("bf16", False), ("bf16", True)]
)
def test_compiles_without_a_gpu(tmp_path, monkeypatch, dtype, per_class):
    """More than 2^31 entries, types that the interpreter does not check, and wide accesses."""
    triton = pytest.importorskip("triton", minversion="3.2", reason=NEEDS_TRITON)
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton does not compile for CUDA")
    from retinanet_plugin.losses.triton_focal import _focal_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = dict.fromkeys(_focal_kernel.arg_names, "fp32")
    signature.update(logits=f"*{dtype}", grad=f"*{dtype}", labels="*i32", alphas="*fp32")
    signature.update(block_losses="*fp32", num_entries="i64", run_length="i32")
    constants = {"NUM_CLASSES": 80, "PER_CLASS": per_class, "WITH_GRAD": True, "BLOCK_SIZE": 1024}
    signature.update(dict.fromkeys(constants, "constexpr"))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(6)}  # as tensors' memory is
    source = triton.compiler.ASTSource(_focal_kernel, signature, constants, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", 80, 32)
    ptx = triton.compile(source, target=target, options={"num_warps": 8}).asm["ptx"]
    wide = {"fp32": "v4", "fp16": "v2", "bf16": "v2"}[dtype]  # the four entries of a thread
    assert f"ld.global.{wide}.b32" in ptx
    assert f"st.global.{wide}.b32" in ptx
    assert dtype == "fp32" or "cvt.rn." in ptx  # rounds to nearest


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float32, 2e-5), (torch.float16, 2**-11 + 2e-5), (torch.bfloat16, 2**-8 + 2e-5)],
)
@pytest.mark.parametrize("layout", ["pixels_innermost", "classes_innermost"])
def test_on_a_gpu_without_waiting(layout, dtype, rtol):
    logits, labels = (x.cuda() for x in make_batch(80, layout, dtype))
    inputs = logits, labels, 2.0, torch.rand(80, device="cuda")
    assert dense._kernel_for(logits, FocalTerms(2.0)) is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = pytorch_pass(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equals_pytorch(result, inputs, rtol, 2**-24)
    assert torch.equal(result[0], pytorch_pass(*inputs)[0])


def gpu_logits(dtype=torch.float32):
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda:0"))


def test_only_focal_terms_on_a_gpu_take_the_kernel(monkeypatch):
    class OwnLoss(FocalLoss):
        def terms(self, error_logits):
            return FocalTerms(self.gamma)(error_logits)

    kernel = SimpleNamespace(can_run=lambda pred_logits: True)
    monkeypatch.setattr(dense, "_triton_focal", lambda device, dtype: kernel)
    taken = [losses.CrossEntropyLoss(), FocalLoss(alpha=0.25, gamma=2.0)]
    not_taken = [OwnLoss(alpha=0.25, gamma=2.0), FocalStarLoss(alpha=0.25, gamma=2.0, beta=0.0)]
    assert [dense._kernel_for(gpu_logits(), loss.terms) for loss in taken] == [kernel, kernel]
    assert [dense._kernel_for(gpu_logits(), loss.terms) for loss in not_taken] == [None, None]
    assert dense._kernel_for(gpu_logits(torch.float64), FocalTerms(2.0)) is None
    assert dense._kernel_for(torch.zeros(1, 1), FocalTerms(2.0)) is None


def test_memory_with_gaps_is_left_to_pytorch():
    pytest.importorskip("triton", minversion="3.2", reason=NEEDS_TRITON)
    from retinanet_plugin.losses import triton_focal

    logits, _ = make_batch(4)
    assert triton_focal.can_run(logits)
    assert not triton_focal.can_run(logits[:, :, 1:])
    assert not triton_focal.can_run(logits[..., :1].expand(logits.shape))


def test_without_triton_a_warning_and_pytorch(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "retinanet_plugin.losses.triton_focal", raising=False)
    monkeypatch.delattr(losses, "triton_focal", raising=False)
    dense._triton_focal.cache_clear()
    assert dense._kernel_for(gpu_logits(), FocalTerms(2.0)) is None
    assert dense._kernel_for(gpu_logits(), FocalTerms(2.0)) is None
    dense._triton_focal.cache_clear()
    (record,) = caplog.records
    assert "PyTorch's operations" in record.message
    assert "triton" in record.message
