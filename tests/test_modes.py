"""Right wherever PyTorch takes a model: after and within its modes, transforms and exporters.

The model has the fast convolutions on, in every layer that they know.
"""

import copy
import pickle
import sys
import threading
from pathlib import Path
from types import ModuleType

import detectron2
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
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.structures import RotatedBoxes
from detectron2.utils.events import EventStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from retinanet_plugin import ModularRetinaNet
from retinanet_plugin.execution.cpu_conv import context
from retinanet_plugin.losses.normalizer import NormalizedLosses

try:
    from detectron2.export import TracingAdapter
except ImportError:  # the folder's __init__ of 0.6 wants Caffe2, which PyTorch has no more
    path = Path(detectron2.__file__).parent / "export"
    sys.modules["detectron2.export"] = package = ModuleType("detectron2.export")
    package.__path__ = [str(path)]
    from detectron2.export.flatten import TracingAdapter

pytestmark = pytest.mark.usefixtures("fast_cpu_conv")


@pytest.fixture
def pair(small_cfg):
    """The model and stock's, with the same weights; activations are moderate, as when trained."""
    small_cfg.MODEL.RETINANET.NUM_CONVS = 1
    model, stock = build_pair(small_cfg)
    for module in model.backbone.bottom_up.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.3)
    model.head.cls_score.bias.data.fill_(-1.0)
    weights = model.state_dict()
    weights.pop("loss_normalizer")
    stock.load_state_dict(weights)
    return model, stock


@pytest.fixture
def model(pair):
    return pair[0]


def fresh_training(model, batch):
    """Losses and gradients as if ``batch`` were the first one that ``model`` sees."""
    model.zero_grad()
    if hasattr(model, "loss_normalizer"):
        if isinstance(model.loss_normalizer, torch.Tensor):
            model.loss_normalizer.fill_(100.0)
        else:
            model.loss_normalizer = 100
    with EventStorage():
        return train_step(model, batch)


def assert_still_right(pair, batch=None):
    """The model trains and detects as stock's does."""
    batch = batch or make_batch(5)
    assert_equal_training(*(fresh_training(each, batch) for each in pair))
    assert_equal_detections(*(detect(each, batch) for each in pair))


class Network(torch.nn.Module):
    """Backbone and head of a model, as it runs them, from images to logits of all levels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        model = self.model
        with model.execution.context(images, model.backbone, model.head) as pixels:
            features = model.backbone(pixels)
            return model.head([features[name] for name in model.in_features])[0]


# ------------------------------------------------------- what a mode leaves behind


def test_after_fake_tensors(pair):
    model = pair[0]
    mode = FakeTensorMode()
    fakes = {name: mode.from_tensor(x) for name, x in Network(model).state_dict().items()}
    fakes |= {f"model.{name}": mode.from_tensor(x) for name, x in model.named_buffers()}
    with mode:
        torch.func.functional_call(Network(model), fakes, torch.rand(1, 3, 64, 64))
    assert_still_right(pair)


def test_after_export(pair):
    torch.export.export(Network(pair[0].eval()), (torch.rand(1, 3, 64, 64),))
    assert_still_right(pair)


def test_after_inference_mode_in_a_thread_that_did_nothing_before(pair):
    errors = []

    def run():
        try:
            with torch.inference_mode():
                pair[0].eval()(make_batch(5))
            assert_still_right(pair)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []


def test_copies_and_pickles(pair):
    model, stock = pair
    assert_still_right((copy.deepcopy(model), stock))
    assert_still_right((pickle.loads(pickle.dumps(model)), stock))


def test_threads_at_the_same_time(model):
    batch, found = make_batch(5), {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: detect(model.eval(), batch)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert torch.equal(found[i][0].scores, found[0][0].scores)


# ------------------------------------------------------- a caller's modules


def test_a_norm_that_is_replaced_after_building_is_the_one_that_runs(model):
    conv = model.backbone.bottom_up.res3[0].conv1
    assert type(conv.norm) is FrozenBatchNorm2d
    conv.norm = torch.nn.BatchNorm2d(conv.out_channels)
    model.train()(make_batch(5))
    assert conv.norm.num_batches_tracked == 1
    assert conv.norm.running_mean.abs().max() > 0


def test_hooks_of_a_norm_fire_and_see_its_input_unchanged(pair):
    seen = []
    model, stock = pair
    for each in pair:
        norm = each.backbone.bottom_up.res3[0].conv1.norm
        norm.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    for run in (fresh_training, detect):
        seen.clear()
        batch = make_batch(5)
        run(model, batch)
        run(stock, batch)
        (ours_in, ours_out), (theirs_in, theirs_out) = seen
        torch.testing.assert_close(ours_in, theirs_in, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours_out, theirs_out, rtol=1e-4, atol=1e-4)


def test_no_module_of_a_caller_changes(small_cfg, pair):
    backbone = build_backbone(small_cfg)
    before = {name: (type(m), dict(m.__dict__)) for name, m in backbone.named_modules()}
    model = ModularRetinaNet(**{**ModularRetinaNet.from_config(small_cfg), "backbone": backbone})
    fresh_training(model, make_batch(5))
    detect(model.train(False), make_batch(5))
    model.train()
    for name, module in backbone.named_modules():
        kind, state = before[name]
        assert type(module) is kind
        assert module.__dict__.keys() == state.keys()


# ------------------------------------------------------- derivatives


def test_double_backward(pair):
    batch = make_batch(5)
    results = []
    for each in pair:
        with EventStorage():
            losses = each.train()(batch)
        weight = [p for p in each.parameters() if p.requires_grad]
        first = torch.autograd.grad(losses["loss_box_reg"], weight, create_graph=True,
                                    allow_unused=True)  # fmt: skip
        penalty = sum(grad.square().sum() for grad in first if grad is not None)
        results.append(torch.autograd.grad(penalty, weight, allow_unused=True))
    for ours, theirs in zip(*results):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours - theirs).norm() <= 2e-4 * theirs.norm() + 1e-6


def test_func_grad_of_the_losses(pair):
    model, _ = pair
    batch = make_batch(5)
    _, expected = fresh_training(model, batch)
    model.loss_normalizer.fill_(100.0)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(weights):
        return sum(torch.func.functional_call(model, weights, (batch,)).values())

    for name, grad in torch.func.grad(loss)(weights).items():
        assert (grad - expected[name]).norm() <= 2e-4 * expected[name].norm() + 1e-6, name
    assert model.loss_normalizer == 100  # a transform changes nothing


@pytest.mark.parametrize("transform", ["vmap", "jvp", "dual numbers", "batched gradients"])
def test_transforms_of_backbone_and_head(model, transform):
    network, images = Network(model.eval()), torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        expected = [network(image)[0] for image in images]
    tangent = torch.randn_like(images[0])
    if transform == "vmap":
        found = torch.func.vmap(lambda image: network(image)[0])(images)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    elif transform == "jvp":
        found, slope = torch.func.jvp(lambda x: network(x)[0], (images[0],), (tangent,))
        torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-4)
        assert slope.abs().max() > 0
    elif transform == "dual numbers":
        with forward_ad.dual_level():
            found = network(forward_ad.make_dual(images[0], tangent))[0]
            assert forward_ad.unpack_dual(found).tangent.abs().max() > 0
    else:
        image = images[0].requires_grad_()
        some = network(image)[-1].flatten()[:3]
        found = torch.autograd.grad(some, image, torch.eye(3), is_grads_batched=True)[0]
        assert found.shape == (3, *image.shape)
        (wanted,) = torch.autograd.grad(network(image)[-1].flatten()[1], image)
        assert (found[1] - wanted).norm() <= 2e-4 * wanted.norm()


# ------------------------------------------------------- the same forward again


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_a_part_of_the_backbone(pair, reentrant):
    stage = pair[0].backbone.bottom_up.res3
    forward = stage.forward
    stage.forward = lambda x: checkpoint(forward, x, use_reentrant=reentrant)
    batch = make_batch(5)
    assert_equal_training(*(fresh_training(each, batch) for each in pair))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_the_whole_model(model, reentrant):
    batch = make_batch(5)
    losses, grads = fresh_training(model, batch)
    normalizer = model.loss_normalizer.clone()
    model.zero_grad()
    model.loss_normalizer.fill_(100.0)

    def forward(_):
        return tuple(model(batch).values())

    again = checkpoint(forward, torch.zeros(1, requires_grad=True), use_reentrant=reentrant)
    assert list(again) == list(losses.values())  # to the last bit
    sum(again).backward()
    assert model.loss_normalizer == normalizer  # the batch counted once
    for name, parameter in model.named_parameters():
        assert (parameter.grad - grads[name]).norm() <= 1e-5 * grads[name].norm(), name


def test_losses_without_gradients_are_the_same_to_the_last_bit(model):
    batch = make_batch(5)
    losses, _ = fresh_training(model, batch)
    model.loss_normalizer.fill_(100.0)
    with torch.no_grad():
        assert model(batch) == losses


# ------------------------------------------------------- other ways to run it


def test_a_traced_model_detects_in_images_of_other_sizes(model):
    model.eval()
    image = torch.randint(256, (3, 64, 96)).float()
    adapter = TracingAdapter(model, [{"image": image}])
    traced = torch.jit.trace(adapter, (image,), check_trace=False)
    counts = set()
    for size in ((64, 96), (32, 32), (160, 128)):
        image = torch.randint(256, (3, *size)).float()
        (expected,) = detect(model, [{"image": image}])
        found = adapter.outputs_schema(traced(image))[0]["instances"]
        assert len(found) == len(expected)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        counts.add(len(found))
    assert len(counts) > 1 or counts == {100}


def test_an_exported_program_has_plain_convolutions_and_takes_other_sizes(pair):
    model = pair[0].eval()
    sizes = {i: 128 * torch.export.Dim(name, min=2, max=4) for i, name in ((2, "h"), (3, "w"))}
    program = torch.export.export(
        Network(model), (torch.rand(1, 3, 256, 384),), dynamic_shapes=({0: None, 1: None, **sizes},)
    )
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("mm" in name or "as_strided" in name for name in operators)
    assert program.constants.keys() <= {f"model.{name}" for name, _ in model.named_buffers()}
    images = torch.rand(1, 3, 384, 256)
    with torch.no_grad():
        for found, expected in zip(program.module()(images), Network(model)(images)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_onnx_has_plain_convolutions(model):
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(
        Network(model.eval()), (torch.rand(1, 3, 64, 64),), dynamo=True, verbose=False
    )
    operators = {node.op_type for node in program.model.graph}
    assert operators <= {"Conv", "Relu", "Mul", "Add", "Resize", "MaxPool", "BatchNormalization"}


def test_compiled_from_outside(model):
    torch._dynamo.reset()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(Network(model.eval()), backend="eager", fullgraph=True)
        for found, expected in zip(compiled(images), Network(model)(images)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_training_step_around_the_losses_compiles_into_one_graph():
    torch._dynamo.reset()
    model, compiled_model = NormalizedLosses(), NormalizedLosses()

    def loss(model, x):
        return model.normalized({"loss": (x.sum(), None)}, (x > 0).sum())["loss"]

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    for x in (torch.ones(10), torch.ones(3)):
        assert compiled(compiled_model, x) == loss(model, x)
    assert compiled_model.loss_normalizer == model.loss_normalizer != 100.0


@pytest.mark.parametrize("gains", [True, False])
def test_dynamo_reads_the_whole_network(model, gains, monkeypatch):
    monkeypatch.setattr(context, "PROCESSOR_GAINS", gains)
    torch._dynamo.reset()
    program = torch.export.export(Network(model.eval()), (torch.rand(1, 3, 64, 64),), strict=True)
    convolutions = [node for node in program.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) > 30


def test_other_fields_of_instances_keep_their_types(model):
    batch = make_batch(5)
    for x in batch:
        x["instances"].gt_rotated = RotatedBoxes(torch.rand(len(x["instances"]), 5))
    assert type(model.ground_truth(batch)[0].gt_rotated) is RotatedBoxes


def test_a_model_made_without_memory_starts_as_stock_does(pair):
    model, stock = pair
    with torch.device("meta"):
        empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    empty.loss_normalizer.fill_(torch.nan)
    empty.load_state_dict(stock.state_dict())
    assert empty.loss_normalizer == 100


def test_distributed_data_parallel(pair):
    model, stock = pair
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        distributed = DistributedDataParallel(model, broadcast_buffers=False)
        batch = make_batch(5)
        losses = distributed(batch)
        sum(losses.values()).backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        assert_equal_training((losses, grads), fresh_training(stock, batch))
    finally:
        torch.distributed.destroy_process_group()


def test_autocast(pair):
    batch = make_batch(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = fresh_training(pair[0], batch)
    exact, _ = fresh_training(pair[1], batch)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0)
    assert_still_right(pair)


def test_double_precision(pair):
    batch = make_batch(5)
    model = copy.deepcopy(pair[0]).double()
    losses, _ = fresh_training(model, batch)
    exact, _ = fresh_training(pair[1], batch)
    for name, loss in losses.items():
        torch.testing.assert_close(loss.float(), exact[name], rtol=1e-4, atol=0)


def test_outliers_in_the_images(pair):
    batch = make_batch(5)
    batch[0]["image"] = batch[0]["image"].float()
    batch[0]["image"][:, 10:12, 10:12] = 1e4
    assert_still_right(pair, batch)
