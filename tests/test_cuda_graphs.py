"""The training step in fixed shapes: no operation waits for a GPU; the same numbers; CUDA graphs.

No GPU is needed: fake tensors have a CUDA device and a shape but no values, and refuse every
operation that would read one.
"""

import contextlib
import copy
import pickle

import pytest
import torch
from conftest import DeviceOperations, make_batch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from retinanet_plugin import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, UserError
from retinanet_plugin.compat import log_scalar
from retinanet_plugin.execution.cuda_graphs import (
    MAX_GRAPHS,
    CudaGraphs,
    TrainingStep,
    check_cuda_graphs,
)
from retinanet_plugin.head import Predictions
from retinanet_plugin.losses import foreground_box_loss
from retinanet_plugin.matching import padded_truth


@pytest.fixture(autouse=True)
def _in_fixed_shapes(monkeypatch):
    """On a CPU, too, the box loss takes all anchors under a mask, as it does on a GPU."""
    monkeypatch.setattr(
        "retinanet_plugin.dense_training.foreground_box_loss",
        lambda *args, masked, weights: foreground_box_loss(*args, masked=True, weights=weights),
    )


def padded_batch(model, batch):
    return model.preprocess_image(batch).tensor, *padded_truth([x["instances"] for x in batch])


def predict(model, images):
    """Anchors, and what the head predicts for them."""
    features = model.backbone(images)
    features = [features[name] for name in model.in_features]
    return model.anchor_generator(features), Predictions.of_head(model.head(features), 5)


# ------------------------------------------------------------------ nothing waits


def fake_model(cfg, device):
    """A model in training, and images, boxes and classes, as under ``FakeTensorMode``."""
    with torch.device(device):
        model = META_ARCH_REGISTRY.get("ModularRetinaNet")(cfg)
        images, boxes = torch.rand(2, 3, 64, 64), torch.rand(2, 8, 4)
        return model, (images, boxes, torch.ones(2, 8, dtype=torch.int64))


def test_no_operation_of_a_step_waits(small_cfg):
    small_cfg.MODEL.RETINANET.MATCHER_LOW_QUALITY_TO_CAUSE = True
    with fake_tensor.FakeTensorMode():
        model, batch = fake_model(small_cfg, "cuda")
        step = TrainingStep(model)
        step(*batch)  # makes the anchors
        with DeviceOperations() as operations:
            outputs = step(*batch)
        assert {x.device.type for x in outputs} == {"cuda"}
        assert operations.copies() == []
        # Backward on a fake GPU would ask for a true one; values are refused on any device.
        model, batch = fake_model(small_cfg, "cpu")
        sum(TrainingStep(model)(*batch)).backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("cls_loss", "box_loss"),
    [("FocalLoss", "smooth_l1"), ("FocalStarLoss", "giou"), ("CrossEntropyLoss", "diou"),
     ("BalancedCrossEntropyLoss", "ciou")],
)  # fmt: skip
def test_no_loss_waits(small_cfg, cls_loss, box_loss):
    retinanet = small_cfg.MODEL.RETINANET
    retinanet.CLS_LOSS_NAME, retinanet.BBOX_REG_LOSS_TYPE = cls_loss, box_loss
    retinanet.FOCAL_LOSS_ALPHA_PER_CLASS = [0.25, 0.5, 0.25, 0.3, 0.2]
    with fake_tensor.FakeTensorMode(), torch.device("cuda"):
        cls_loss, box_loss = (
            registry.get(name)(small_cfg)
            for registry, name in ((CLS_LOSS_REGISTRY, cls_loss), (BOX_LOSS_REGISTRY, box_loss))
        )
        boxes = torch.rand(2, 16, 4)
        labels = torch.ones(2, 2, 4, 2, dtype=torch.int64)
        anchors, deltas = [Boxes(boxes[0])], [torch.rand(2, 2, 4, 2, 4)]
        foreground = labels.view(2, 16) < 5
        with DeviceOperations() as operations:
            cls_loss([torch.rand(2, 2, 4, 2, 5)], [labels], anchors)
            foreground_box_loss(box_loss, foreground, deltas, anchors, boxes, masked=True)
    assert operations.copies() == []


def test_the_model_takes_this_form_on_a_gpu(small_cfg):
    with fake_tensor.FakeTensorMode(), EventStorage() as storage:
        model, (images, boxes, classes) = fake_model(small_cfg, "cuda")
        truth = [
            Instances((64, 64), gt_boxes=Boxes(some), gt_classes=labels[:3])
            for some, labels in zip(boxes[:, :3], classes)
        ]
        anchors, predictions = predict(model, images)
        targets = model.match(anchors, truth, predictions)
        assert set(model.losses(anchors, predictions, targets)) == {"loss_cls", "loss_box_reg"}
        # Reading a number for the log, which waits, is left to every 20th iteration.
        log_scalar("count", lambda: targets[0].sum(), model.device)
        assert "count" not in storage.latest()
        storage.iter = 19
        with pytest.raises(fake_tensor.DataDependentOutputException, match="_local_scalar_dense"):
            log_scalar("count", lambda: targets[0].sum(), model.device)


def test_such_checks_find_what_waits(small_cfg):
    small_cfg.MODEL.RETINANET.CLS_LOSS_NAME = "OHEMLoss"
    with fake_tensor.FakeTensorMode():
        model, batch = fake_model(small_cfg, "cuda")
        with pytest.raises(fake_tensor.DynamicOutputShapeException, match="nonzero"):
            TrainingStep(model)(*batch)
        with DeviceOperations() as operations:
            torch.tensor(3.0).to("cuda")
        assert operations.copies() == ["aten._to_copy.default"]


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize(
    ("box_loss", "num_boxes"),
    [("smooth_l1", (3, 5)), ("giou", (0, 20)), ("diou", (1, 2)), ("ciou", (0, 0))],
)
def test_losses_and_gradients_equal_those_of_the_model(small_cfg, box_loss, num_boxes):
    small_cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = box_loss
    model, batch = build_model(small_cfg), make_batch(5, num_boxes=num_boxes)
    other = copy.deepcopy(model)
    losses = model(batch)
    loss_cls, loss_box_reg = TrainingStep(other)(*padded_batch(other, batch))
    assert other.loss_normalizer == model.loss_normalizer
    torch.testing.assert_close(loss_cls, losses["loss_cls"])
    torch.testing.assert_close(loss_box_reg, losses["loss_box_reg"])
    sum(losses.values()).backward()
    (loss_cls + loss_box_reg).backward()
    for (name, p), theirs in zip(model.named_parameters(), other.parameters()):
        assert (p.grad - theirs.grad).norm() <= 1e-5 * p.grad.norm() + 1e-9, name


# ------------------------------------------------------------------ CUDA graphs


class StandIn:
    """Captures nothing, but warms up as ``make_graphed_callables`` does, and notes its calls."""

    def __init__(self):
        self.captured, self.replayed = [], []

    def __deepcopy__(self, memo):
        return self

    def __call__(self, step, batch, allow_unused_input):
        assert not torch.is_autocast_cache_enabled()
        self.captured.append([tuple(x.shape) for x in batch])
        for _ in range(3):
            step(*batch)

        def replay(*batch):
            self.replayed.append([tuple(x.shape) for x in batch])
            return step(*batch)

        return replay


def graph_model(cfg):
    """A model in graphs of a :class:`StandIn`, and that."""
    stand_in = StandIn()
    return CudaGraphs(build_model(cfg), stand_in), stand_in


def test_each_shape_is_captured_once_and_changes_no_statistics(small_cfg):
    small_cfg.MODEL.RETINANET.NORM = "BN"
    model, stand_in = graph_model(small_cfg)
    eager = copy.deepcopy(model.model)
    for num_boxes in [(3, 5), (0, 8), (3, 9)]:
        batch = make_batch(5, num_boxes)
        found, wanted = model(batch), eager(batch)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name])
    for ours, theirs in zip(model.model.buffers(), eager.buffers()):
        torch.testing.assert_close(ours, theirs)
    assert [boxes for _, boxes, _ in stand_in.captured] == [(2, 8, 4), (2, 16, 4)]
    assert [boxes for _, boxes, _ in stand_in.replayed] == [(2, 8, 4), (2, 8, 4), (2, 16, 4)]


def test_only_the_first_shapes_are_captured(small_cfg):
    model, stand_in = graph_model(small_cfg)
    for width in (*range(32, 32 * (MAX_GRAPHS + 3), 32), 32):
        losses = model(make_batch(5, num_boxes=[1], sizes=[(32, width)]))
        assert losses["loss_cls"] > 0
    widths = [images[-1] for images, _, _ in stand_in.captured]
    assert widths == [32 * (i + 1) for i in range(MAX_GRAPHS)]
    assert [images[-1] for images, _, _ in stand_in.replayed] == [*widths, 32]


def test_autocast_has_graphs_of_its_own(small_cfg):
    model, stand_in = graph_model(small_cfg)
    batch = make_batch(5, num_boxes=[1], sizes=[(32, 32)])
    for _ in range(2):
        exact = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.is_autocast_cache_enabled()
            rounded = model(batch)
            assert torch.is_autocast_cache_enabled()
        assert 0 < (exact["loss_cls"] / rounded["loss_cls"] - 1).abs() < 0.5
    assert len(stand_in.captured) == 2


def test_pictures_and_no_grad_do_without_graphs(small_cfg):
    model, stand_in = graph_model(small_cfg)
    batch = make_batch(5, num_boxes=[1], sizes=[(32, 32)])
    with torch.no_grad():
        model(batch)
    model.model.vis_period = 2
    with EventStorage() as storage:
        model(batch)
        assert stand_in.captured == []
        storage.step()
        model(batch)
        assert len(stand_in.captured) == 1
    model.eval()(batch)
    assert len(stand_in.replayed) == 1


def test_kept_gradients_are_refused(small_cfg):
    model, _ = graph_model(small_cfg)
    batch = make_batch(5, num_boxes=[1], sizes=[(32, 32)])
    sum(model(batch).values()).backward()
    losses = model(batch)  # Detectron2's trainer clears gradients only now
    model.zero_grad(set_to_none=False)
    with pytest.raises(RuntimeError, match="has a gradient before backward"):
        sum(losses.values()).backward()
    losses = model(batch)
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()


def test_copies_of_a_model_capture_their_own(small_cfg):
    model, stand_in = graph_model(small_cfg)
    batch = make_batch(5, num_boxes=[1], sizes=[(32, 32)])
    model(batch)
    other = copy.deepcopy(model)
    other(batch)
    assert len(stand_in.captured) == 2
    pickle.loads(pickle.dumps(CudaGraphs(model.model)))


class RecordedGraph(TorchDispatchMode):
    """What a CUDA graph is, on a CPU: operations that run again on the memory of their capture."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), "a capture cannot read values"
        assert "nonzero" not in str(func), "a capture has fixed shapes"
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, out in self.operations:
            inputs = {x.untyped_storage().data_ptr() for x in tensors_in((args, kwargs))}
            for old, new in zip(tensors_in(out), tensors_in(func(*args, **kwargs))):
                if old.untyped_storage().data_ptr() not in inputs:  # neither a view nor in place
                    old.copy_(new)


def tensors_in(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


@pytest.fixture
def recorded_graphs(monkeypatch):
    """PyTorch's ``make_graphed_callables`` runs on a CPU, with graphs that are recorded."""
    nothing = contextlib.nullcontext
    monkeypatch.setattr("torch.cuda.CUDAGraph", RecordedGraph)
    monkeypatch.setattr("torch.cuda.graph", lambda graph, **_: graph)
    monkeypatch.setattr("torch.cuda.Stream", nothing)
    monkeypatch.setattr("torch.cuda.stream", nothing)
    monkeypatch.setattr("torch.cuda.synchronize", nothing)
    monkeypatch.setattr("torch.cuda.graphs.graph_pool_handle", nothing)


def step(optimizers, losses):
    """A step of each optimizer with the losses of its model."""
    for optimizer, found in zip(optimizers, losses):
        optimizer.zero_grad(set_to_none=True)
        sum(found.values()).backward()
        optimizer.step()


@pytest.mark.parametrize("norm", ["", "BN"])
@pytest.mark.usefixtures("recorded_graphs")
def test_replays_train_as_the_model_does(small_cfg, norm):
    small_cfg.MODEL.RETINANET.NORM = norm
    model = build_model(small_cfg)
    eager = copy.deepcopy(model)
    graphs = CudaGraphs(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (model, eager)]
    history = []
    for num_boxes in [(3, 5), (8, 1), (0, 0), (1, 1)]:
        batch = make_batch(5, num_boxes, sizes=[(64, 64)] * 2)
        losses, expected = graphs(batch), eager(batch)
        step(optimizers, (losses, expected))
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-6)
        history.append((losses["loss_cls"], losses["loss_cls"].item()))
    assert all(loss.item() == value for loss, value in history)  # replays leave old losses alone
    for (name, ours), theirs in zip(model.state_dict().items(), eager.state_dict().values()):
        # While it is recorded, the loss is another formula, and rounds otherwise.
        assert (ours - theirs).double().norm() <= 1e-3 * theirs.double().norm() + 1e-5, name


@pytest.mark.parametrize(
    ("key", "part"),
    [("CLS_LOSS_NAME", "OHEMLoss"), ("MATCHER_NAME", "ATSSMatcher")],
)
def test_parts_that_no_graph_can_hold_are_refused(small_cfg, key, part):
    small_cfg.MODEL.RETINANET[key] = part
    with pytest.raises(
        UserError, match=rf"CUDA_GRAPH is True but .* cannot hold {part}, .*: choose"
    ):
        CudaGraphs(build_model(small_cfg))


@pytest.mark.parametrize(
    ("device", "num_processes", "message"),
    [
        ("cpu", 1, "MODEL.DEVICE is cpu: set MODEL.DEVICE cuda, or"),
        ("cuda", 2, "2 processes train together"),
    ],
)
def test_where_there_are_no_graphs_they_are_refused(small_cfg, device, num_processes, message):
    small_cfg.MODEL.DEVICE = device
    check_cuda_graphs(small_cfg, num_processes)
    small_cfg.MODEL.RETINANET.CUDA_GRAPH = True
    with pytest.raises(UserError, match=rf"^MODEL\.RETINANET\.CUDA_GRAPH is True but {message}"):
        check_cuda_graphs(small_cfg, num_processes)


# ------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_losses_and_gradients(small_cfg):
    model, batch = build_model(small_cfg), make_batch(5)
    on_gpu = copy.deepcopy(model).cuda()
    torch.backends.cudnn.allow_tf32 = False
    losses, expected = on_gpu(batch), model(batch)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for name, loss in losses.items():
        torch.testing.assert_close(loss.cpu(), expected[name], rtol=1e-4, atol=1e-6)
    for (name, p), q in zip(model.named_parameters(), on_gpu.parameters()):
        assert (q.grad.cpu() - p.grad).norm() <= 1e-3 * p.grad.norm() + 1e-6, name


@pytest.mark.gpu
def test_matching_and_losses_never_wait(small_cfg):
    model, batch = build_model(small_cfg).cuda(), make_batch(5)
    model(batch)  # the first call builds kernels
    anchors, predictions = predict(model, model.preprocess_image(batch).tensor)
    truth = model.ground_truth(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        targets = model.match(anchors, truth, predictions)
        sum(model.losses(anchors, predictions, targets).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_captured_graphs_train_as_the_model_does(small_cfg):
    model = build_model(small_cfg).cuda()
    eager, graphs = copy.deepcopy(model), CudaGraphs(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, eager)]
    for num_boxes in [(3, 5), (8, 1), (0, 0)]:
        batch = make_batch(5, num_boxes, sizes=[(64, 64)] * 2)
        losses, expected = graphs(batch), eager(batch)
        step(optimizers, (losses, expected))
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-3, atol=1e-5)
