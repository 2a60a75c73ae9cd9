"""Switches of precision, memory layout and compilation: what they change and what they must not."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import test_parity
import torch
from conftest import make_batch
from detectron2.engine import DefaultPredictor
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from retinanet_plugin import UserError, execution
from retinanet_plugin.config import check_config
from retinanet_plugin.execution import winograd
from retinanet_plugin.execution.convolutions import FastConvolutions
from retinanet_plugin.execution.frozen_bn import (
    FastNormConv2d,
    FoldedConv2d,
    InPlaceNormConv2d,
    join_frozen_batch_norms,
)

SWITCHES = ("BFLOAT16", "CHANNELS_LAST", "FOLD_FROZEN_BN", "COMPILE")


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


def train_step(model, batch):
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses, test_parity.gradients(model)


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile makes in this test; they run as they are, which is fast."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    execution._compiled_network.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield graphs
    execution._compiled_network.cache_clear()


@pytest.fixture
def fast_small(monkeypatch):
    """Convolutions of the small models, too small to be faster by it, take Winograd's algorithm."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


def test_switches_are_off_but_fast_convolutions_and_leave_the_names_of_weights(small_cfg):
    off, on = build_model(small_cfg), build_model(switched(small_cfg, *SWITCHES))
    assert not any(small_cfg.MODEL.RETINANET[key] for key in SWITCHES)
    assert off.execution.extra_repr().count("True") == small_cfg.MODEL.RETINANET.FAST_CPU_CONV == 1
    assert "False" not in on.execution.extra_repr()
    off, on = off.state_dict(), on.state_dict()
    assert list(on) == list(off)
    assert {name: x.dtype for name, x in on.items()} == {name: x.dtype for name, x in off.items()}


@pytest.mark.parametrize("case", ["eighty classes, GIoU", "group norm in the head"])
def test_channels_last_has_stocks_losses_and_gradients(case, small_cfg):
    cfg = switched(small_cfg, "CHANNELS_LAST")
    test_parity.test_losses_and_gradients_equal_stock(case, cfg)


def test_channels_last_has_stocks_detections(small_cfg):
    # Group norm keeps logits moderate: where many scores are 1, rounding chooses among equals.
    cfg = switched(small_cfg, "CHANNELS_LAST")
    test_parity.check_detections_equal_stock("group norm in the head", cfg)


def test_channels_last_copies_no_head_output(small_cfg):
    model = build_model(switched(small_cfg, "CHANNELS_LAST"))
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        weights = [p for p in each.parameters() if p.dim() == 4]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    outputs = []
    model.head.register_forward_hook(lambda head, _, out: outputs.extend(out[0]))
    _, pred_logits, _ = model.predict(torch.rand(2, 3, 96, 128))
    for logits, output in zip(pred_logits, outputs):
        assert logits.is_contiguous()
        assert logits.data_ptr() == output.data_ptr()


@pytest.mark.parametrize("case", ["eighty classes, GIoU", "one class"])
def test_fast_convolutions_have_stocks_losses_and_gradients(case, small_cfg, fast_small):
    test_parity.test_losses_and_gradients_equal_stock(case, small_cfg)


def test_fast_convolutions_have_stocks_detections(small_cfg, fast_small):
    test_parity.check_detections_equal_stock("group norm in the head", small_cfg)


def test_without_fast_convolutions_the_same_losses_to_the_last_bit(small_cfg, fast_small):
    model = build_model(small_cfg)
    small_cfg.MODEL.RETINANET.FAST_CPU_CONV = False
    other = build_model(small_cfg)
    other.load_state_dict(model.state_dict())
    batch = make_batch(5)
    (losses, grads), (expected, expected_grads) = train_step(model, batch), train_step(other, batch)
    assert losses == expected
    weight = "head.cls_subnet.0.weight"
    assert not torch.equal(grads[weight], expected_grads[weight])
    torch.testing.assert_close(grads[weight], expected_grads[weight], rtol=1e-3, atol=1e-6)


IN_PLACE = [InPlaceNormConv2d, FastNormConv2d]


def conv_with_frozen_norm(kernel=3, stride=2, bias=False):
    norm = FrozenBatchNorm2d(6)
    for buffer in (norm.weight, norm.bias, norm.running_mean):
        buffer.normal_()
    norm.running_var.uniform_(0.1, 2)
    geometry = {"stride": stride, "padding": kernel // 2}
    return Conv2d(4, 6, kernel, **geometry, bias=bias, norm=norm, activation=torch.tanh)


def joined(conv, conv_class):
    joined = copy.deepcopy(conv)
    join_frozen_batch_norms(joined, conv_class)
    assert type(joined) is conv_class
    assert joined.state_dict().keys() == conv.state_dict().keys()
    return joined


# (kernel, stride): without a fast algorithm, and the two that have one.
GEOMETRIES = [(3, 2), (3, 1), (1, 2)]


@pytest.mark.parametrize("conv_class", [FoldedConv2d, *IN_PLACE])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("bias", [False, True])
def test_joined_norm_equals_norm_after_convolution(conv_class, geometry, bias, fast_small):
    conv = conv_with_frozen_norm(*geometry, bias)
    other = joined(conv, conv_class)
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    outputs = [each(x) for each in (other, conv)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(outputs[0])
    for out, each in zip(outputs, (other, conv)):
        wanted = [x, *each.parameters()]
        each.gradients = torch.autograd.grad(out, wanted, grad)
    torch.testing.assert_close(other.gradients, conv.gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("conv_class", IN_PLACE)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_norm_in_place_equals_detectron2s_to_the_last_bit_in_training(
    conv_class, geometry, dtype, is_frozen, fast_small
):
    conv = conv_with_frozen_norm(*geometry)
    conv.weight.requires_grad_(not is_frozen)
    x = torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), FastConvolutions():
        out = joined(conv, conv_class)(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = conv(x)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("conv_class", IN_PLACE)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_in_place_is_detectron2s_in_inference(conv_class, geometry, dtype, fast_small):
    conv = conv_with_frozen_norm(*geometry)
    x = torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), torch.no_grad():
        out, expected = joined(conv, conv_class)(x), conv(x)
    assert out.dtype == expected.dtype
    rounding = 1 if conv_class is FastNormConv2d else 0
    torch.testing.assert_close(out, expected, rtol=1e-4 * rounding, atol=1e-5 * rounding)


def test_trained_norms_are_not_joined():
    conv = Conv2d(4, 6, 3, norm=torch.nn.BatchNorm2d(6))
    join_frozen_batch_norms(conv, FoldedConv2d)
    assert type(conv) is Conv2d


def test_bfloat16_is_autocast_of_stocks_backbone_and_head(small_cfg):
    model, stock = test_parity.build_pair(switched(small_cfg, "BFLOAT16"))
    images = torch.rand(2, 3, 96, 128)
    _, pred_logits, pred_anchor_deltas = model.predict(images)
    with torch.autocast("cpu", torch.bfloat16):
        features = stock.backbone(images)
        expected = stock.head([features[name] for name in model.in_features])
    for outputs, wanted, size in zip((pred_logits, pred_anchor_deltas), expected, (5, 4)):
        for level, wanted_level in zip(outputs, wanted):
            assert level.dtype == torch.bfloat16
            n, _, h, w = wanted_level.shape
            wanted_level = wanted_level.view(n, 9, size, h, w).permute(0, 3, 4, 1, 2)
            assert torch.equal(level, wanted_level)


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


def test_bfloat16_scores_as_float32_does(small_cfg):
    exact, model = build_switched(small_cfg, "BFLOAT16")
    batch = make_batch(5)
    with torch.no_grad():
        detections, expected = model.eval()(batch), exact.eval()(batch)
    for found, wanted in zip(detections, expected):
        found, wanted = found["instances"], wanted["instances"]
        assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
        # Over four seeds, the ten best: 0.01 at most.
        best = slice(min(len(found), len(wanted), 10))
        assert best.stop == 10
        torch.testing.assert_close(found.scores[best], wanted.scores[best], rtol=0, atol=0.03)


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
        model.predict(torch.rand(1, 3, 64, 64))
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
    with torch.no_grad():
        detections, expected = model.eval()(batch), eager.eval()(batch)
    for found, wanted in zip(detections, expected):
        found, wanted = found["instances"], wanted["instances"]
        assert torch.equal(found.scores, wanted.scores)
        assert torch.equal(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
    assert len(graphs) == 2  # one with gradients and one without, each of one piece


# A square first: its equal sides cost a graph of their own. In much smaller images, levels of a
# single row, and the CPU's kernels for small inputs, would cost further graphs.
SIZES = [(320, 320), (320, 352), (544, 320), (352, 544), (384, 448), (416, 416), (320, 544),
         (480, 384), (512, 352), (544, 544)]  # fmt: skip


def test_ten_image_sizes_take_two_graphs_at_most(small_cfg, graphs):
    model = build_model(switched(small_cfg, "COMPILE"))
    for training, num_images in ((True, 2), (False, 1)):
        before = len(graphs)
        with torch.set_grad_enabled(training):
            for size in SIZES:
                model.train(training).predict(torch.rand(num_images, 3, *size))
        assert 1 <= len(graphs) - before <= 2


def test_distributed_training_compiles_one_graph_for_two_heights(small_cfg, graphs):
    model = build_model(switched(small_cfg, "COMPILE"))
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        distributed = DistributedDataParallel(model, broadcast_buffers=False)
        for size in SIZES[1:3]:
            sum(distributed(make_batch(5, sizes=(size, size))).values()).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(graphs) == 1


def test_compiled_models_can_be_copied_pickled_and_moved(small_cfg, graphs):
    model = build_model(switched(small_cfg, "COMPILE")).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        _, expected, _ = model.predict(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            _, pred_logits, _ = other.predict(images)
            assert torch.equal(pred_logits[0], expected[0])
        _, pred_logits, _ = model.to(torch.float64).predict(images.double())
    torch.testing.assert_close(pred_logits[0].float(), expected[0])
    assert graphs


def test_compiling_without_a_compiler_is_refused(small_cfg, monkeypatch):
    monkeypatch.delattr(torch, "compile")
    build_model(small_cfg)
    with pytest.raises(UserError, match=r"COMPILE is True, which needs .* PyTorch 2\.0"):
        build_model(switched(small_cfg, "COMPILE"))


def test_switches_act_in_detectron2s_predictor(small_cfg, graphs):
    small_cfg.INPUT.MIN_SIZE_TEST = 64
    predictor = DefaultPredictor(switched(small_cfg, *SWITCHES))
    outputs = []
    predictor.model.execution.register_forward_hook(lambda *args: outputs.append(args[-1]))
    instances = predictor(np.zeros((64, 64, 3), np.uint8))["instances"]
    assert instances.scores.dtype == torch.float32
    assert len(graphs) == 1
    for level in (level for part in outputs[0] for level in part):
        assert level.dtype == torch.bfloat16
        assert level.is_contiguous(memory_format=torch.channels_last)
