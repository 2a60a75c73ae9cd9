"""How backbone and head are run: precision, layout, compilation; all keep the names of weights."""

import copy
import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    assert_equal_detections,
    assert_equal_training,
    build_pair,
    detect,
    make_batch,
    train_step,
)
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from retinanet_plugin import UserError
from retinanet_plugin.config import check_config
from retinanet_plugin.execution import Execution, bfloat16
from retinanet_plugin.execution.cpu_conv import context

SWITCHES = ("BFLOAT16", "CHANNELS_LAST", "COMPILE")


def switched(cfg, *keys):
    cfg = cfg.clone()
    for key in keys:
        cfg.MODEL.RETINANET[key] = True
    return cfg


def build_switched(cfg, *keys):
    """A model without and one with the switches on, which has the weights of the first."""
    model, other = build_model(cfg), build_model(switched(cfg, *keys))
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.02)
    other.load_state_dict(model.state_dict())
    return model, other


def predict(model, images):
    """Head outputs of images (N, 3, H, W)."""
    with model.execution.context(images, model.backbone, model.head) as pixels:
        features = model.backbone(pixels)
        return model.head([features[name] for name in model.in_features])


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile makes in this test; they run as they are, which is fast."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kwargs: compile(self, backend=backend, **kwargs)
    )
    return graphs


def test_switches_are_off_but_fast_convolutions_and_leave_the_names_of_weights(small_cfg):
    off, on = build_model(small_cfg), build_model(switched(small_cfg, *SWITCHES))
    assert off.execution == Execution()
    assert on.execution == Execution(bfloat16=True, channels_last=True, compile=True)
    assert str(off.execution) in str(off)
    off, on = off.state_dict(), on.state_dict()
    assert list(on) == list(off)
    assert {name: x.dtype for name, x in on.items()} == {name: x.dtype for name, x in off.items()}


@pytest.mark.parametrize("loss", ["smooth_l1", "giou"])
def test_channels_last_trains_and_detects_as_stock(loss, small_cfg):
    cfg = switched(small_cfg, "CHANNELS_LAST")
    cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = loss
    model, stock = build_pair(cfg)
    for each in (model, stock):  # where many scores are 1, rounding chooses among equals
        each.head.cls_score.weight.data.mul_(0.002)
    batch = make_batch(5)
    with EventStorage():
        assert_equal_training(train_step(model, batch), train_step(stock, batch))
    for each in (model, stock):
        each.head.cls_score.bias.data.fill_(-1.0)
    assert_equal_detections(detect(model, batch), detect(stock, batch))


def test_channels_last_copies_no_head_output(small_cfg):
    model = build_model(switched(small_cfg, "CHANNELS_LAST"))
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        weights = [p for p in each.parameters() if p.dim() == 4]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
        assert predict(each, torch.rand(2, 3, 96, 128))[0][0].permute(0, 2, 3, 1).is_contiguous()


def test_without_fast_convolutions_the_same_losses_to_the_last_bit(small_cfg, fast_cpu_conv):
    model = build_model(small_cfg)
    small_cfg.MODEL.RETINANET.FAST_CPU_CONV = False
    other = build_model(small_cfg)
    other.load_state_dict(model.state_dict())
    batch = make_batch(5)
    found = train_step(model, batch)
    num_calls = len(fast_cpu_conv)
    assert num_calls > 0
    expected = train_step(other, batch)
    assert len(fast_cpu_conv) == num_calls
    assert found[0] == expected[0]
    assert_equal_training(found, expected)


@pytest.mark.parametrize("gains", [True, False])
def test_fast_convolutions_are_for_processors_that_gain(
    gains, small_cfg, fast_cpu_conv, monkeypatch
):
    assert context.PROCESSOR_GAINS
    monkeypatch.setattr(context, "PROCESSOR_GAINS", gains)
    with torch.no_grad():
        predict(build_model(small_cfg).eval(), torch.rand(1, 3, 64, 64))
    assert bool(fast_cpu_conv) == gains


@pytest.fixture
def has_bfloat16(monkeypatch):
    """A processor with instructions for it, whatever this one has."""
    monkeypatch.setattr(bfloat16, "PROCESSOR_HAS_BFLOAT16", True)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags: avx2 amx_bf16 amx_tile\n", True),
        ("flags: fpu avx2 avx512f avx512_vnni\nvmx flags: vnmi\n", False),
        ("flags: fpu avx2\n", False),
        ("", True),  # of another system: as it was asked for
    ],
)
def test_processors_with_bfloat16(cpuinfo, expected):
    assert bfloat16.processor_has_bfloat16(cpuinfo) is expected


@pytest.mark.parametrize(("major", "expected"), [(7, False), (8, True), (9, True)])
def test_gpus_with_bfloat16(major, expected, monkeypatch):
    properties = SimpleNamespace(major=major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert bfloat16.has_bfloat16(torch.device("cuda", 1)) is expected


def test_a_processor_without_bfloat16_computes_in_float32(small_cfg, monkeypatch, caplog):
    monkeypatch.setattr(bfloat16, "PROCESSOR_HAS_BFLOAT16", False)
    with caplog.at_level(logging.INFO, "detectron2"):
        exact, model = build_switched(small_cfg, "BFLOAT16")
    assert "computes in float32, in spite of MODEL.RETINANET.BFLOAT16" in caplog.text
    batch = make_batch(5)
    assert_equal_training(train_step(model, batch), train_step(exact, batch))
    images = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):  # a caller's stays
        assert predict(model, images)[0][0].dtype == torch.bfloat16
    assert predict(model, images)[0][0].dtype == torch.float32


@pytest.mark.usefixtures("has_bfloat16")
def test_bfloat16_is_autocast_of_stocks_backbone_and_head(small_cfg):
    model, stock = build_pair(switched(small_cfg, "BFLOAT16"))
    images = torch.rand(2, 3, 96, 128)
    found = predict(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        features = stock.backbone(images)
        expected = stock.head([features[name] for name in model.in_features])
    for levels, wanted_levels in zip(found, expected):
        for level, wanted in zip(levels, wanted_levels):
            assert level.dtype == torch.bfloat16
            assert torch.equal(level, wanted)


@pytest.mark.usefixtures("has_bfloat16")
def test_bfloat16_trains_as_float32_does(small_cfg):
    exact, model = build_switched(small_cfg, "BFLOAT16")
    batch = make_batch(5)
    losses, grads = train_step(model, batch)
    expected, expected_grads = train_step(exact, batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # One rounding to bfloat16 is off by up to 2^-9 = 0.2 %. Over four seeds: 1.0 % at most.
        torch.testing.assert_close(loss, expected[name], rtol=0.02, atol=0)
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        grad, wanted = grad.double().flatten(), expected_grads[name].double().flatten()
        # Over four seeds: 0.98 at least, in the stem, whose gradient was rounded most often.
        assert grad @ wanted > 0.95 * grad.norm() * wanted.norm(), name


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("pyramid", ["p3p7", "linear_p7"])
def test_bfloat16_learns_from_narrow_images_on_a_cpu(small_cfg, width, pyramid):
    """PyTorch 2.14 leaves most of the gradient of P6's or P7's weight there as the memory was."""
    small_cfg.MODEL.BACKBONE.NAME = f"build_fpn_{pyramid}_backbone"
    exact, model = (x.backbone.top_block for x in build_switched(small_cfg, "BFLOAT16"))
    source = torch.randn(2, model.p6.in_channels, 3, width // 32)
    for _ in range(5):
        for block, enabled in ((model, True), (exact, False)):
            block.zero_grad()
            unwritten = [torch.full_like(p, float("nan")).bfloat16() for p in block.parameters()]
            del unwritten
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                sum((x.float() ** 2).sum() for x in block(source)).backward()
        for p, wanted in zip(model.parameters(), exact.parameters()):
            scale = wanted.grad.abs().max().item()
            torch.testing.assert_close(p.grad, wanted.grad, rtol=0, atol=0.02 * scale)


@pytest.mark.usefixtures("has_bfloat16")
def test_bfloat16_scores_as_float32_does(small_cfg):
    exact, model = build_switched(small_cfg, "BFLOAT16")
    batch = make_batch(5)
    for found, wanted in zip(detect(model, batch), detect(exact, batch)):
        assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
        # Over four seeds, the ten best: 0.01 at most.
        best = slice(min(len(found), len(wanted), 10))
        assert best.stop == 10
        torch.testing.assert_close(found.scores[best], wanted.scores[best], rtol=0, atol=0.03)


@pytest.mark.usefixtures("has_bfloat16")
@pytest.mark.parametrize("grad", [True, False])
def test_bfloat16_casts_a_weight_of_the_head_once_for_all_levels(small_cfg, grad):
    model = build_model(switched(small_cfg, "BFLOAT16"))
    weight, casts = model.head.cls_score.weight, []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op is torch.ops.aten._to_copy.default and args[0] is weight:
                casts.append(kwargs["dtype"])
            return op(*args, **(kwargs or {}))

    with torch.set_grad_enabled(grad), Casts():
        predict(model, torch.rand(1, 3, 64, 64))
    assert casts == [torch.bfloat16]


def test_two_precisions_are_refused(small_cfg):
    cfg = switched(small_cfg, "BFLOAT16")
    check_config(cfg)
    cfg.SOLVER.AMP.ENABLED = True
    with pytest.raises(UserError, match=r"RETINANET\.BFLOAT16 .* SOLVER\.AMP\.ENABLED .* to False"):
        check_config(cfg)


def test_compiled_equals_uncompiled_exactly(small_cfg, graphs):
    small_cfg.MODEL.RETINANET.FAST_CPU_CONV = False  # compiled code does not take them either
    eager, model = build_switched(small_cfg, "COMPILE")
    batch = make_batch(5)
    losses, grads = train_step(model, batch)
    expected, expected_grads = train_step(eager, batch)
    assert losses == expected
    assert all(torch.equal(grad, expected_grads[name]) for name, grad in grads.items())
    for found, wanted in zip(detect(model, batch), detect(eager, batch)):
        assert torch.equal(found.scores, wanted.scores)
        assert torch.equal(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
    assert len(graphs) == 4  # backbone and head, with gradients and without, each of one piece


# A square first: its equal sides cost a graph of their own. In much smaller images, levels of a
# single row, and the CPU's kernels for small inputs, would cost further graphs.
SIZES = [(320, 320), (320, 352), (544, 320), (352, 544), (384, 448), (416, 416), (320, 544),
         (480, 384), (512, 352), (544, 544)]  # fmt: skip


def test_ten_image_sizes_take_two_graphs_of_a_module_at_most(small_cfg, graphs):
    model = build_model(switched(small_cfg, "COMPILE"))
    for training, num_images in ((True, 2), (False, 1)):
        before = len(graphs)
        with torch.set_grad_enabled(training):
            for size in SIZES:
                predict(model.train(training), torch.rand(num_images, 3, *size))
        assert 2 <= len(graphs) - before <= 4


def test_distributed_training_compiles_one_graph_of_a_module_for_two_heights(small_cfg, graphs):
    model = build_model(switched(small_cfg, "COMPILE"))
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        distributed = DistributedDataParallel(model, broadcast_buffers=False)
        for size in SIZES[1:3]:
            sum(distributed(make_batch(5, sizes=(size, size))).values()).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(graphs) == 2


def test_compiled_models_can_be_copied_pickled_and_moved(small_cfg, graphs):
    model = build_model(switched(small_cfg, "COMPILE")).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, _ = predict(model, images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            num_graphs = len(graphs)
            pred_logits, _ = predict(other, images)
            assert torch.equal(pred_logits[0], expected[0])
            assert other.backbone._compiled_call_impl is not None
            assert len(graphs) >= num_graphs
        pred_logits, _ = predict(model.to(torch.float64), images.double())
    torch.testing.assert_close(pred_logits[0].float(), expected[0])
    assert graphs


def test_switches_act_in_detectron2s_predictor(small_cfg, graphs):
    small_cfg.INPUT.MIN_SIZE_TEST = 64
    predictor = DefaultPredictor(switched(small_cfg, *SWITCHES))
    outputs = []
    predictor.model.head.register_forward_hook(lambda *args: outputs.append(args[-1]))
    instances = predictor(np.zeros((64, 64, 3), np.uint8))["instances"]
    assert instances.scores.dtype == torch.float32
    assert len(graphs) >= 2
    for level in (level for part in outputs[0] for level in part):
        assert level.dtype == torch.bfloat16
        assert level.is_contiguous(memory_format=torch.channels_last)
