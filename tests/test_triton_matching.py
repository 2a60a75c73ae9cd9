"""The search of the best boxes by Triton kernels: interpreted, compiled, and chosen."""

import numpy
import pytest
import torch
from conftest import NEEDS_TRITON

from retinanet_plugin import triton_kernels
from retinanet_plugin.matching import iou_matrix

N, R, M = 2, 700, 12


def some_boxes(generator, *shape):
    corners = torch.rand(*shape, 2, generator=generator) * 100
    return torch.cat([corners, corners + torch.rand(*shape, 2, generator=generator) * 60], dim=-1)


def make_batch(seed):
    """Anchors (R, 4), some alike; boxes (N, M, 4), some alike, out of reach or without a size."""
    generator = torch.Generator().manual_seed(seed)
    anchors, boxes = some_boxes(generator, R), some_boxes(generator, N, M)
    anchors[600:650] = anchors[:50]
    boxes[:, 3], boxes[0, 2] = boxes[:, 1], anchors[7]  # two of the same IoUs, and one of IoU 1
    boxes[1, 4], boxes[0, 5] = 1e6, boxes[0, 5, [0, 1, 0, 1]]
    is_box = torch.arange(M) < torch.tensor([[M - 1], [M // 2]])
    boxes[~is_box] = 0
    return anchors, boxes, is_box


def by_kernel(anchors, boxes, is_box):
    from retinanet_plugin.matching import iou_triton

    return iou_triton.search(anchors, boxes, is_box)


def by_pytorch(anchors, boxes, is_box):
    best, claims = iou_matrix.matrix_search(anchors, boxes, is_box, max_bytes=2**20)
    return (best.value, best.box), (claims.value, claims.box)


@pytest.fixture
def interpreted(triton_interpreter):
    if numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
        reason = "Triton 3.6 interprets no loop with NumPy 2.4, which has no int() of an array"
        pytest.importorskip("triton", minversion="3.7", reason=reason)
    return triton_interpreter


@pytest.mark.parametrize("seed", range(3))
def test_equals_pytorch_to_the_last_bit(interpreted, seed):
    batch = make_batch(seed)
    for found, right in zip(interpreted(by_kernel, *batch), by_pytorch(*batch)):
        assert torch.equal(found[0], right[0])
        assert torch.equal(found[1], right[1])


def compare(factor):
    """Run the one-time comparison with anchors ``factor`` as large as they should be."""
    from retinanet_plugin.matching import iou_triton

    class Kernel:
        def search(self, anchors, *others):
            return iou_triton.search(anchors * factor, *others)

    iou_matrix._compare(Kernel(), "cpu")


def test_the_comparison_sees_one_bit(interpreted):
    interpreted(compare, 1.0)
    with pytest.raises(ArithmeticError, match="does not give PyTorch's IoUs"):
        interpreted(compare, 1.0 + 2**-22)


@pytest.mark.parametrize("kernel", ["_best_kernel", "_claims_kernel"])
def test_compiles_without_a_gpu_and_fuses_nothing(tmp_path, monkeypatch, kernel):
    triton = pytest.importorskip("triton", minversion="3.2", reason=NEEDS_TRITON)
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton does not compile for CUDA")
    from retinanet_plugin.matching import iou_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(iou_triton, kernel)
    types = {"is_box": "*i1", "box_best": "*i32", "num_anchors": "i32", "num_boxes": "i32"}
    types.update(best_box="*i64", claim_box="*i64", BLOCK_SIZE="constexpr")
    signature = {name: types.get(name, "*fp32") for name in function.arg_names}
    source = triton.compiler.ASTSource(function, signature, {"BLOCK_SIZE": 256})
    target = triton.backends.compiler.GPUTarget("cuda", 80, 32)
    ptx = triton.compile(source, target=target, options=iou_triton._AS_PYTORCH_ROUNDS).asm["ptx"]
    assert "div.rn.f32" in ptx
    assert "fma." not in ptx


def test_only_plain_float32_on_cuda_takes_the_kernel(monkeypatch):
    asked = []
    monkeypatch.setattr(iou_matrix, "_tried_kernel", asked.append)
    anchors, boxes, is_box = make_batch(0)
    by_pytorch(anchors, boxes, is_box)
    by_pytorch(anchors.double(), boxes.double(), is_box)
    assert asked == []


def test_without_triton_a_warning_and_pytorch(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for _ in range(2):
        assert (
            triton_kernels.working_kernel("matching", "matching.no_kernel", "cuda:0", None) is None
        )
    (record,) = caplog.records
    assert "PyTorch's operations" in record.message
    triton_kernels._warn_once.cache_clear()


@pytest.mark.gpu
def test_on_a_gpu_as_pytorch_does_and_without_waiting():
    anchors, boxes, is_box = (x.cuda() for x in make_batch(3))
    anchors = torch.cat([anchors + shift for shift in range(200)])  # more than a block of threads
    assert iou_matrix._kernel(anchors, boxes) is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = by_kernel(anchors, boxes, is_box)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    right = iou_matrix._search_in_parts(anchors, boxes, is_box, 2**24)
    for (value, box), expected in zip(found, right):
        assert torch.equal(value, expected.value)
        assert torch.equal(box, expected.box)
