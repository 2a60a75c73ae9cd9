"""The training step in fixed shapes: no operation waits for a GPU; the same numbers; CUDA graphs.

No GPU is needed: fake tensors have a CUDA device and a shape but no values, and refuse every
operation that would read one.
"""

import contextlib
import copy
import pickle

import pytest
import torch
from conftest import make_batch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from retinanet_plugin import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, UserError
from retinanet_plugin.cuda_graph import MOST_GRAPHS, CudaGraphs, TrainingStep
from retinanet_plugin.losses import foreground_box_loss
from retinanet_plugin.matching import padded_truth

if not hasattr(torch, "get_autocast_dtype"):
    pytest.skip("CUDA graphs need PyTorch 2.4", allow_module_level=True)


class CopiesBetweenDevices(TorchDispatchMode):
    """Notes the operations that copy from one device to another: they wait, too."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in (*args, out) if isinstance(x, torch.Tensor)}
        if "copy" in str(func) and len(devices) > 1:
            self.found.append(str(func))
        return out


def padded_batch(model, batch):
    return model.preprocess_image(batch).tensor, *padded_truth([x["instances"] for x in batch])


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
        with CopiesBetweenDevices() as copies:
            outputs = step(*batch)
        assert {x.device.type for x in outputs} == {"cuda"}
        assert copies.found == []
        # Backward on a fake GPU would ask for a true one; values are refused on any device.
        model, batch = fake_model(small_cfg, "cpu")
        sum(TrainingStep(model)(*batch)[:2]).backward()
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
        with CopiesBetweenDevices() as copies:
            cls_loss([torch.rand(2, 2, 4, 2, 5)], [labels], anchors)
            foreground_box_loss(box_loss, foreground, deltas, anchors, boxes, masked=True)
    assert copies.found == []


def test_the_model_takes_this_form_on_a_gpu(small_cfg):
    with fake_tensor.FakeTensorMode(), EventStorage() as storage:
        model, (images, boxes, classes) = fake_model(small_cfg, "cuda")
        truth = [
            Instances((64, 64), gt_boxes=Boxes(some), gt_classes=labels[:3])
            for some, labels in zip(boxes[:, :3], classes)
        ]
        anchors, pred_logits, pred_anchor_deltas = model.predict(images)
        targets = model.label_anchors(anchors, truth)
        arguments = anchors, pred_logits, targets[0], pred_anchor_deltas, targets[1]
        assert set(model.losses(*arguments)) == {"loss_cls", "loss_box_reg"}
        # Reading the count for the log, which waits, is left to every 20th iteration.
        assert "num_pos_anchors" not in storage.latest()
        storage.iter = 19
        with pytest.raises(fake_tensor.DataDependentOutputException, match="_local_scalar_dense"):
            model.losses(*arguments)


def test_such_checks_find_what_waits(small_cfg):
    small_cfg.MODEL.RETINANET.CLS_LOSS_NAME = "OHEMLoss"
    with fake_tensor.FakeTensorMode():
        model, batch = fake_model(small_cfg, "cuda")
        with pytest.raises(fake_tensor.DynamicOutputShapeException, match="nonzero"):
            TrainingStep(model)(*batch)
        with CopiesBetweenDevices() as copies:
            torch.tensor(3.0).to("cuda")
        assert copies.found == ["aten._to_copy.default"]


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize(
    ("box_loss", "num_boxes"),
    [("smooth_l1", (3, 5)), ("giou", (0, 20)), ("diou", (1, 2)), ("ciou", (0, 0))],
)
def test_losses_and_gradients_equal_those_of_the_model(small_cfg, box_loss, num_boxes):
    small_cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = box_loss
    model, batch = build_model(small_cfg), make_batch(5, num_boxes=num_boxes)
    other = copy.deepcopy(model)
    with EventStorage() as storage:
        losses = model(batch)
        num_pos_anchors = storage.latest()["num_pos_anchors"][0]
    loss_cls, loss_box_reg, found = TrainingStep(other)(*padded_batch(other, batch))
    assert found.item() == num_pos_anchors
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
    """A model whose graphs are a :class:`StandIn`'s, and that."""
    model, stand_in = build_model(cfg), StandIn()
    model.cuda_graphs = CudaGraphs(stand_in)
    return model, stand_in


def test_each_shape_is_captured_once_and_changes_no_statistics(small_cfg):
    small_cfg.MODEL.RETINANET.NORM = "BN"
    model, stand_in = graph_model(small_cfg)
    eager = copy.deepcopy(model)
    eager.cuda_graphs = None
    for num_boxes in [(3, 5), (0, 8), (3, 9)]:
        batch = make_batch(5, num_boxes)
        found, wanted = model(batch), eager(batch)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name])
    for ours, theirs in zip(model.buffers(), eager.buffers()):
        torch.testing.assert_close(ours, theirs)
    assert [boxes for _, boxes, _ in stand_in.captured] == [(2, 8, 4), (2, 16, 4)]
    assert [boxes for _, boxes, _ in stand_in.replayed] == [(2, 8, 4), (2, 8, 4), (2, 16, 4)]


def test_only_the_first_shapes_are_captured(small_cfg):
    model, stand_in = graph_model(small_cfg)
    for width in (*range(32, 32 * (MOST_GRAPHS + 3), 32), 32):
        losses = model(make_batch(5, num_boxes=[1], sizes=[(32, width)]))
        assert losses["loss_cls"] > 0
    widths = [images[-1] for images, _, _ in stand_in.captured]
    assert widths == [32 * (i + 1) for i in range(MOST_GRAPHS)]
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
    model.vis_period = 2
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
    assert isinstance(pickle.loads(pickle.dumps(CudaGraphs())), CudaGraphs)
    assert not any("cuda_graphs" in name for name in model.state_dict())


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


@pytest.mark.parametrize("norm", ["", "BN"])
@pytest.mark.usefixtures("recorded_graphs")
def test_replays_train_as_the_model_does(small_cfg, norm):
    small_cfg.MODEL.RETINANET.NORM = norm
    model = build_model(small_cfg)
    eager = copy.deepcopy(model)
    model.cuda_graphs = CudaGraphs()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (model, eager)]
    history = []
    for num_boxes in [(3, 5), (8, 1), (0, 0), (1, 1)]:
        batch = make_batch(5, num_boxes, sizes=[(64, 64)] * 2)
        losses, expected = model(batch), eager(batch)
        for optimizer, found in zip(optimizers, (losses, expected)):
            optimizer.zero_grad(set_to_none=True)
            sum(found.values()).backward()
            optimizer.step()
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-6)
        history.append((losses["loss_cls"], losses["loss_cls"].item()))
    assert all(loss.item() == value for loss, value in history)  # replays leave old losses alone
    for (name, ours), theirs in zip(model.state_dict().items(), eager.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.DEVICE", "cpu", "MODEL.DEVICE is cpu: set MODEL.DEVICE cuda, or"),
        ("MODEL.RETINANET.CLS_LOSS_NAME", "OHEMLoss", "cannot hold OHEMLoss, .*: choose another"),
        ("MODEL.RETINANET.MATCHER_NAME", "ATSSMatcher", "cannot hold ATSSMatcher, "),
    ],
)
def test_what_no_graph_can_hold_is_refused(small_cfg, key, value, message):
    small_cfg.MODEL.RETINANET.CUDA_GRAPH, small_cfg.MODEL.DEVICE = True, "cuda"
    build = META_ARCH_REGISTRY.get("ModularRetinaNet")  # leaves the model on the CPU
    assert isinstance(build(small_cfg).cuda_graphs, CudaGraphs)
    small_cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=rf"^MODEL\.RETINANET\.CUDA_GRAPH is True but .*{message}"):
        build(small_cfg)


def test_several_processes_are_refused(small_cfg, monkeypatch):
    small_cfg.MODEL.RETINANET.CUDA_GRAPH, small_cfg.MODEL.DEVICE = True, "cuda"
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(UserError, match="but 2 processes train together"):
        META_ARCH_REGISTRY.get("ModularRetinaNet")(small_cfg)
